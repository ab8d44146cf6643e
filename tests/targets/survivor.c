/* survivor exit|exec|wait: makes a child that shares its memory and outlives it there; the child calls a
 * probed function all the time.
 * Protocol: "child=PID", "ready", byte: the leader exits with 5, or execs itself ("again" when it runs), or
 * "waits" for ever; byte: "calls=well", and the child exits with 6. After an exec: "status=6", exit 5. */
#include "common.h"
#include <sched.h>
#include <signal.h>
#include <sys/wait.h>

enum { CHILD = 6, FINAL_STATUS = 5, STACK = 64 * 1024, CALLS = 2000 };

ADD_ONE(probed_survivor);
long probed_survivor(long);

static char stack[STACK] __attribute__((aligned(16)));
static atomic_bool left;

static void call_often(void)
{
    for (long i = 0; i < CALLS; i++)
        if (probed_survivor(i) != i + 1)
            give_up(BAD_RESULT, "a call gave a wrong result");
}

static int survive(void *unused)
{
    (void)unused;
    limit_life();
    while (!left)
        call_often();
    await_byte();
    call_often();
    say("calls=well");
    _exit(CHILD);
}

int main(int argc, char **argv)
{
    if (argc == 3 && strcmp(argv[1], "again") == 0) {
        int status;
        limit_life();
        say("again");
        if (waitpid((pid_t)number(argv[2]), &status, 0) < 0)
            give_up(BAD_SYSCALL, "waitpid: %s", strerror(errno));
        say("status=%d", WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status));
        return FINAL_STATUS;
    }
    if (argc != 2)
        give_up(2, "usage: survivor exit|exec|wait");
    limit_life();
    pid_t child = clone(survive, stack + STACK, CLONE_VM | SIGCHLD, NULL);
    if (child < 0)
        give_up(BAD_SYSCALL, "clone: %s", strerror(errno));
    say("child=%d", child);
    say("ready");
    await_byte();
    left = true;
    if (strcmp(argv[1], "exit") == 0)
        _exit(FINAL_STATUS);
    if (strcmp(argv[1], "wait") == 0) {
        say("waits");
        for (;;)
            pause();
    }
    char number_of_child[16];
    snprintf(number_of_child, sizeof number_of_child, "%d", child);
    execl("/proc/self/exe", "survivor", "again", number_of_child, NULL);
    give_up(BAD_SYSCALL, "exec: %s", strerror(errno));
}
