/* family THREADS ROUNDS: threads call four probed functions all the time, and make children that call them too: forked,
 * forked and exec'ed, vforked, vforked and exec'ed, spawned, killed, and grandchildren. Every status is checked.
 * Protocol: "ready", byte, "children=M", "calls=N" (of each function, by the parent's threads), byte, exit 0.
 * "family leaf STATUS" is what exec'ed children run. */
#include "common.h"
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>

enum { CALLS_IN_CHILD = 4, CALLS_IN_PARENT = 10, SORTS = 7 };

FUNCTION(family_boost, "lea 1(%rdi), %rax\n ret");
FUNCTION(family_step, "lea 2(%rdi), %rax\n ret");
FUNCTION(family_inline, "lea 3(%rdi), %rax\n ret");
FUNCTION(family_emulate, "push %rdi\n pop %rax\n lea 4(%rax), %rax\n ret");
long family_boost(long), family_step(long), family_inline(long), family_emulate(long);

extern char **environ;
static atomic_ulong children, calls;
static atomic_bool started;
static long rounds;

static int call_all(int status)
{
    for (long i = 0; i < CALLS_IN_CHILD; i++)
        if (family_boost(i) != i + 1 || family_step(i) != i + 2 || family_inline(i) != i + 3 || family_emulate(i) != i + 4)
            return 1;
    return status;
}

static void reap_one(pid_t child, int expected, const char *sort)
{
    reap(child, expected, sort);
    children++;
}

static int grandparent(int status)
{
    int ended;
    pid_t child = fork();
    if (child == 0)
        _exit(call_all(status));
    return waitpid(child, &ended, 0) == child && WIFEXITED(ended) ? call_all(WEXITSTATUS(ended)) : 1;
}

static void make_one(int sort, int status)
{
    char text[8];
    char *argv[] = {"family", "leaf", text, NULL};
    pid_t child;
    snprintf(text, sizeof text, "%d", status);
    switch (sort) {
    case 0:
        if ((child = fork()) == 0)
            _exit(call_all(status));
        return reap_one(child, status << 8, "fork");
    case 1:
        if ((child = fork()) == 0) {
            call_all(0);
            execv("/proc/self/exe", argv);
            _exit(2);
        }
        return reap_one(child, status << 8, "fork and exec");
    case 2:
        if ((child = vfork()) == 0)
            _exit(call_all(status));
        return reap_one(child, status << 8, "vfork");
    case 3:
        if ((child = vfork()) == 0) {
            call_all(0);
            execv("/proc/self/exe", argv);
            _exit(2);
        }
        return reap_one(child, status << 8, "vfork and exec");
    case 4:
        if (posix_spawn(&child, "/proc/self/exe", NULL, NULL, argv, environ))
            give_up(BAD_SYSCALL, "posix_spawn: %s", strerror(errno));
        return reap_one(child, status << 8, "posix_spawn");
    case 5:
        if ((child = fork()) == 0) {
            call_all(0);
            raise(SIGKILL);
        }
        return reap_one(child, SIGKILL, "killed fork");
    default:
        if ((child = fork()) == 0)
            _exit(grandparent(status));
        return reap_one(child, status << 8, "fork of a fork");
    }
}

static void *parent(void *index)
{
    while (!started)
        ;
    for (long round = 0; round < rounds; round++) {
        for (long i = 0; i < CALLS_IN_PARENT; i++)
            if (family_boost(i) != i + 1 || family_step(i) != i + 2 || family_inline(i) != i + 3 ||
                family_emulate(i) != i + 4)
                give_up(BAD_RESULT, "a call gave a wrong result");
        calls += CALLS_IN_PARENT;
        make_one((int)((round + (long)index) % SORTS), 10 + (int)((round * 8 + (long)index) % 200));
    }
    return NULL;
}

int main(int argc, char **argv)
{
    if (argc == 3 && strcmp(argv[1], "leaf") == 0)
        return call_all((int)number(argv[2]));
    if (argc != 3)
        give_up(2, "usage: family THREADS ROUNDS");
    limit_life();
    long threads = number(argv[1]);
    rounds = number(argv[2]);
    pthread_t thread[threads];
    say("ready");
    await_byte();
    for (long i = 0; i < threads; i++)
        start_thread(&thread[i], parent, (void *)i);
    started = true;
    for (long i = 0; i < threads; i++)
        pthread_join(thread[i], NULL);
    say("children=%lu", children);
    say("calls=%lu", calls);
    await_byte();
    return 0;
}
