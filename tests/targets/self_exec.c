/* self_exec WHO CALLS: calls a probed function CALLS times, then replaces itself by itself, from
 * the leader ("leader"), from another thread ("other"), or from one that is left when the leader has exited
 * ("headless"), while a third one calls; then calls again.
 * Protocol: "ready", byte, "calls=N", byte, (headless: "headless", byte,) exec, "again", byte, "calls=M", byte, exit 5. */
#include "common.h"

enum { FINAL_STATUS = 5 };

FUNCTION(probed_twice, "lea 1(%rdi), %rax\n ret");
FUNCTION(unprobed_beside, "lea 1(%rdi), %rax\n ret");
long probed_twice(long), unprobed_beside(long);

static long calls;
static char program[4096]; /* /proc/self of a leader that has exited names none */

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
    execl(program, "self_exec", "again", (char *)times, NULL);
    give_up(BAD_SYSCALL, "exec: %s", strerror(errno));
    return NULL;
}

static pthread_t leader;

static void *replace_alone(void *times)
{
    pthread_join(leader, NULL);
    say("headless");
    await_byte();
    return replace(times);
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
        give_up(2, "usage: self_exec leader|other|headless CALLS");
    limit_life();
    calls = number(argv[2]);
    if (readlink("/proc/self/exe", program, sizeof program - 1) < 0)
        give_up(BAD_SYSCALL, "readlink: %s", strerror(errno));
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
    leader = pthread_self();
    if (strcmp(argv[1], "headless") == 0) {
        start_thread(&thread[1], replace_alone, argv[2]);
        pthread_exit(NULL);
    }
    start_thread(&thread[1], replace, argv[2]);
    pthread_join(thread[1], NULL);
    return BAD_RESULT;
}
