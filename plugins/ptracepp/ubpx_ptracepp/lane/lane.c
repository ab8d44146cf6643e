/* One turn of the tracer's fast lane: let a thread go on, wait for the next stop of anybody's, and if that is the
 * thread's at a trap that the tracer expects, send it on.
 *
 * Runs in the tracer itself, as one call instead of five, and as a function of Python's own. Compiled by tools/images.py to
 * bytes that depend on no address (code.py); turning.py describes the same memory. No library, no relocation, no state but
 * `struct turn`.
 */

#include <signal.h>
#include <stdint.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>

#define PAGE 4096
#define MANY_PLACES 4
#define OTHER (-1)             /* another stop, or none: it is left to be looked at */
#define UNEXPECTED (-2)        /* the thread's own trap elsewhere: its registers are fetched */
#define CLOSELY (-3)           /* and below: it has arrived at place CLOSELY - n, and is to be looked at more closely */
#define PEEK (WEXITED | WSTOPPED | WNOWAIT | __WALL | __WNOTHREAD)
#define RIP __builtin_offsetof(struct user_regs_struct, rip)
#define REGISTERS (sizeof(struct user_regs_struct) / 8)
#define FROM_KERNEL 0x80       /* SI_KERNEL */
#define TRAP_FLAG 0x100        /* the program steps itself */

enum { PC, HAS_RUN, SIGNAL };  /* the PC; that the thread has run, else the next; what the kernel says of the signal */

struct place {
    uint64_t reported;         /* the PC behind the trap */
    uint64_t landing;          /* where the thread goes on; 0: where it is */
    uint64_t proof;            /* that it is the trap: one of the following */
    uint64_t shown;            /* the PC as the program is to see it; 0: the tracer sees to that, and to its trap flag */
};

struct turn {                  /* the second page */
    void *(*save_thread)(void); /* PyEval_SaveThread: from here on other threads may run Python */
    void (*restore_thread)(void *); /* PyEval_RestoreThread */
    void *(*as_number)(long);  /* PyLong_FromLong */
    uint64_t go;               /* the request that lets the thread run */
    uint64_t stays;            /* no such request at the next turn: it runs, or its stop is to be seen once more */
    uint64_t patience;         /* so many more arrivals until one that is to be looked at more closely */
    uint64_t tid;
    uint64_t registers;        /* where its struct user_regs_struct is to be */
    uint64_t count;            /* so many places are expected */
    struct place places[MANY_PLACES];
    uint64_t arrived[REGISTERS]; /* its registers when it arrived last where it has to have run; 0: unknown */
    siginfo_t stop, trap;
};

extern unsigned char first[] __attribute__((visibility("hidden")));
#define turn ((struct turn *)(first + PAGE))

#include "system_call.h"

__asm__(".section .head,\"ax\"\n"
        ".globl first\n.hidden first\n"
        "first:\n\tjmp called\n"
        "\t.text\n");

/* A thread that has run since it arrived last has other registers; one that has not may have been sent a signal. */
static int has_run(const uint64_t *registers)
{
    uint64_t others = 0, known = turn->arrived[RIP / 8];

    for (unsigned at = 0; at < REGISTERS; at++) {
        others |= registers[at] ^ turn->arrived[at];
        turn->arrived[at] = registers[at];
    }
    return known && others;
}

static int is_breakpoint(uint64_t proof, const uint64_t *registers)
{
    if (proof == PC || (proof == HAS_RUN && has_run(registers)))
        return 1;
    turn->trap.si_code = 0;
    call(SYS_ptrace, PTRACE_GETSIGINFO, (long)turn->tid, 0, (long)&turn->trap);
    return turn->trap.si_code == FROM_KERNEL;
}

/* The number of the place where the thread has arrived, or one of the above. */
static long take_turn(void)
{
    struct user_regs_struct *registers = (struct user_regs_struct *)turn->registers;
    long failed;

    if (!turn->stays)
        call(SYS_ptrace, (long)turn->go, (long)turn->tid, 0, 0);
    turn->stays = 0;
    do
        failed = call(SYS_waitid, P_ALL, 0, (long)&turn->stop, PEEK);
    while (failed == -4 /* EINTR */);
    if (failed || turn->stop.si_pid != (int)turn->tid || turn->stop.si_status != SIGTRAP
        || turn->stop.si_code != CLD_TRAPPED)
        return OTHER;
    registers->rip = 0;
    call(SYS_ptrace, PTRACE_GETREGS, (long)turn->tid, 0, (long)registers);
    for (uint64_t number = 0; number < turn->count && number < MANY_PLACES; number++) {
        const struct place *place = &turn->places[number];
        if (place->reported != registers->rip || !is_breakpoint(place->proof, (const uint64_t *)registers))
            continue;
        if (place->landing)
            call(SYS_ptrace, PTRACE_POKEUSER, (long)turn->tid, RIP, (long)place->landing);
        if (!--turn->patience || (place->shown && registers->eflags & TRAP_FLAG))
            return CLOSELY - (long)number;
        if (place->shown)
            registers->rip = place->shown;
        return (long)number;
    }
    return UNEXPECTED;
}

/* A function without arguments, as Python calls it (METH_NOARGS), and its result. */
__attribute__((used)) void *called(void *self, void *nothing)
{
    void *thread = turn->save_thread();
    long result = take_turn();

    (void)self, (void)nothing;
    turn->restore_thread(thread);
    return turn->as_number(result);
}
