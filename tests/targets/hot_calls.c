/* hot_calls SYMBOL THREADS CALLS [late]: THREADS threads call one probed function CALLS times
 * each, without a lock, all released by one barrier. With "late" they are created after the
 * go. Protocol: "ready", byte, "calls=N", byte, exit 0. */
#include "hot_functions.h"

static const struct probed *probed;
static long calls_each;
static pthread_barrier_t gate;

static void *caller(void *index)
{
    pthread_barrier_wait(&gate);
    long first = (long)index * calls_each;
    long done = 0;
    for (; done < calls_each; done++)
        call_and_check(probed, first + done);
    return (void *)done;
}

int main(int argc, char **argv)
{
    if (argc < 4)
        give_up(2, "usage: hot_calls SYMBOL THREADS CALLS [late]");
    limit_life();
    probed = find_probed(argv[1]);
    long threads = number(argv[2]);
    calls_each = number(argv[3]);
    bool late = argc > 4;
    pthread_t thread[threads];
    pthread_barrier_init(&gate, NULL, threads + 1);
    for (long i = 0; i < threads && !late; i++)
        start_thread(&thread[i], caller, (void *)i);
    say("ready");
    await_byte();
    for (long i = 0; i < threads && late; i++)
        start_thread(&thread[i], caller, (void *)i);
    pthread_barrier_wait(&gate);
    unsigned long calls = joined(thread, threads);
    if (probed->function == probed_rip && rip_counter != calls)
        give_up(BAD_RESULT, "the instruction ran %lu times in %lu calls", rip_counter, calls);
    say("calls=%lu", calls);
    await_byte();
    return 0;
}
