/* crowd [THREADS]: a program of FUNCTIONS functions (a hundred thousand), work_0 and so on, which begin in five ways, and
 * of THREADS threads that wait. Protocol: "ready"; then, for each line, "hot N": calls hot() so often; "all N": calls all the
 * work_ functions so often; "own N": does something without a call; each answers "ns=" and how long that took. "q": exit 0. */
#include "common.h"
#include <time.h>

#ifndef FUNCTIONS
#define FUNCTIONS 100000
#endif
#define TEXT_OF(number) #number
#define IN_TEXT(number) TEXT_OF(number)

enum { STRIDE = 16 };

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
    "    lea some_words(%rip), %rax\n"
    "  .else\n"
    "    mov %rdi, %rax\n"
    "  .endif\n"
    "  ret\n"
    "  .size work_\\number, . - work_\\number\n"
    ".endm\n"
    ".set counter, 0\n"
    ".rept " IN_TEXT(FUNCTIONS) "\n"
    "  work %counter\n"
    "  .set counter, counter + 1\n"
    ".endr\n"
    ".noaltmacro\n");

ADD_ONE(hot);
long hot(long), some_words[4];
extern const char work_0[];

static long now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000L + time.tv_nsec;
}

static void *wait_for_ever(void *unused)
{
    pause();
    return unused;
}

static void call_hot(long times)
{
    for (long i = 0; i < times; i++)
        if (hot(i) != i + 1)
            give_up(BAD_RESULT, "a call gave a wrong result");
}

static void call_all(long times)
{
    for (long round = 0; round < times; round++)
        for (long i = 0; i < FUNCTIONS; i++)
            ((void (*)(long))(work_0 + i * STRIDE))(i);
}

static unsigned long own(long times)
{
    unsigned long state = 88172645463325252UL;
    for (long i = 0; i < times; i++) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
    }
    return state;
}

int main(int argc, char **argv)
{
    char line[64], what[16];
    long times, threads = argc > 1 ? number(argv[1]) : 0;
    limit_life();
    for (long i = 0; i < threads; i++)
        start_thread(&(pthread_t){0}, wait_for_ever, NULL);
    say("ready");
    for (;;) {
        size_t used = 0;
        for (int byte; (byte = await_byte()) != '\n';)
            if (used + 1 < sizeof line)
                line[used++] = (char)byte;
        line[used] = 0;
        if (strcmp(line, "q") == 0)
            return 0;
        if (sscanf(line, "%15s %ld", what, &times) != 2)
            give_up(2, "what is %s?", line);
        long before = now();
        if (strcmp(what, "hot") == 0)
            call_hot(times);
        else if (strcmp(what, "all") == 0)
            call_all(times);
        else if (own(times) == 0)
            give_up(BAD_RESULT, "it has come to nothing");
        say("ns=%ld", now() - before);
    }
}
