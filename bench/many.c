/* The program of many functions: work_0 to work_9999, which begin in five ways. Prints "ready",
 * and ends when its standard input does. */
#include <stdio.h>

asm(".text\n"
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
    ".endm\n"
    ".set counter, 0\n"
    ".rept 10000\n"
    "  work %counter\n"
    "  .set counter, counter + 1\n"
    ".endr\n");

long many_words[4];

int main(void)
{
    puts("ready");
    fflush(stdout);
    while (getchar() != EOF)
        ;
    return 0;
}
