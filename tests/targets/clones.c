/* clones SORT ROUNDS: three threads call a probed function while the leader makes children of one sort, each of
 * which calls it too: vm (CLONE_VM alone), parent (CLONE_PARENT), files (CLONE_FILES|CLONE_FS), pidns (a pid
 * namespace of its own), nested (a CLONE_VM child that makes a thread, a fork and a vfork itself), untraced
 * (CLONE_UNTRACED), traceme (a vfork child that asks its parent to trace it). The program runs under a parent of its own, which is the one to reap CLONE_PARENT's.
 * Protocol: "worker=PID", "ready", byte, "calls=N" (of the parent's threads), "statuses=well", byte, exit 0. */
#include "common.h"
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>

enum { CALLS_IN_CHILD = 20, THREADS = 3, CHILD = 31, STACK = 128 * 1024 };

FUNCTION(probed_clone, "lea 1(%rdi), %rax\n ret");
FUNCTION(probed_pushing, "push %rdi\n pop %rax\n lea 1(%rax), %rax\n ret");
long probed_clone(long), probed_pushing(long);

static atomic_bool over;
static atomic_ulong calls;
static long rounds;

static int calls_of_child(void)
{
    for (long i = 0; i < CALLS_IN_CHILD; i++)
        if (probed_clone(i) != i + 1 || probed_pushing(i) != i + 1)
            return 1;
    return CHILD;
}

static int child_body(void *unused)
{
    (void)unused;
    _exit(calls_of_child());
}

static int file_body(void *path)
{
    int descriptor = open(path, O_RDONLY);
    _exit(descriptor < 0 || calls_of_child() != CHILD ? 1 : descriptor);
}

static int in_thread(void *result)
{
    *(volatile int *)result = calls_of_child();
    return (int)syscall(SYS_exit, 0); /* of this thread alone */
}

static int nested_body(void *stack)
{
    volatile int result = 0;
    int status;
    int flags = CLONE_VM | CLONE_THREAD | CLONE_SIGHAND | CLONE_FILES | CLONE_FS;
    if (clone(in_thread, (char *)stack + STACK, flags, (void *)&result) < 0)
        _exit(2);
    pid_t child = fork();
    if (child == 0)
        _exit(calls_of_child());
    if (waitpid(child, &status, 0) != child || status != CHILD << 8)
        _exit(3);
    child = vfork();
    if (child == 0)
        _exit(calls_of_child());
    if (waitpid(child, &status, 0) != child || status != CHILD << 8)
        _exit(4);
    while (result == 0)
        sched_yield();
    _exit(result);
}

static int traceme_body(void *unused)
{
    (void)unused;
    _exit(ptrace(PTRACE_TRACEME, 0, NULL, NULL) == 0 ? calls_of_child() : 1);
}

static void reap_clone(pid_t child, int expected)
{
    reap(child, expected << 8, "a clone");
}

static pid_t make(int (*body)(void *), char *stack, int flags, void *argument)
{
    pid_t child = clone(body, stack + STACK, flags, argument);
    if (child < 0)
        give_up(BAD_SYSCALL, "clone(%#x): %s", flags, strerror(errno));
    return child;
}

static void one_child(const char *sort, char *stacks)
{
    if (strcmp(sort, "vm") == 0) {
        pid_t first = make(child_body, stacks, CLONE_VM | SIGCHLD, NULL);
        pid_t second = make(child_body, stacks + STACK, CLONE_VM, NULL); /* no signal at its end */
        reap_clone(second, CHILD);
        reap_clone(first, CHILD);
    } else if (strcmp(sort, "parent") == 0) {
        make(child_body, stacks, CLONE_PARENT | SIGCHLD, NULL);
        make(child_body, malloc(STACK), CLONE_PARENT | CLONE_VM | SIGCHLD, NULL); /* nobody here knows its end */
    } else if (strcmp(sort, "files") == 0) {
        int next = open("/proc/self/exe", O_RDONLY);
        close(next);
        reap_clone(make(file_body, stacks, CLONE_FILES | CLONE_FS | SIGCHLD, "/proc/self/exe"), next);
        if (close(next))
            give_up(BAD_RESULT, "what the child opened is not open here");
    } else if (strcmp(sort, "pidns") == 0) {
        reap_clone(make(child_body, stacks, CLONE_NEWPID | SIGCHLD, NULL), CHILD);
        reap_clone(make(child_body, stacks, CLONE_NEWPID | CLONE_VM | CLONE_VFORK | SIGCHLD, NULL), CHILD);
    } else if (strcmp(sort, "nested") == 0) {
        reap_clone(make(nested_body, stacks, CLONE_VM | SIGCHLD, stacks + STACK), CHILD);
    } else if (strcmp(sort, "traceme") == 0) {
        reap_clone(make(traceme_body, stacks, CLONE_VM | CLONE_VFORK | SIGCHLD, NULL), CHILD);
    } else if (strcmp(sort, "untraced") == 0) {
        reap_clone(make(child_body, stacks, CLONE_UNTRACED | SIGCHLD, NULL), CHILD);
    } else {
        give_up(2, "no sort %s", sort);
    }
}

static void *call(void *unused)
{
    while (!over) {
        long i = (long)calls++;
        if (probed_clone(i) != i + 1 || probed_pushing(i) != i + 1)
            give_up(BAD_RESULT, "a call gave a wrong result");
    }
    return unused;
}

static int work(const char *sort)
{
    pthread_t thread[THREADS];
    char *stacks = malloc(2 * STACK);
    limit_life();
    say("worker=%d", getpid());
    say("ready");
    await_byte();
    for (int i = 0; i < THREADS; i++)
        start_thread(&thread[i], call, NULL);
    for (long round = 0; round < rounds; round++)
        one_child(sort, stacks);
    over = true;
    for (int i = 0; i < THREADS; i++)
        pthread_join(thread[i], NULL);
    say("calls=%lu", calls);
    return 0;
}

int main(int argc, char **argv)
{
    if (argc != 3)
        give_up(2, "usage: clones SORT ROUNDS");
    limit_life();
    rounds = number(argv[2]);
    pid_t worker = fork();
    if (worker == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        _exit(work(argv[1]));
    }
    for (int status; ; ) {
        pid_t ended = waitpid(-1, &status, __WALL);
        if (ended < 0)
            break;
        if (status != (ended == worker ? 0 : CHILD << 8))
            give_up(BAD_RESULT, "%s ended with status %#x", ended == worker ? "the worker" : "a child", status);
    }
    say("statuses=well");
    await_byte();
    return 0;
}
