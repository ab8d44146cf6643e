/* The program of many functions: work_0 to work_FUNCTIONS, which begin in five ways and are never called. Beside each
 * stands a quiet function, in the same page: "quiet COUNT" calls COUNT of them, one after the other, when all have been
 * called. Two hundred bytes lie between two beginnings, about as many as in other programs. bench_lea is as in target.c. */
#include "loop.h"

#define TEXT(what) #what
#define VALUE(what) TEXT(what)

asm(".data\n"
    ".p2align 3\n"
    "quiet_functions:\n"
    ".text\n"
    ".altmacro\n"
    ".macro work number\n"
    "  .p2align 4\n"
    "  .globl work_\\number\n"
    "  .type work_\\number, @function\n"
    "work_\\number:\n"
    "  .if (\\number % 5) == 0\n"
    "    push %rbp\n"
    "    pop %rbp\n"
    "  .elseif (\\number % 5) == 1\n"
    "    endbr64\n"
    "  .elseif (\\number % 5) == 2\n"
    "    sub $24, %rsp\n"
    "    add $24, %rsp\n"
    "  .elseif (\\number % 5) == 3\n"
    "    lea many_words(%rip), %rax\n"
    "  .else\n"
    "    mov %rdi, %rax\n"
    "  .endif\n"
    "  ret\n"
    "  .size work_\\number, . - work_\\number\n"
    "  .p2align 4\n"
    "  .type quiet_\\number, @function\n"
    "quiet_\\number:\n"
    "  lea 1(%rdi), %rax\n"
    "  ret\n"
    "  .size quiet_\\number, . - quiet_\\number\n"
    "  .skip 160, 0x90\n"
    "  .pushsection .data\n"
    "  .quad quiet_\\number\n"
    "  .popsection\n"
    ".endm\n"
    ".set counter, 0\n"
    ".rept " VALUE(FUNCTIONS) "\n"
    "  work %counter\n"
    "  .set counter, counter + 1\n"
    ".endr\n");

FUNCTION(bench_lea, "lea 1(%rdi), %rax\n ret");
FUNCTION(bench_over, "lea 1(%rdi), %rax\n ret");
long bench_lea(long), bench_over(long);
extern long (*const quiet_functions[])(long);
long many_words[4];

static void run_lea(long count) { call(bench_lea, count); }
static void run_over(long count) { call(bench_over, count); }

static void run_quiet(long count)
{
    for (long i = 0; i < count; i++)
        if (quiet_functions[i % FUNCTIONS](i) != i + 1)
            exit(WRONG_RESULT);
}

/* The code is in the caches again, where another program's has been. */
static void come_back(void) { run_quiet(3L * FUNCTIONS); }

int main(void)
{
    static const struct command commands[] = {
        {"bench_lea", run_lea, NULL}, {"quiet", run_quiet, come_back}, {"bench_over", run_over, NULL}};
    printf("bench_lea %#lx 4 0 0\nbench_over %#lx 4 0 0\n", (long)bench_lea, (long)bench_over);
    serve(commands, sizeof commands / sizeof *commands);
    return 0;
}
