/* The program of many threads. For a line "THREADS MILLISECONDS" on standard input so many threads call bench_shared
 * in a loop for so long; it prints "NANOSECONDS CALLS LEAST MOST": how long that took, all their calls, and those of
 * the threads that came least and most often. "sleep THREADS" has so many threads sleep until the end, and prints
 * "ready"; an empty line ends it. First it prints "bench_shared ADDRESS". */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

enum { STACK = 64 << 10, MOST = 4096 };

asm(".text\n.p2align 4\n.globl bench_shared\n.type bench_shared, @function\nbench_shared:\n"
    " lea 1(%rdi), %rax\n ret\n.size bench_shared, .-bench_shared\n");
long bench_shared(long);

static struct count { /* each in a line of its own: the threads share nothing that they write */
    long calls;
    char room[56];
} counts[MOST];
static atomic_int over;
static pthread_barrier_t gate;

static void *call(void *index)
{
    struct count *count = &counts[(long)index];
    pthread_barrier_wait(&gate);
    for (long i = 0; !atomic_load_explicit(&over, memory_order_relaxed); i++, count->calls++)
        if (bench_shared(i) != i + 1)
            exit(3);
    return NULL;
}

static void *sleep_on(void *unused)
{
    for (;;)
        pause();
    return unused;
}

static long nanoseconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000L + now.tv_nsec;
}

static void start(pthread_t *thread, void *(*work)(void *), long index)
{
    pthread_attr_t small;
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, STACK);
    if (pthread_create(thread, &small, work, (void *)index))
        exit(4);
    pthread_attr_destroy(&small);
}

static void run(long threads, long milliseconds)
{
    static pthread_t started[MOST];
    long calls = 0, least = -1, most = 0;
    pthread_barrier_init(&gate, NULL, threads + 1);
    atomic_store(&over, 0);
    for (long i = 0; i < threads; i++) {
        counts[i].calls = 0;
        start(&started[i], call, i);
    }
    pthread_barrier_wait(&gate);
    long began = nanoseconds();
    struct timespec span = {milliseconds / 1000, milliseconds % 1000 * 1000000};
    nanosleep(&span, NULL);
    atomic_store(&over, 1);
    for (long i = 0; i < threads; i++)
        pthread_join(started[i], NULL);
    long took = nanoseconds() - began;
    for (long i = 0; i < threads; i++) {
        calls += counts[i].calls;
        most = counts[i].calls > most ? counts[i].calls : most;
        least = least < 0 || counts[i].calls < least ? counts[i].calls : least;
    }
    printf("%ld %ld %ld %ld\n", took, calls, least, most);
}

int main(void)
{
    char line[128];
    long threads, milliseconds;
    alarm(600);
    printf("bench_shared %#lx\n", (long)bench_shared);
    fflush(stdout);
    while (fgets(line, sizeof line, stdin)) {
        if (sscanf(line, "sleep %ld", &threads) == 1) {
            pthread_t thread;
            for (long i = 0; i < threads; i++)
                start(&thread, sleep_on, i);
            puts("ready");
        } else if (sscanf(line, "%ld %ld", &threads, &milliseconds) == 2 && threads > 0 && threads <= MOST)
            run(threads, milliseconds);
        else
            break;
        fflush(stdout);
    }
    return 0;
}
