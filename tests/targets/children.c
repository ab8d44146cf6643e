/* children THREADS ROUNDS: threads make children of every sort, each of which calls the probed
 * function itself, while the parent's threads call it too. Every child's status is checked.
 * Protocol: "ready", byte, "children=M", "calls=N" (the parent's own), byte, exit 0.
 * "children leaf" is what the exec'ed child runs. */
#include "common.h"
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <sys/syscall.h>
#include <sys/wait.h>

enum { CALLS_IN_CHILD = 5, CALLS_IN_PARENT = 20, STACK = 64 * 1024 };
enum { FORKED = 21, VFORKED, LEAF, CLONED, CLONED_VFORK };

ADD_ONE(probed_child);
long probed_child(long);

extern char **environ;
static pthread_barrier_t gate;
static atomic_ulong children, calls;
static long rounds;

/* In the child: status, or 1 if a call went wrong. Touches nothing but registers. */
static int calls_of_child(int status)
{
    for (long i = 0; i < CALLS_IN_CHILD; i++)
        if (probed_child(i) != i + 1)
            return 1;
    return status;
}

static void reap_one(pid_t child, int expected, const char *sort)
{
    reap(child, expected, sort);
    children++;
}

static int body_of_clone(void *status)
{
    _exit(calls_of_child((int)(long)status));
}

static void make_clone(char *stack, int flags, int status, const char *sort)
{
    pid_t child = clone(body_of_clone, stack + STACK, CLONE_VM | SIGCHLD | flags, (void *)(long)status);
    reap_one(child, status << 8, sort);
}

static void make_fork(int killed)
{
    pid_t child = fork();
    if (child == 0) {
        int status = calls_of_child(FORKED);
        if (killed)
            kill(getpid(), SIGKILL);
        _exit(status);
    }
    reap_one(child, killed ? SIGKILL : FORKED << 8, "fork");
}

static void make_vfork(void)
{
    pid_t child = vfork();
    if (child == 0)
        _exit(calls_of_child(VFORKED));
    reap_one(child, VFORKED << 8, "vfork");
}

static void make_vfork_exec(void)
{
    pid_t child = vfork();
    if (child == 0) {
        if (calls_of_child(0) == 0)
            execl("/proc/self/exe", "children", "leaf", NULL);
        _exit(1);
    }
    reap_one(child, LEAF << 8, "vfork and exec");
}

static void make_spawn(void)
{
    pid_t child;
    char *argv[] = {"true", NULL};
    int error = posix_spawn(&child, "/bin/true", NULL, NULL, argv, environ);
    if (error)
        give_up(BAD_SYSCALL, "posix_spawn: %s", strerror(error));
    reap_one(child, 0, "posix_spawn");
}

static void *parent(void *unused)
{
    char *stack = malloc(STACK);
    (void)unused;
    pthread_barrier_wait(&gate);
    for (long round = 0; round < rounds; round++) {
        for (long i = 0; i < CALLS_IN_PARENT; i++)
            if (probed_child(i) != i + 1)
                give_up(BAD_RESULT, "a call gave a wrong result");
        calls += CALLS_IN_PARENT;
        make_fork(round % 2);
        make_vfork();
        make_vfork_exec();
        make_spawn();
        make_clone(stack, 0, CLONED, "clone(CLONE_VM)");
        make_clone(stack, CLONE_VFORK, CLONED_VFORK, "clone(CLONE_VM|CLONE_VFORK)");
    }
    free(stack);
    return NULL;
}

int main(int argc, char **argv)
{
    if (argc == 2 && strcmp(argv[1], "leaf") == 0)
        return calls_of_child(LEAF);
    if (argc != 3)
        give_up(2, "usage: children THREADS ROUNDS");
    limit_life();
    long threads = number(argv[1]);
    rounds = number(argv[2]);
    pthread_t thread[threads];
    pthread_barrier_init(&gate, NULL, threads + 1);
    for (long i = 0; i < threads; i++)
        start_thread(&thread[i], parent, NULL);
    say("ready");
    await_byte();
    pthread_barrier_wait(&gate);
    for (long i = 0; i < threads; i++)
        pthread_join(thread[i], NULL);
    say("children=%lu", children);
    say("calls=%lu", calls);
    await_byte();
    return 0;
}
