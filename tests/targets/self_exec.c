/* self_exec WHO CALLS: calls a probed function CALLS times, then replaces itself by itself, from
 * the leader ("leader") or from another thread ("other") while a third one calls; then calls again.
 * Protocol: "ready", byte, "calls=N", byte, exec, "again", byte, "calls=M", byte, exit 5. */
#include "common.h"

enum { FINAL_STATUS = 5 };

FUNCTION(probed_twice, "lea 1(%rdi), %rax\n ret");
FUNCTION(unprobed_beside, "lea 1(%rdi), %rax\n ret");
long probed_twice(long), unprobed_beside(long);

static long calls;

static void call_all(void)
{
    for (long i = 0; i < calls; i++)
        if (probed_twice(i) != i + 1)
            give_up(BAD_RESULT, "a call gave a wrong result");
    say("calls=%ld", calls);
    await_byte();
}

static void *replace(void *times)
{
    execl("/proc/self/exe", "self_exec", "again", (char *)times, NULL);
    give_up(BAD_SYSCALL, "exec: %s", strerror(errno));
    return NULL;
}

static void *beside(void *unused)
{
    for (long i = 0;; i++)
        if (unprobed_beside(i) != i + 1)
            give_up(BAD_RESULT, "a call beside gave a wrong result");
    return unused;
}

int main(int argc, char **argv)
{
    if (argc != 3)
        give_up(2, "usage: self_exec leader|other CALLS");
    limit_life();
    calls = number(argv[2]);
    bool again = strcmp(argv[1], "again") == 0;
    say(again ? "again" : "ready");
    await_byte();
    call_all();
    if (again)
        return FINAL_STATUS;
    pthread_t thread[2];
    start_thread(&thread[0], beside, NULL);
    if (strcmp(argv[1], "leader") == 0)
        replace(argv[2]);
    start_thread(&thread[1], replace, argv[2]);
    pthread_join(thread[1], NULL);
    return BAD_RESULT;
}
