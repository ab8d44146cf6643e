/* The program that `python -m ubpx.testing.kills` has traced by tracers that are killed.
 *
 * Its threads call functions that are probed, check every result themselves, and count in a file that is
 * shared with the tool: counts[0] is how many threads there are to be, counts[1] becomes not 0 when something
 * is wrong, counts[2 + n] is how far thread n is, and counts[66] how often a thread found its signals blocked: a
 * tracer does that for the time of a step, and when it is killed then they stay so until somebody heals.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define MOST 64
static _Atomic unsigned long *counts;
static _Atomic unsigned long signals;

static void wrong(unsigned long what)
{
    unsigned long none = 0;

    atomic_compare_exchange_strong(&counts[1], &none, what);
}

__attribute__((noinline)) int probed_leaf(int x) { __asm__ volatile(""); return 3 * x + 1; }
__attribute__((noinline)) int probed_pushing(int x) { int first = probed_leaf(x); return first + probed_leaf(x + 1); }
__attribute__((noinline)) double probed_float(double x) { __asm__ volatile("" : "+x"(x)); return x * 1.5 + 2; }
__attribute__((noinline)) long probed_call(void) { return syscall(SYS_getppid); }

__attribute__((noinline)) int probed_jumping(int x)
{
    int result;

    __asm__ volatile("jmp 1f\n\t.byte 0xcc\n1:\tlea 1(%1), %0" : "=r"(result) : "r"(x));
    return result;
}

static void *brief(void *argument)
{
    return (char *)argument + probed_leaf(1);
}

static void check(unsigned long round, long parent)
{
    int x = (int)(round & 0xffff);
    sigset_t mask;

    if (probed_leaf(x) != 3 * x + 1)
        wrong(101);
    if (probed_pushing(x) != 6 * x + 5)
        wrong(102);
    if (probed_float(x) != x * 1.5 + 2)
        wrong(103);
    if (probed_call() != parent)
        wrong(104);
    if (probed_jumping(x) != x + 1)
        wrong(105);
    if (round % 64 == 0) {
        struct timespec pause = {0, 20000};

        while (nanosleep(&pause, &pause) != 0)
            if (errno != EINTR)
                wrong(106);
        pthread_sigmask(SIG_BLOCK, 0, &mask);
        if (sigismember(&mask, SIGUSR2) || sigismember(&mask, SIGTERM))
            atomic_fetch_add(&counts[2 + MOST], 1);
    }
}

static _Noreturn void *hot(void *argument)
{
    unsigned long number = (unsigned long)argument;
    long parent = getppid();

    for (unsigned long round = 0;; round++) {
        check(round, parent);
        atomic_fetch_add(&counts[2 + number], 1);
    }
}

/* The last one makes threads, which block all signals for a moment while they are made. */
static _Noreturn void *maker(void *argument)
{
    unsigned long number = (unsigned long)argument;

    for (;;) {
        struct timespec pause = {0, 200000};
        pthread_t thread;
        void *result;

        if (pthread_create(&thread, 0, brief, 0) != 0 || pthread_join(thread, &result) != 0)
            wrong(201);
        else if ((unsigned long)result != 4)
            wrong(202);
        nanosleep(&pause, 0);
        atomic_fetch_add(&counts[2 + number], 1);
    }
}

static void on_signal(int number)
{
    (void)number;
    atomic_fetch_add(&signals, (unsigned long)probed_leaf(0));
}

int main(int argc, char **argv)
{
    int file = argc == 3 ? open(argv[1], O_RDWR) : -1;
    unsigned long threads = argc == 3 ? strtoul(argv[2], 0, 10) : 0;
    struct itimerval every = {{0, 3000}, {0, 3000}};
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    pthread_t thread;

    if (file < 0 || threads < 1 || threads > MOST)
        return 2;
    counts = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (counts == MAP_FAILED)
        return 2;
    sigaction(SIGALRM, &action, 0);
    setitimer(ITIMER_REAL, &every, 0);
    for (unsigned long number = 0; number < threads; number++)
        pthread_create(&thread, 0, hot, (void *)number);
    pthread_create(&thread, 0, maker, (void *)threads);
    counts[0] = threads + 1;
    for (;;)
        pause();
}
