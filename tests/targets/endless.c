/* endless SYMBOL THREADS [SECONDS]: THREADS threads call one probed function without a lock, from a byte to the
 * next, for SECONDS at most. Protocol: "ready", byte, byte, "calls=N", byte, exit 0. */
#include "hot_functions.h"

static const struct probed *probed;
static atomic_bool over;
static pthread_barrier_t gate;

static void *caller(void *index)
{
    pthread_barrier_wait(&gate);
    long done = 0;
    for (; !over; done++)
        call_and_check(probed, (long)index * 1000000000 + done);
    return (void *)done;
}

int main(int argc, char **argv)
{
    if (argc < 3)
        give_up(2, "usage: endless SYMBOL THREADS [SECONDS]");
    alarm(argc > 3 ? (unsigned)number(argv[3]) : SECONDS_TO_LIVE);
    probed = find_probed(argv[1]);
    long threads = number(argv[2]);
    pthread_t thread[threads];
    pthread_barrier_init(&gate, NULL, threads + 1);
    for (long i = 0; i < threads; i++)
        start_thread(&thread[i], caller, (void *)i);
    say("ready");
    await_byte();
    pthread_barrier_wait(&gate);
    await_byte();
    over = true;
    unsigned long calls = joined(thread, threads);
    say("calls=%lu", calls);
    await_byte();
    return 0;
}
