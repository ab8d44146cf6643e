/* flood SYMBOL SIGNALS: two threads call SYMBOL, and each queues SIGNALS real-time signals to itself: one after each call, and in
 * bursts of 100 that were blocked until then. Ordinary ones go to the process meanwhile.
 * "g" begins; then "queued=N" (real-time signals that came, none lost, in order), "calls=N"; "q": exit 0. */
#include "common.h"
#include "hot_functions.h"
#include <signal.h>

enum { THREADS = 2, BURST = 100 };

static _Atomic long calls, queued;
static _Atomic int ordinary;
static long signals;
static const struct probed *probed;
static __thread int last;

static void on_queued(int number, siginfo_t *info, void *context)
{
    (void)number, (void)context;
    if (info->si_code != SI_QUEUE || info->si_value.sival_int != last + 1)
        give_up(BAD_RESULT, "signal %d came after %d, code %d", info->si_value.sival_int, last, info->si_code);
    last++;
    queued++;
}

static void on_ordinary(int number)
{
    (void)number;
    ordinary++;
}

static void call(long value)
{
    if (probed->function(value) != value + probed->added)
        give_up(BAD_RESULT, "a call gave a wrong result");
    calls++;
}

static void queue(int number)
{
    int error = pthread_sigqueue(pthread_self(), SIGRTMIN + 1, (union sigval){.sival_int = number});
    if (error)
        give_up(BAD_SYSCALL, "pthread_sigqueue: %s", strerror(error));
}

static void *work(void *unused)
{
    sigset_t real_time;
    sigemptyset(&real_time);
    sigaddset(&real_time, SIGRTMIN + 1);
    int sent = 0;
    while (sent < signals) {
        for (int i = 0; i < BURST; i++) {
            queue(++sent);
            call(sent);
            if (i % 4 == 0)
                kill(getpid(), SIGUSR1);
        }
        pthread_sigmask(SIG_BLOCK, &real_time, NULL);
        for (int i = 0; i < BURST; i++)
            queue(++sent);
        call(sent);
        pthread_sigmask(SIG_UNBLOCK, &real_time, NULL);
        call(sent);
    }
    return unused;
}

int main(int argc, char **argv)
{
    if (argc != 3)
        give_up(2, "usage: flood SYMBOL SIGNALS");
    limit_life();
    probed = find_probed(argv[1]);
    signals = number(argv[2]);
    struct sigaction action = {.sa_sigaction = on_queued, .sa_flags = SA_SIGINFO | SA_RESTART};
    sigaction(SIGRTMIN + 1, &action, NULL);
    struct sigaction plain = {.sa_handler = on_ordinary, .sa_flags = SA_RESTART};
    sigaction(SIGUSR1, &plain, NULL);
    say("ready");
    for (int byte; (byte = await_byte()) != 'q';)
        if (byte == 'g') {
            pthread_t threads[THREADS];
            for (int i = 0; i < THREADS; i++)
                start_thread(&threads[i], work, NULL);
            for (int i = 0; i < THREADS; i++)
                pthread_join(threads[i], NULL);
            if (!ordinary)
                give_up(BAD_RESULT, "no ordinary signal came");
            say("queued=%ld", queued);
            say("calls=%ld", calls);
        }
    return 0;
}
