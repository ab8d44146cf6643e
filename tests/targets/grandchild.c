/* grandchild STATUS: makes a child that waits for a byte, calls a probed function ten times and exits
 * with STATUS; "child=PID", then "ready"; reports "status=N" when the child has ended. */
#include "common.h"
#include <sys/wait.h>

FUNCTION(probed_grand, "lea 1(%rdi), %rax\n ret");
long probed_grand(long);

static int live(int status)
{
    await_byte();
    for (long i = 0; i < 10; i++)
        if (probed_grand(i) != i + 1)
            give_up(BAD_RESULT, "a call gave a wrong result");
    return status;
}

int main(int argc, char **argv)
{
    if (argc != 2)
        give_up(2, "usage: grandchild STATUS");
    limit_life();
    pid_t child = fork();
    if (child == 0) {
        limit_life();
        _exit(live((int)number(argv[1])));
    }
    if (child < 0)
        give_up(BAD_SYSCALL, "fork");
    say("child=%d", child);
    say("ready");
    int status;
    if (waitpid(child, &status, 0) != child)
        give_up(BAD_SYSCALL, "waitpid: %s", strerror(errno));
    say("status=%d", WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status));
    return 0;
}
