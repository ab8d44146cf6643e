/* alarms write|trap: writes to a counter, or runs into a trap of its own, all the time; and all the time SIGALRM comes,
 * whose handler takes its time, so that it often has interrupted what handles the traps.
 * It lives until it is told, or until nobody is there any more.
 * Protocol: "ready", "counter=ADDRESS", byte; byte: "rounds=N", exit 0. */
#include "common.h"
#include <poll.h>
#include <signal.h>
#include <sys/time.h>

enum { PERIOD_US = 400, SPINS = 20000 };

FUNCTION(own_int3, "int3\n ret");
FUNCTION(probed_idle, "lea 1(%rdi), %rax\n ret");
void own_int3(void);

static volatile long counter, traps;

static void on_alarm(int signal)
{
    (void)signal;
    for (volatile int spins = 0; spins < SPINS; spins++)
        ;
}

static void on_trap(int signal)
{
    (void)signal;
    traps++;
}

static bool is_told(void)
{
    struct pollfd input = {.fd = 0, .events = POLLIN};
    int found = poll(&input, 1, 0);
    if (found > 0 && input.revents & POLLHUP)
        give_up(LONELY, "standard input is closed");
    if (found < 0 && errno != EINTR)
        give_up(BAD_SYSCALL, "poll: %s", strerror(errno));
    return found > 0;
}

int main(int argc, char **argv)
{
    struct itimerval every = {{0, PERIOD_US}, {0, PERIOD_US}};
    struct sigaction alarmed = {.sa_handler = on_alarm, .sa_flags = SA_RESTART};
    struct sigaction trapped = {.sa_handler = on_trap, .sa_flags = SA_RESTART};
    if (argc != 2)
        give_up(2, "usage: alarms write|trap");
    bool has_traps = strcmp(argv[1], "trap") == 0;
    if (has_traps)
        sigaction(SIGTRAP, &trapped, NULL);
    say("ready");
    say("counter=%lu", (unsigned long)&counter);
    await_byte();
    sigaction(SIGALRM, &alarmed, NULL);
    setitimer(ITIMER_REAL, &every, NULL);
    long rounds = 0;
    for (; rounds % 64 || !is_told(); rounds++) {
        if (has_traps)
            own_int3();
        counter++;
    }
    if (counter != rounds || (has_traps && traps != rounds))
        give_up(BAD_RESULT, "%ld of %ld writes, %ld traps", counter, rounds, traps);
    say("rounds=%ld", rounds);
    return 0;
}
