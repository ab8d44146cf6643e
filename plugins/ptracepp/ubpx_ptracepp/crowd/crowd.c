/* Many threads at once: to ask them to stop, and which of them have, each by one call instead of some for each thread.
 *
 * Runs in the tracer itself. Compiled by tools/images.py to bytes that depend on no address (code.py); looking.py describes
 * the same memory. No library, no relocation, no state.
 */

#include <signal.h>
#include <stdint.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>

#define INTERRUPTED (PTRACE_EVENT_STOP << 8 | SIGTRAP)
#define PEEK (WEXITED | WSTOPPED | WNOHANG | WNOWAIT | __WALL | __WNOTHREAD)
#define FEW 8
#define RUNS 0
#define OTHER (1UL << 32)      /* something else, outside a system call: it is left to be looked at */
#define CONSUMED (2UL << 32)   /* with a status, which could be 0 */
#define AGAIN (4UL << 32)      /* with a status: its system call may have to be made to begin again (waiting.py) */
#define EINTR_RESULT ((uint32_t)-4)
#define RESTART_RESULT ((uint32_t)-514)
#define TRAP_FLAG 0x100

struct asked {
    uint64_t tid;
    uint64_t registers;        /* where its struct user_regs_struct is to be, once a stop is consumed; 0 then: it could not
                                * be had */
    uint64_t status;           /* as waitpid gives it, and CONSUMED, of a stop that was; or one of the above */
    uint64_t queued;           /* behind a stop: the signals in its own queue, a bit for each; all bits: nobody knows */
};

#include "system_call.h"

/* `ask` is 8 bytes behind `look` (looking.py, _ASK_AT). */
__asm__(".section .head,\"ax\"\n"
        ".globl first\n.hidden first\n"
        "first:\n\tjmp look\n\t.balign 8\n\tjmp ask\n"
        "\t.text\n");

static uint64_t queued_for(long tid)
{
    siginfo_t found[FEW];
    struct __ptrace_peeksiginfo_args few = {.off = 0, .flags = 0, .nr = FEW};
    long count = call(SYS_ptrace, PTRACE_PEEKSIGINFO, tid, (long)&few, (long)found);
    uint64_t signals = 0;

    if (count < 0 || count >= FEW)
        return ~0UL;
    for (long at = 0; at < count; at++)
        signals |= 1UL << ((found[at].si_signo - 1) & 63);
    return signals;
}

/* Whether its stop, not consumed yet, is the one that it was asked for; notes what it is instead. */
static int is_interruption(struct asked *thread)
{
    siginfo_t seen;

    seen.si_pid = 0;
    if (call(SYS_waitid, P_PID, (long)thread->tid, (long)&seen, PEEK) || !seen.si_pid)
        return 0;
    if (seen.si_code == CLD_TRAPPED && seen.si_status == INTERRUPTED)
        return 1;
    thread->status = OTHER;
    return 0;
}

static void look_at(struct asked *thread)
{
    struct user_regs_struct found; /* not the thread's yet: its handlers may run, with those at its arrival */
    uint64_t *registers = (uint64_t *)thread->registers;
    int fetched = !call(SYS_ptrace, PTRACE_GETREGS, (long)thread->tid, 0, (long)&found);
    int status = 0;

    /* In a system call no breakpoint is met, so that whatever it has stopped for may be consumed. */
    if (!(fetched && (long)found.orig_rax >= 0) && !is_interruption(thread))
        return;
    if (call(SYS_wait4, (long)thread->tid, (long)&status, WNOHANG | __WALL, 0) <= 0)
        return;
    thread->status = (unsigned)status | CONSUMED;
    if (!fetched) {
        thread->registers = 0;
        thread->queued = ~0UL;
        return;
    }
    for (unsigned at = 0; at < sizeof found / 8; at++)
        registers[at] = ((uint64_t *)&found)[at];
    uint32_t result = (uint32_t)found.rax;
    if (result == EINTR_RESULT || result == RESTART_RESULT)
        thread->status |= AGAIN;
    /* In a system call nothing but the call's own end raises a trap: where the program, or we (Arrivals), step over it or
     * watch what it writes. */
    thread->queued = (long)found.orig_rax < 0 || found.eflags & TRAP_FLAG ? queued_for((long)thread->tid) : 0;
}

/* The status of each is 0, or the kernel's error; how many have one. */
__attribute__((used)) long ask(struct asked *threads, long count)
{
    long failed = 0;

    for (long at = 0; at < count; at++) {
        threads[at].status = (uint64_t)call(SYS_ptrace, PTRACE_INTERRUPT, (long)threads[at].tid, 0, 0);
        failed += threads[at].status != 0;
    }
    return failed;
}

/* Until so many in a row run still. */
__attribute__((used)) void look(struct asked *threads, long count, long most_misses)
{
    long misses = 0;

    for (long at = 0; at < count && misses < most_misses; at++) {
        threads[at].status = RUNS;
        look_at(&threads[at]);
        misses = threads[at].status == RUNS ? misses + 1 : 0;
    }
}
