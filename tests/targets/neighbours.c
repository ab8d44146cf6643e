/* neighbours THREADS [pushing]: THREADS threads call one function of several short instructions, or one that begins with
 * a push, all the time and check each result.
 * Protocol: "ready"; byte: the threads begin; byte: they stop, "calls=N"; byte: exit 0. */
#include "common.h"

FUNCTION(chain, "lea 1(%rdi), %rax\n lea 2(%rax), %rax\n mov %rax, %rcx\n lea (%rcx), %rax\n"
                "cmp %rax, %rdi\n je 1f\n sub $2, %rax\n1: ret");
FUNCTION(pushing, "push %rbx\n lea 1(%rdi), %rbx\n mov %rbx, %rax\n pop %rbx\n ret");
long chain(long), pushing(long);

static long (*called)(long) = chain;
static atomic_bool over;

static void *call(void *gate)
{
    unsigned long calls = 0;
    pthread_barrier_wait(gate);
    for (; !over; calls++)
        if (called((long)calls) != (long)calls + 1)
            give_up(BAD_RESULT, "a call gave a wrong result");
    return (void *)calls;
}

int main(int argc, char **argv)
{
    if (argc != 2 && (argc != 3 || strcmp(argv[2], "pushing")))
        give_up(2, "usage: neighbours THREADS [pushing]");
    if (argc == 3)
        called = pushing;
    limit_life();
    long threads = number(argv[1]);
    pthread_t thread[threads];
    pthread_barrier_t gate;
    pthread_barrier_init(&gate, NULL, (unsigned)threads + 1);
    for (long i = 0; i < threads; i++)
        start_thread(&thread[i], call, &gate);
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
