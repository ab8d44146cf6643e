/* own_trap TIMES [CALLERS]: the program's own int3, raise(SIGTRAP) and trap flag, with a SIGTRAP handler
 * that tells them apart, while two, or so many, more threads call a probed function. What is at probed_flagged
 * runs with the trap flag set.
 * Protocol: "ready", byte, "traps=N", "calls=M", byte, exit 0. */
#include "common.h"
#include <signal.h>
#include <ucontext.h>

enum { MOST_CALLERS = 2, FROM_KERNEL = 0x80, TRAP_FLAG = 0x100, FLAGGED_INSNS = 4 };

FUNCTION(probed_beside, "lea 1(%rdi), %rax\n ret");
FUNCTION(own_int3, "int3\nbehind_int3: ret");
/* The trap flag stands for four instructions, the last being the popfq that clears it. */
FUNCTION(flagged, "pushfq\n pushfq\n orq $0x100, (%rsp)\n popfq\n nop\n"
    ".globl probed_flagged\n.type probed_flagged, @function\nprobed_flagged: lea 1(%rdi), %rax\n nop\n popfq\n"
    "behind_flagged: ret");
long probed_beside(long);
void own_int3(void), behind_int3(void), flagged(void), behind_flagged(void);

static atomic_bool over;
static atomic_ulong calls;
static volatile unsigned long int3s, raised, steps;

static void on_trap(int signal, siginfo_t *info, void *context)
{
    unsigned long rip = ((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP];
    if (info->si_code == FROM_KERNEL && rip == (unsigned long)behind_int3)
        int3s++;
    else if (info->si_code == SI_TKILL && info->si_pid == getpid())
        raised++;
    else if (info->si_code == TRAP_TRACE && (unsigned long)flagged < rip && rip <= (unsigned long)behind_flagged)
        steps++;
    else
        give_up(BAD_RESULT, "signal %d, code %d at %#lx is not ours", signal, info->si_code, rip);
}

static void *caller(void *unused)
{
    for (long i = 0; !over; i++, calls++)
        if (probed_beside(i) != i + 1)
            give_up(BAD_RESULT, "a call gave a wrong result");
    return unused;
}

int main(int argc, char **argv)
{
    struct sigaction action = {.sa_sigaction = on_trap, .sa_flags = SA_SIGINFO};
    pthread_t thread[MOST_CALLERS];
    if (argc < 2 || argc > 3)
        give_up(2, "usage: own_trap TIMES [CALLERS]");
    limit_life();
    unsigned long times = number(argv[1]), callers = argc > 2 ? number(argv[2]) : MOST_CALLERS;
    if (callers > MOST_CALLERS)
        give_up(2, "at most %d callers", MOST_CALLERS);
    sigaction(SIGTRAP, &action, NULL);
    say("ready");
    await_byte();
    for (unsigned long i = 0; i < callers; i++)
        start_thread(&thread[i], caller, NULL);
    for (unsigned long i = 0; i < times; i++) {
        own_int3();
        raise(SIGTRAP);
        flagged();
        if (probed_beside(5) != 6)
            give_up(BAD_RESULT, "a call gave a wrong result");
        calls++;
    }
    over = true;
    for (unsigned long i = 0; i < callers; i++)
        pthread_join(thread[i], NULL);
    if (int3s != times || raised != times || steps != FLAGGED_INSNS * times)
        give_up(BAD_RESULT, "%lu int3, %lu raised, %lu steps", int3s, raised, steps);
    say("traps=%lu", int3s + raised + steps);
    say("calls=%lu", calls);
    await_byte();
    return 0;
}
