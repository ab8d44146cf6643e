/* What the measured programs have in common: they run a loop when told to, and take its time themselves.
 *
 * For a line "NAME COUNT" on standard input the command of that name is run with COUNT, and "NANOSECONDS PROCESSOR STOPS"
 * is printed: the loop's wall time; its processor time; and how often the kernel took the thread off its processor
 * because it had to wait, which under a tracer is the number of its stops. An empty line ends the program. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#define FUNCTION(name, body) \
    asm(".text\n.p2align 4\n.globl " #name "\n.type " #name ", @function\n" #name ":\n" body "\n.size " #name ", .-" #name "\n")

enum { WRONG_RESULT = 3 };

struct command {
    const char *name;
    void (*run)(long count);
    void (*prepare)(void); /* what is done before, whose time is not taken; or NULL */
};

static long clock_now(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return now.tv_sec * 1000000000L + now.tv_nsec;
}

static long nanoseconds(void) { return clock_now(CLOCK_MONOTONIC); }

static inline long stops(void)
{
    struct rusage usage;
    getrusage(RUSAGE_THREAD, &usage);
    return usage.ru_nvcsw;
}

static inline void serve(const struct command *commands, int known)
{
    char line[128], name[64];
    long count;
    alarm(900); /* whatever happens, nothing is left behind */
    puts("ready");
    fflush(stdout);
    while (fgets(line, sizeof line, stdin) && sscanf(line, "%63s %ld", name, &count) == 2) {
        for (int i = 0; i < known; i++) {
            if (strcmp(name, commands[i].name))
                continue;
            if (commands[i].prepare)
                commands[i].prepare();
            long waited = stops(), used = clock_now(CLOCK_THREAD_CPUTIME_ID), began = nanoseconds();
            commands[i].run(count);
            long ended = nanoseconds(), processor = clock_now(CLOCK_THREAD_CPUTIME_ID) - used;
            printf("%ld %ld %ld\n", ended - began, processor, stops() - waited);
        }
        fflush(stdout);
    }
}

/* Calls a function that returns its argument plus one. */
static inline void call(long (*function)(long), long count)
{
    for (long i = 0; i < count; i++)
        if (function(i) != i + 1)
            exit(WRONG_RESULT);
}
