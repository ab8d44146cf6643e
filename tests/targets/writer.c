/* writer THREADS: at each "w" THREADS threads write watched_long 50 times each, at "r" they read it as often, at
 * "b" they write the byte behind it, and the sum is printed; "t" starts one more thread that writes once and ends.
 * Protocol: "ready", then "accesses=N" for each byte, "q": exit 0. */
#include "common.h"

enum { ACCESSES = 50 };
struct watched {
    volatile long watched;
    volatile char beside;
} __attribute__((aligned(16)));
struct watched watched_long;
static pthread_barrier_t start, done;
static atomic_int order;
static atomic_long accesses;

/* The store is in one place, for whoever looks at the hit's address. */
__attribute__((noinline)) static void write_it(long value)
{
    watched_long.watched = value;
}

static void *once(void *unused)
{
    write_it(1);
    return unused;
}

static void *accessor(void *index)
{
    for (;;) {
        pthread_barrier_wait(&start);
        if (order == 'q')
            return index;
        for (long i = 0; i < ACCESSES; i++, accesses++) {
            if (order == 'w')
                write_it(i);
            else if (order == 'b')
                watched_long.beside = (char)i;
            else
                (void)watched_long.watched;
        }
        pthread_barrier_wait(&done);
    }
}

int main(int argc, char **argv)
{
    if (argc != 2)
        give_up(2, "usage: writer THREADS");
    limit_life();
    long threads = number(argv[1]);
    pthread_t thread[threads], one;
    pthread_barrier_init(&start, NULL, threads + 1);
    pthread_barrier_init(&done, NULL, threads + 1);
    for (long i = 0; i < threads; i++)
        start_thread(&thread[i], accessor, (void *)i);
    say("ready");
    for (;;) {
        order = await_byte();
        accesses = 0;
        if (order == 't') {
            start_thread(&one, once, NULL);
            pthread_join(one, NULL);
            accesses = 1;
        } else {
            pthread_barrier_wait(&start);
            if (order == 'q')
                break;
            pthread_barrier_wait(&done);
        }
        say("accesses=%ld", accesses);
    }
    for (long i = 0; i < threads; i++)
        pthread_join(thread[i], NULL);
    return 0;
}
