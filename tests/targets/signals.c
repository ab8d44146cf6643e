/* signals THREADS CALLS [SYMBOL]: threads call a probed function while queued signals with values and
 * an interval timer arrive. Handlers verify siginfo and that the interrupted address is the
 * program's own and no instruction's middle; some handlers call the probed function too. No
 * signal may be lost, doubled or overtaken.
 * Protocol: "ready", byte, "signals=S", "timers=T", "calls=N", byte, exit 0. */
#include "hot_functions.h"
#include "own_text.h"
#include <signal.h>
#include <time.h>
#include <ucontext.h>

enum { MAX_THREADS = 64, TIMER_VALUE = 0x51a7 };

static const struct probed *probed;
static unsigned long probed_start, probed_end;
static long calls_each;
static pthread_barrier_t gate;
static atomic_ulong calls, timers;
static atomic_long working;
static struct { atomic_ulong sent, handled; } queue[MAX_THREADS];
static __thread long own_index;

static void check_place(ucontext_t *context, const char *signal)
{
    unsigned long rip = context->uc_mcontext.gregs[REG_RIP];
    if (!is_own_text(rip))
        give_up(BAD_RESULT, "%s came at %#lx, which is not the program's", signal, rip);
    if (probed_start < rip && rip < probed_end)
        give_up(BAD_RESULT, "%s came inside an instruction, at %#lx", signal, rip);
    if (context->uc_mcontext.gregs[REG_EFL] & 0x100)
        give_up(BAD_RESULT, "%s shows a trap flag at %#lx", signal, rip);
}

static void on_queued(int signal, siginfo_t *info, void *context)
{
    (void)signal;
    check_place(context, "a queued signal");
    unsigned long expected = queue[own_index].handled;
    unsigned long value = (unsigned long)info->si_value.sival_ptr;
    if (info->si_code != SI_QUEUE || info->si_pid != getpid() || info->si_uid != getuid())
        give_up(BAD_RESULT, "code %d from %d", info->si_code, info->si_pid);
    if (value != ((unsigned long)own_index << 32 | expected))
        give_up(BAD_RESULT, "thread %ld: value %#lx instead of %#lx", own_index, value, expected);
    if (expected % 4 == 0) {
        call_and_check(probed, (long)expected);
        calls++;
    }
    queue[own_index].handled++;
}

static void on_timer(int signal, siginfo_t *info, void *context)
{
    (void)signal;
    check_place(context, "a timer");
    if (info->si_code != SI_TIMER || info->si_value.sival_int != TIMER_VALUE)
        give_up(BAD_RESULT, "timer: code %d, value %d", info->si_code, info->si_value.sival_int);
    timers++;
}

static void *caller(void *index)
{
    own_index = (long)index;
    pthread_barrier_wait(&gate);
    for (long i = 0; i < calls_each; i++)
        call_and_check(probed, own_index * calls_each + i);
    calls += calls_each;
    working--;
    while (working > 0 || queue[own_index].handled != queue[own_index].sent)
        usleep(1000);
    pthread_barrier_wait(&gate);
    return NULL;
}

static void handle(int signal, void (*handler)(int, siginfo_t *, void *))
{
    struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_RESTART};
    if (sigaction(signal, &action, NULL))
        give_up(BAD_SYSCALL, "sigaction");
}

static void start_timer(timer_t *timer)
{
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN};
    struct itimerspec every = {.it_interval.tv_nsec = 1500000, .it_value.tv_nsec = 1500000};
    event.sigev_value.sival_int = TIMER_VALUE;
    if (timer_create(CLOCK_MONOTONIC, &event, timer) || timer_settime(*timer, 0, &every, NULL))
        give_up(BAD_SYSCALL, "timer: %s", strerror(errno));
}

/* The sender takes no signal itself, so that its pause is not cut short. */
static void send_while_working(pthread_t *thread, long threads)
{
    struct timespec pause = {.tv_nsec = 200000};
    for (long turn = 0; working > 0; turn++) {
        long index = turn % threads;
        union sigval value = {.sival_ptr = (void *)((unsigned long)index << 32 | queue[index].sent)};
        queue[index].sent++;
        int error = pthread_sigqueue(thread[index], SIGRTMIN + 1, value);
        if (error)
            give_up(BAD_SYSCALL, "pthread_sigqueue: %s", strerror(error));
        nanosleep(&pause, NULL);
    }
}

int main(int argc, char **argv)
{
    if (argc < 3)
        give_up(2, "usage: signals THREADS CALLS [SYMBOL]");
    limit_life();
    read_own_text();
    probed = find_probed(argc > 3 ? argv[3] : "probed_lea");
    probed_start = (unsigned long)probed->function;
    probed_end = probed_start + (probed->function == probed_lea ? 4 : 1);
    long threads = working = number(argv[1]);
    calls_each = number(argv[2]);
    pthread_t thread[threads];
    timer_t timer;
    handle(SIGRTMIN, on_timer);
    handle(SIGRTMIN + 1, on_queued);
    pthread_barrier_init(&gate, NULL, threads + 1);
    for (long i = 0; i < threads; i++)
        start_thread(&thread[i], caller, (void *)i);
    sigset_t real_time;
    sigemptyset(&real_time);
    sigaddset(&real_time, SIGRTMIN);
    pthread_sigmask(SIG_BLOCK, &real_time, NULL);
    say("ready");
    await_byte();
    start_timer(&timer);
    pthread_barrier_wait(&gate);
    send_while_working(thread, threads);
    pthread_barrier_wait(&gate);
    timer_delete(timer);
    unsigned long handled = 0;
    for (long i = 0; i < threads; i++) {
        pthread_join(thread[i], NULL);
        handled += queue[i].handled;
    }
    say("signals=%lu", handled);
    say("timers=%lu", timers);
    say("calls=%lu", calls);
    await_byte();
    return 0;
}
