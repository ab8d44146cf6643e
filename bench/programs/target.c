/* The measured program: functions that begin with a known instruction, called in a loop.
 *
 * Prints "NAME ADDRESS LENGTH SLOT STUB" for each function. The slot is a copy of the first instruction, which has LENGTH
 * bytes, and a jump to the second; the stub is an int3, a copy of the instructions that a jump of five bytes covers,
 * and a jump behind them. Both are mapped here, within reach, so that a tracer in C has nothing to inject. bench_over is
 * called when all is over: debuggers stop there. */
#include "loop.h"
#include <sys/mman.h>

enum { COPY_SIZE = 32, JUMP_SIZE = 5, TRAP = 0xcc, JUMP = 0xe9 };

FUNCTION(bench_lea, "lea 1(%rdi), %rax\n ret");
FUNCTION(bench_push, "push %rbp\n lea 1(%rdi), %rax\n pop %rbp\n ret");
FUNCTION(bench_over, "lea 1(%rdi), %rax\n ret");
long bench_lea(long), bench_push(long), bench_over(long);

static const struct function {
    const char *name;
    long (*function)(long);
    int length;  /* of the first instruction */
    int covered; /* of the instructions that a jump covers */
} functions[] = {{"bench_lea", bench_lea, 4, 5}, {"bench_push", bench_push, 1, 5}, {"bench_over", bench_over, 4, 5}};

/* The lowest free place after the program that a 32-bit jump reaches; mmap's own choice lies too far. */
static unsigned char *map_near(void)
{
    char *wanted = (char *)(((unsigned long)bench_lea & ~0xffffUL) + (64UL << 20));
    for (int attempt = 0; attempt < 64; attempt++, wanted += 1 << 20) {
        void *area = mmap(wanted, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
        if (area == wanted)
            return area;
    }
    perror("mmap");
    exit(1);
}

/* A copy of so many bytes of the function, and a jump behind them. */
static void copy(unsigned char *to, const struct function *function, int length)
{
    const unsigned char *origin = (const unsigned char *)function->function;
    memcpy(to, origin, length);
    int distance = (int)(origin + length - (to + length + JUMP_SIZE));
    to[length] = JUMP;
    memcpy(to + length + 1, &distance, sizeof distance);
}

static void run_lea(long count) { call(bench_lea, count); }
static void run_push(long count) { call(bench_push, count); }
static void run_over(long count) { call(bench_over, count); }

int main(void)
{
    static const struct command commands[] = {
        {"bench_lea", run_lea, NULL}, {"bench_push", run_push, NULL}, {"bench_over", run_over, NULL}};
    unsigned char *area = map_near();
    for (unsigned i = 0; i < sizeof functions / sizeof *functions; i++) {
        unsigned char *slot = area + 2 * i * COPY_SIZE, *stub = slot + COPY_SIZE;
        copy(slot, &functions[i], functions[i].length);
        stub[0] = TRAP;
        copy(stub + 1, &functions[i], functions[i].covered);
        printf("%s %#lx %d %#lx %#lx\n", functions[i].name, (long)functions[i].function, functions[i].length, (long)slot,
               (long)stub);
    }
    mprotect(area, 4096, PROT_READ | PROT_EXEC);
    serve(commands, sizeof commands / sizeof *commands);
    return 0;
}
