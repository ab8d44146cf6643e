/* The program of many threads: threads N. Prints "bench_lea ADDRESS", then "ready"; the threads sleep.
 *
 * For a line "run MS" on standard input all of them call bench_lea for so many milliseconds; then "NANOSECONDS" and each
 * thread's number of calls are printed in one line. An empty line ends it. */
#include "loop.h"
#include <pthread.h>
#include <stdatomic.h>

FUNCTION(bench_lea, "lea 1(%rdi), %rax\n ret");
long bench_lea(long);

enum { MOST = 4096, STACK = 64 << 10 };
static pthread_barrier_t gate, end;
static atomic_int running;
static long calls[MOST];

static void *work(void *mine)
{
    long *count = mine;
    for (;;) {
        pthread_barrier_wait(&gate);
        long made = 0;
        while (atomic_load_explicit(&running, memory_order_relaxed)) {
            if (bench_lea(made) != made + 1)
                exit(WRONG_RESULT);
            made++;
        }
        *count = made;
        pthread_barrier_wait(&end);
    }
    return NULL;
}

static void run(int threads, long milliseconds)
{
    struct timespec span = {milliseconds / 1000, milliseconds % 1000 * 1000000};
    atomic_store(&running, 1);
    pthread_barrier_wait(&gate);
    long began = nanoseconds();
    nanosleep(&span, NULL);
    atomic_store(&running, 0);
    pthread_barrier_wait(&end);
    printf("%ld", nanoseconds() - began);
    for (int i = 0; i < threads; i++)
        printf(" %ld", calls[i]);
    printf("\n");
}

int main(int argc, char **argv)
{
    int threads = argc == 2 ? atoi(argv[1]) : 0;
    char line[64];
    long milliseconds;
    pthread_attr_t small;
    if (threads < 1 || threads > MOST)
        return 2;
    alarm(900);
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, STACK);
    pthread_barrier_init(&gate, NULL, threads + 1);
    pthread_barrier_init(&end, NULL, threads + 1);
    for (int i = 0; i < threads; i++) {
        pthread_t thread;
        if (pthread_create(&thread, &small, work, &calls[i]))
            return 1;
    }
    printf("bench_lea %#lx\nready\n", (long)bench_lea);
    fflush(stdout);
    while (fgets(line, sizeof line, stdin) && sscanf(line, "run %ld", &milliseconds) == 1) {
        run(threads, milliseconds);
        fflush(stdout);
    }
    exit(0);
}
