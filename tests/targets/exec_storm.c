/* exec_storm TIMES CALLS: calls a probed function CALLS times while another thread calls another one, then replaces
 * itself by itself, by turns from the leader and from a third thread, until TIMES programs have run.
 * Protocol: "ready", byte; then by itself "calls=N" (of all programs), byte, exit 5. */
#include "common.h"

enum { FINAL_STATUS = 5 };

FUNCTION(probed_storm, "lea 1(%rdi), %rax\n ret");
FUNCTION(probed_gust, "lea 1(%rdi), %rax\n ret");
long probed_storm(long), probed_gust(long);

static long left, calls, before;

static void *replace(void *unused)
{
    char texts[3][24];
    long values[3] = {left - 1, calls, before + calls};
    for (int i = 0; i < 3; i++)
        snprintf(texts[i], sizeof texts[i], "%ld", values[i]);
    execl("/proc/self/exe", "exec_storm", texts[0], texts[1], texts[2], NULL);
    give_up(BAD_SYSCALL, "exec: %s", strerror(errno));
    return unused;
}

static void *beside(void *unused)
{
    for (long i = 0;; i++)
        if (probed_gust(i) != i + 1)
            give_up(BAD_RESULT, "a call beside gave a wrong result");
    return unused;
}

int main(int argc, char **argv)
{
    pthread_t thread[2];
    if (argc < 3)
        give_up(2, "usage: exec_storm TIMES CALLS");
    left = number(argv[1]);
    calls = number(argv[2]);
    if (argc == 3) {
        limit_life(); /* outlives exec */
        say("ready");
        await_byte();
    } else {
        before = number(argv[3]);
    }
    start_thread(&thread[0], beside, NULL);
    for (long i = 0; i < calls; i++)
        if (probed_storm(i) != i + 1)
            give_up(BAD_RESULT, "a call gave a wrong result");
    if (left > 1) {
        if (left % 2)
            replace(NULL);
        start_thread(&thread[1], replace, NULL);
        pthread_join(thread[1], NULL);
    }
    say("calls=%ld", before + calls);
    await_byte();
    return FINAL_STATUS;
}
