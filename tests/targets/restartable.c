/* restartable count THREADS ROUNDS | linger: restartable sequences (rseq), registered by the C library.
 * count: upon a byte THREADS threads add ROUNDS times each to the counter of their processor; the sum must be exact.
 * linger: stays in a sequence until "go" is not 0. Both say where the struct rseq of the first thread is; in the end
 * they print how often a sequence was aborted. */
#include "common.h"
#include "sequences.h"
#include <sched.h>
#include <sys/rseq.h>

enum { CACHE_LINE = 64, RSEQ_CS = 8 };

#define COUNTED "lock incq aborts(%rip)"
#define UNWOUND(name, body) FUNCTION(name, ".cfi_startproc\n" body ".cfi_endproc\n")

/* rdi: the counters, rsi: the struct rseq's distance from fs. Long enough to be interrupted often. */
UNWOUND(add_here,
        "lea add_here_descriptor(%rip), %rax\n"
        "add_here_announce: mov %rax, %fs:8(%rsi)\n"
        "add_here_start: mov %fs:4(%rsi), %eax\n"
        "shl $6, %rax\n"
        "mov (%rdi,%rax), %rdx\n"
        "mov $300, %ecx\n"
        "1: dec %ecx\n"
        "jnz 1b\n"
        "inc %rdx\n"
        "mov %rdx, (%rdi,%rax)\n"
        "add_here_post: lea 1(%rdx), %rax\n"
        "ret\n"
        ABORT(add_here, COUNTED) SEQUENCE(add_here));
UNWOUND(linger,
        "lea linger_descriptor(%rip), %rax\n"
        "linger_announce: mov %rax, %fs:8(%rsi)\n"
        "linger_start: cmpl $0, go(%rip)\n"
        "je linger_start\n"
        "linger_post: lea 1(%rsi), %rax\n"
        "ret\n"
        ABORT(linger, COUNTED) SEQUENCE(linger));
UNWOUND(beside, "lea 1(%rdi), %rax\n ret\n");

long add_here(void *, ptrdiff_t), linger(void *, ptrdiff_t), beside(long);
extern const char linger_descriptor[];
unsigned long aborts;
int go;
static struct { long count; char rest[CACHE_LINE - sizeof(long)]; } counters[CPU_SETSIZE];
static long rounds;
static pthread_barrier_t begin;

static void *count(void *unused)
{
    pthread_barrier_wait(&begin);
    for (long i = 0; i < rounds; i++)
        add_here(counters, __rseq_offset);
    return unused;
}

static void count_in(int threads)
{
    pthread_t ids[threads];
    pthread_barrier_init(&begin, NULL, threads + 1);
    for (int i = 0; i < threads; i++)
        start_thread(&ids[i], count, NULL);
    await_byte();
    pthread_barrier_wait(&begin);
    for (int i = 0; i < threads; i++)
        pthread_join(ids[i], NULL);
    long sum = 0;
    for (int i = 0; i < CPU_SETSIZE; i++)
        sum += counters[i].count;
    if (sum != threads * rounds)
        give_up(BAD_RESULT, "%ld additions gave %ld", threads * rounds, sum);
}

int main(int argc, char **argv)
{
    limit_life();
    if (__rseq_size == 0)
        give_up(BAD_SYSCALL, "the C library has not registered rseq");
    say("ready");
    say("announced=%lu", (unsigned long)__builtin_thread_pointer() + __rseq_offset + RSEQ_CS);
    say("descriptor=%lu", (unsigned long)linger_descriptor);
    if (argc == 4 && !strcmp(argv[1], "count")) {
        rounds = number(argv[3]);
        count_in((int)number(argv[2]));
    } else {
        linger(NULL, __rseq_offset);
    }
    if (beside(1) != 2)
        give_up(BAD_RESULT, "a call gave a wrong result");
    say("aborts=%lu", aborts);
    return 0;
}
