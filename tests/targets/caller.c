/* caller THREADS: at each "g" THREADS threads make 100 system calls each (getppid), and the sum is printed;
 * at "u" thread 0 sends itself SIGUSR1, whose handler counts. Protocol: "ready", then "calls=N" or
 * "signals=N" for each byte, "q": exit 0. */
#include "common.h"
#include <signal.h>

enum { CALLS = 100 };
static atomic_long signals;
static pthread_barrier_t start, done;
static atomic_bool over;
static atomic_long calls;

FUNCTION(handled, "lea 1(%rdi), %rax\n ret");
long handled(long);

static void on_signal(int number)
{
    if (handled(number) == number + 1)
        signals++;
}

static void *caller(void *unused)
{
    for (;;) {
        pthread_barrier_wait(&start);
        if (over)
            return unused;
        for (long i = 0; i < CALLS; i++)
            calls += getppid() > 0;
        pthread_barrier_wait(&done);
    }
}

int main(int argc, char **argv)
{
    if (argc != 2)
        give_up(2, "usage: caller THREADS");
    limit_life();
    long threads = number(argv[1]);
    pthread_t thread[threads];
    pthread_barrier_init(&start, NULL, threads + 1);
    pthread_barrier_init(&done, NULL, threads + 1);
    signal(SIGUSR1, on_signal);
    for (long i = 0; i < threads; i++)
        start_thread(&thread[i], caller, NULL);
    say("ready");
    for (int byte; (byte = await_byte()) != 'q';) {
        if (byte == 'g') {
            calls = 0;
            pthread_barrier_wait(&start);
            pthread_barrier_wait(&done);
            say("calls=%ld", calls);
        } else if (byte == 'u') {
            raise(SIGUSR1);
            say("signals=%ld", signals);
        }
    }
    over = true;
    pthread_barrier_wait(&start);
    for (long i = 0; i < threads; i++)
        pthread_join(thread[i], NULL);
    return 0;
}
