/* own_tracer: traces a child of its own; the child waits for ever. "child=PID" comes before "ready"; a byte
 * ends both. */
#include "common.h"
#include <signal.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/wait.h>

int main(void)
{
    limit_life();
    pid_t child = fork();
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        for (;;)
            pause();
    }
    if (child < 0 || ptrace(PTRACE_SEIZE, child, NULL, PTRACE_O_EXITKILL))
        give_up(BAD_SYSCALL, "cannot trace the child: %s", strerror(errno));
    say("child=%d", child);
    say("ready");
    await_byte();
    kill(child, SIGKILL);
    return waitpid(child, NULL, 0) == child ? 0 : BAD_SYSCALL;
}
