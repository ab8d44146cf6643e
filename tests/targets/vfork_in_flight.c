/* vfork_in_flight: its leader waits in vfork for a child that calls a probed function a second later.
 * Protocol: "ready", then by itself "child=N" (its exit status, -1 if it was killed), byte, exit 0. */
#include "common.h"
#include <sys/wait.h>
#include <time.h>

__attribute__((noinline)) int probed_late(int value)
{
    __asm__ volatile("nop");
    return value + 1;
}

int main(void)
{
    limit_life();
    say("ready");
    pid_t child = vfork();
    if (child == 0) {
        struct timespec one_s = {.tv_sec = 1};
        nanosleep(&one_s, NULL);
        _exit(probed_late(2));
    }
    int status;
    waitpid(child, &status, 0);
    say("child=%d", WIFEXITED(status) ? WEXITSTATUS(status) : -1);
    probed_late(1);
    await_byte();
    return 0;
}
