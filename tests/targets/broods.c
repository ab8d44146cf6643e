/* broods THREADS EACH SECONDS: threads call three probed functions all the time, and between them make EACH children of
 * each sort, by fork, vfork and posix_spawn, which call the functions too. Every status is checked. It lives for SECONDS
 * at most. Protocol: "ready", byte, "children=M", "calls=N" (of each function, by the parent's threads), byte, exit 0.
 * "broods leaf STATUS" is what spawned children run. */
#include "common.h"
#include <spawn.h>

enum { CALLS_IN_CHILD = 3, CALLS_BETWEEN = 8, SORTS = 3 };

FUNCTION(brood_boost, "lea 1(%rdi), %rax\n ret");
FUNCTION(brood_step, "lea 2(%rdi), %rax\n ret");
FUNCTION(brood_emulate, "push %rdi\n pop %rax\n lea 3(%rax), %rax\n ret");
long brood_boost(long), brood_step(long), brood_emulate(long);

extern char **environ;
static atomic_ulong children, calls;
static atomic_long next;
static atomic_bool started;
static long wanted;

static bool call_all(long i)
{
    return brood_boost(i) == i + 1 && brood_step(i) == i + 2 && brood_emulate(i) == i + 3;
}

static int calls_of_child(int status)
{
    for (long i = 0; i < CALLS_IN_CHILD; i++)
        if (!call_all(i))
            return 1;
    return status;
}

static void make_one(int sort, int status)
{
    static const char *const names[] = {"fork", "vfork", "posix_spawn"};
    char text[8];
    char *argv[] = {"broods", "leaf", text, NULL};
    pid_t child = -1;
    switch (sort) {
    case 0:
        if ((child = fork()) == 0)
            _exit(calls_of_child(status));
        break;
    case 1:
        if ((child = vfork()) == 0)
            _exit(calls_of_child(status));
        break;
    default:
        snprintf(text, sizeof text, "%d", status);
        if ((errno = posix_spawn(&child, "/proc/self/exe", NULL, NULL, argv, environ)))
            child = -1;
    }
    reap(child, status << 8, names[sort]);
    children++;
}

static void *parent(void *unused)
{
    while (!started)
        ;
    for (long number; (number = next++) < wanted;) {
        for (long i = 0; i < CALLS_BETWEEN; i++)
            if (!call_all(number + i))
                give_up(BAD_RESULT, "a call gave a wrong result");
        calls += CALLS_BETWEEN;
        make_one((int)(number % SORTS), 10 + (int)(number % 200));
    }
    return unused;
}

int main(int argc, char **argv)
{
    if (argc == 3 && strcmp(argv[1], "leaf") == 0)
        return calls_of_child((int)number(argv[2]));
    if (argc != 4)
        give_up(2, "usage: broods THREADS EACH SECONDS");
    long threads = number(argv[1]);
    wanted = number(argv[2]) * SORTS;
    alarm((unsigned)number(argv[3]));
    pthread_t thread[threads];
    say("ready");
    await_byte();
    for (long i = 0; i < threads; i++)
        start_thread(&thread[i], parent, NULL);
    started = true;
    for (long i = 0; i < threads; i++)
        pthread_join(thread[i], NULL);
    say("children=%lu", children);
    say("calls=%lu", calls);
    await_byte();
    return 0;
}
