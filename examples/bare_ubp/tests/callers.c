/* callers THREADS CALLS: THREADS threads call every probed function CALLS times each, without a lock, all
 * released by one barrier, and check what they get; CALLS=0: until a byte comes. Meanwhile a timer and
 * queued signals interrupt them. The handlers check that each signal comes once, with its value, and at
 * an address of the program's own. Protocol: "ready", byte, "calls=N" (of each function), byte, exit 0. */
#include "hot_functions.h"
#include "own_text.h"
#include <poll.h>
#include <signal.h>
#include <sys/time.h>
#include <ucontext.h>

enum { FUNCTIONS = sizeof all_probed / sizeof *all_probed, TRAP_FLAG = 0x100 };

static long calls_each;
static pthread_barrier_t gate;
static atomic_bool over;
static atomic_long working;
static atomic_ulong sent, handled;

static void check_place(void *context)
{
    greg_t *regs = ((ucontext_t *)context)->uc_mcontext.gregs;
    if (!is_own_text(regs[REG_RIP]) || regs[REG_EFL] & TRAP_FLAG)
        give_up(BAD_RESULT, "a signal came at %#llx with flags %#llx", regs[REG_RIP], regs[REG_EFL]);
}

static void on_timer(int signal, siginfo_t *info, void *context)
{
    if (info->si_code != SI_KERNEL)
        give_up(BAD_RESULT, "signal %d, code %d", signal, info->si_code);
    check_place(context);
}

static void on_queued(int signal, siginfo_t *info, void *context)
{
    if (info->si_code != SI_QUEUE || (unsigned long)info->si_value.sival_ptr != handled)
        give_up(BAD_RESULT, "signal %d, code %d, value %p", signal, info->si_code, info->si_value.sival_ptr);
    check_place(context);
    handled++;
}

static void handle(int signal, void (*handler)(int, siginfo_t *, void *))
{
    struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_RESTART};
    if (sigaction(signal, &action, NULL))
        give_up(BAD_SYSCALL, "sigaction");
}

static void *caller(void *index)
{
    pthread_barrier_wait(&gate);
    long done = 0;
    for (; calls_each ? done < calls_each : !over; done++)
        for (int f = 0; f < FUNCTIONS; f++)
            call_and_check(&all_probed[f], (long)index * calls_each + done);
    working--;
    pthread_barrier_wait(&gate);
    return (void *)done;
}

/* One signal at a time, so that they never come faster than they are handled. */
static void send_while_working(pthread_t *thread, long threads)
{
    struct pollfd in = {.fd = 0, .events = POLLIN};
    while (working > 0) {
        union sigval value = {.sival_ptr = (void *)(unsigned long)sent};
        int error = pthread_sigqueue(thread[sent % threads], SIGRTMIN, value);
        if (error)
            give_up(BAD_SYSCALL, "pthread_sigqueue: %s", strerror(error));
        sent++;
        while (handled != sent)
            usleep(200);
        if (!calls_each && !over && poll(&in, 1, 0) == 1) {
            await_byte();
            over = true;
        }
    }
}

int main(int argc, char **argv)
{
    if (argc < 3)
        give_up(2, "usage: callers THREADS CALLS");
    limit_life();
    read_own_text();
    long threads = working = number(argv[1]);
    calls_each = number(argv[2]);
    pthread_t thread[threads];
    pthread_barrier_init(&gate, NULL, threads + 1);
    for (long i = 0; i < threads; i++)
        start_thread(&thread[i], caller, (void *)i);
    say("ready");
    await_byte();
    struct itimerval often = {{0, 3000}, {0, 3000}}, never = {0};
    handle(SIGPROF, on_timer);
    handle(SIGRTMIN, on_queued);
    setitimer(ITIMER_PROF, &often, NULL);
    pthread_barrier_wait(&gate);
    send_while_working(thread, threads);
    pthread_barrier_wait(&gate);
    setitimer(ITIMER_PROF, &never, NULL);
    unsigned long calls = 0;
    for (long i = 0; i < threads; i++) {
        void *done;
        pthread_join(thread[i], &done);
        calls += (unsigned long)done;
    }
    if (rip_counter != calls)
        give_up(BAD_RESULT, "the instruction ran %lu times in %lu calls", rip_counter, calls);
    say("calls=%lu", calls);
    await_byte();
    return 0;
}
