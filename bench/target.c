/* The measured program: functions that begin with a known instruction, called in a loop.
 *
 * Prints "NAME ADDRESS SLOT" for each function, then "ready". The slot is a copy of the first
 * instruction followed by a jump to the second, mapped here within reach, so that the C tracer
 * has nothing to inject. For a line "NAME COUNT" on standard input it calls that function COUNT
 * times and prints the nanoseconds that the loop took; an empty line ends it. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { SLOT_SIZE = 16, JUMP_SIZE = 5 };

#define FUNCTION(name, body) \
    asm(".text\n.p2align 4\n.globl " #name "\n.type " #name ", @function\n" #name ":\n" body "\n.size " #name ", .-" #name "\n")

FUNCTION(bench_lea, "lea 1(%rdi), %rax\n ret");
FUNCTION(bench_push, "push %rbp\n lea 1(%rdi), %rax\n pop %rbp\n ret");
long bench_lea(long), bench_push(long);

static const struct function {
    const char *name;
    long (*function)(long);
    int length; /* of the first instruction */
} functions[] = {{"bench_lea", bench_lea, 4}, {"bench_push", bench_push, 1}};

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

static void make_slot(unsigned char *slot, const struct function *function)
{
    const unsigned char *origin = (const unsigned char *)function->function;
    memcpy(slot, origin, function->length);
    unsigned char *jump = slot + function->length;
    int distance = (int)(origin + function->length - (jump + JUMP_SIZE));
    jump[0] = 0xe9;
    memcpy(jump + 1, &distance, sizeof distance);
}

static long nanoseconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000L + now.tv_nsec;
}

static long run(const struct function *function, long count)
{
    long began = nanoseconds();
    for (long i = 0; i < count; i++)
        if (function->function(i) != i + 1)
            exit(3);
    return nanoseconds() - began;
}

int main(void)
{
    const int known = sizeof functions / sizeof *functions;
    unsigned char *area = map_near();
    char line[128], name[64];
    long count;
    alarm(600);
    for (int i = 0; i < known; i++)
        make_slot(area + i * SLOT_SIZE, &functions[i]);
    mprotect(area, 4096, PROT_READ | PROT_EXEC);
    for (int i = 0; i < known; i++)
        printf("%s %#lx %#lx\n", functions[i].name, (long)functions[i].function, (long)(area + i * SLOT_SIZE));
    puts("ready");
    fflush(stdout);
    while (fgets(line, sizeof line, stdin) && sscanf(line, "%63s %ld", name, &count) == 2) {
        for (int i = 0; i < known; i++)
            if (strcmp(name, functions[i].name) == 0)
                printf("%ld\n", run(&functions[i], count));
        fflush(stdout);
    }
    return 0;
}
