/* exits THREADS: the leader ends by pthread_exit; another thread makes THREADS short-lived
 * ones, four at a time, each of which calls a probed function.
 * Protocol: "ready", byte, "calls=N", byte, exit 7. */
#include "common.h"

enum { AT_ONCE = 4, CALLS = 25, FINAL_STATUS = 7 };

FUNCTION(probed_brief, "lea 1(%rdi), %rax\n ret");
long probed_brief(long);

static pthread_t leader;
static atomic_ulong calls;

static void *brief(void *unused)
{
    for (long i = 0; i < CALLS; i++)
        if (probed_brief(i) != i + 1)
            give_up(BAD_RESULT, "a call gave a wrong result");
    calls += CALLS;
    return unused;
}

static void *make_threads(void *wanted)
{
    pthread_join(leader, NULL);
    say("ready");
    await_byte();
    for (long made = 0; made < (long)wanted; made += AT_ONCE) {
        pthread_t thread[AT_ONCE];
        for (int i = 0; i < AT_ONCE; i++)
            start_thread(&thread[i], brief, NULL);
        for (int i = 0; i < AT_ONCE; i++)
            pthread_join(thread[i], NULL);
    }
    say("calls=%lu", calls);
    await_byte();
    exit(FINAL_STATUS);
}

int main(int argc, char **argv)
{
    pthread_t maker;
    if (argc != 2)
        give_up(2, "usage: exits THREADS");
    limit_life();
    leader = pthread_self();
    start_thread(&maker, make_threads, (void *)number(argv[1]));
    pthread_exit(NULL);
}
