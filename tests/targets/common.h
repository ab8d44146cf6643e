/* What the target programs share: talking over pipes, and giving up loudly.
 *
 * A program prints "ready", waits for bytes on its standard input, and checks its own
 * results. Exit statuses: 3 a system call went wrong that must not, 4 a result is wrong,
 * 9 nobody talks to us any more. */
#ifndef UBPX_TARGETS_COMMON_H
#define UBPX_TARGETS_COMMON_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { BAD_SYSCALL = 3, BAD_RESULT = 4, LONELY = 9, SECONDS_TO_LIVE = 100 };

/* Say what is wrong on standard error and end the whole process; safe in any thread. */
static inline void give_up(int status, const char *format, ...)
{
    char text[256];
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(text, sizeof text - 1, format, arguments);
    va_end(arguments);
    if (length > (int)sizeof text - 2)
        length = sizeof text - 2;
    text[length++] = '\n';
    if (write(2, text, length) < 0)
        status |= 64;
    _exit(status);
}

/* A line for the test, at once. */
static inline void say(const char *format, ...)
{
    char text[256];
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(text, sizeof text - 1, format, arguments);
    va_end(arguments);
    text[length++] = '\n';
    if (write(1, text, length) != length)
        give_up(LONELY, "cannot say %s", strerror(errno));
}

/* The calls of all threads, which each returns when it is over. */
static inline unsigned long joined(const pthread_t *thread, long threads)
{
    unsigned long calls = 0;
    for (long i = 0; i < threads; i++) {
        void *done;
        pthread_join(thread[i], &done);
        calls += (unsigned long)done;
    }
    return calls;
}

/* Wait for a child of any sort, which must have been made and end with this wait status. */
static inline void reap(pid_t child, int expected, const char *sort)
{
    int status;
    if (child < 0)
        give_up(BAD_SYSCALL, "%s: %s", sort, strerror(errno));
    if (waitpid(child, &status, __WALL) != child)
        give_up(BAD_SYSCALL, "waitpid of %s: %s", sort, strerror(errno));
    if (status != expected)
        give_up(BAD_RESULT, "%s ended with status %#x, not %#x", sort, status, expected);
}

/* The next byte from the test; an interrupted read is an error of the tracer. */
static inline int await_byte(void)
{
    char byte;
    ssize_t got = read(0, &byte, 1);
    if (got < 0)
        give_up(BAD_SYSCALL, "read of standard input: %s", strerror(errno));
    if (got == 0)
        give_up(LONELY, "standard input is closed");
    return byte;
}

/* No target outlives a test that was killed. */
static inline void limit_life(void)
{
    alarm(SECONDS_TO_LIVE);
}

static inline long number(const char *text)
{
    char *end;
    long value = strtol(text, &end, 10);
    if (*text == 0 || *end != 0)
        give_up(2, "not a number: %s", text);
    return value;
}

static inline void start_thread(pthread_t *thread, void *(*body)(void *), void *argument)
{
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, 128 * 1024);
    int error = pthread_create(thread, &attributes, body, argument);
    if (error)
        give_up(BAD_SYSCALL, "pthread_create: %s", strerror(error));
    pthread_attr_destroy(&attributes);
}

/* A function of exactly these instructions, with a symbol of its own. */
#define FUNCTION(name, body)                                                               \
    asm(".text\n.p2align 4\n.globl " #name "\n.type " #name ", @function\n" #name ":\n"    \
        body "\n.size " #name ", .-" #name "\n")

/* The same without alignment: the function before it falls through into this one. */
#define CONTINUATION(name, body)                                                           \
    asm(".text\n.globl " #name "\n.type " #name ", @function\n" #name ":\n"                \
        body "\n.size " #name ", .-" #name "\n")

/* A function that takes a long and returns the next; its first instruction is one that runs in a slot. */
#ifdef __i386__
#define ADD_ONE(name) FUNCTION(name, "mov 4(%esp), %eax\n lea 1(%eax), %eax\n ret")
#else
#define ADD_ONE(name) FUNCTION(name, "lea 1(%rdi), %rax\n ret")
#endif

#endif
