/* jumps SORT COUNT: handlers that are left by siglongjmp, and never return.
 *   fault  the probed load faults COUNT times; each time its handler jumps, and the same load then succeeds
 *   timer  a timer's handler jumps out of whatever runs, COUNT times, amid calls of a probed function
 * Protocol: "ready", byte, "calls=N" (those that came back), "jumps=M", byte, exit 0. */
#include "common.h"
#include <setjmp.h>
#include <signal.h>
#include <sys/time.h>

FUNCTION(probed_jump_load, "mov (%rdi), %rax\n ret");
ADD_ONE(probed_jump_lea);
FUNCTION(probed_jump_push, "push %rdi\n pop %rax\n lea 1(%rax), %rax\n ret");
long probed_jump_load(const long *), probed_jump_lea(long), probed_jump_push(long);

static sigjmp_buf back;
static volatile long calls, jumps, wanted;
static volatile sig_atomic_t may_jump;

static void jump(int number, siginfo_t *info, void *context)
{
    (void)context;
    if (number == SIGSEGV && info->si_addr != (void *)8)
        give_up(BAD_RESULT, "a fault at %p", info->si_addr);
    if (!may_jump)
        return;
    may_jump = 0;
    jumps++;
    siglongjmp(back, 1);
}

static void catch(int number)
{
    struct sigaction action = {.sa_sigaction = jump, .sa_flags = SA_SIGINFO};
    if (sigaction(number, &action, NULL))
        give_up(BAD_SYSCALL, "sigaction: %s", strerror(errno));
}

static void by_fault(void)
{
    catch(SIGSEGV);
    while (jumps < wanted) {
        if (sigsetjmp(back, 1) == 0) {
            may_jump = 1;
            probed_jump_load((long *)8);
            give_up(BAD_RESULT, "a fault was lost");
        }
        long value = jumps;
        if (probed_jump_load(&value) != value)
            give_up(BAD_RESULT, "a load gave a wrong result");
        calls++;
    }
}

static void by_timer(void)
{
    struct itimerval often = {{0, 300}, {0, 300}}, never = {{0, 0}, {0, 0}};
    catch(SIGALRM);
    sigsetjmp(back, 1);
    setitimer(ITIMER_REAL, &often, NULL);
    while (jumps < wanted) {
        may_jump = 1;
        long i = calls;
        if (probed_jump_lea(i) != i + 1 || probed_jump_push(i) != i + 1)
            give_up(BAD_RESULT, "a call gave a wrong result");
        may_jump = 0;
        calls++;
    }
    setitimer(ITIMER_REAL, &never, NULL);
}

int main(int argc, char **argv)
{
    if (argc != 3)
        give_up(2, "usage: jumps fault|timer COUNT");
    wanted = number(argv[2]);
    say("ready");
    await_byte();
    if (strcmp(argv[1], "fault") == 0)
        by_fault();
    else
        by_timer();
    say("calls=%ld", calls);
    say("jumps=%ld", jumps);
    await_byte();
    return 0;
}
