/* What a traced program runs if its tracer is killed and a thread meets a trap that was left behind.
 *
 * Compiled by tools/images.py to bytes that depend on no address (code.py); ubpx_ptracepp/guard/layout.py
 * describes the same memory. Rules: no library, no relocation, no state but `struct data`; every thread may
 * be here at once, and be interrupted here.
 */

#define _GNU_SOURCE
#include <signal.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <ucontext.h>

#define PAGE 4096
#define TRAP 0xcc
#define INT3 3                 /* the vector, in the frame's trapno */
#define TRAP_FLAG 0x100        /* eflags: step */
#define MOVED 0x10000          /* eflags, RF: the tracer has sent the thread on already */
#define STANDING (1ull << 63)
#define ROWS 1                 /* in the low bits of an area's size: what lies in it */
#define MANY_AREAS 128
#define MANY_TASKS 32
#define MANY_SIGNALS 64

#ifndef TRAP_HWBKPT
#define TRAP_HWBKPT 4
#endif

struct action {                /* the kernel's own sigaction */
    unsigned long handler, flags, restorer;
    uint64_t mask;
} __attribute__((packed));

struct data {                  /* the second page: readable and writable */
    struct action before;      /* the program's own */
    unsigned char room[PAGE - sizeof(struct action)];
};

struct area {
    uint64_t start, size;      /* whole pages, and in the low bits its kind */
};

struct task {                  /* a thread whose signals wait for the end of a step */
    uint64_t tid, mask, waiting;
};

struct list {                  /* the third page: read-only */
    uint64_t count;
    struct area areas[MANY_AREAS];
    struct task tasks[MANY_TASKS];
};

extern const unsigned char first[] __attribute__((visibility("hidden")));

/* The head: what the tracer finds without a symbol table; room for the action that it installs; and the gate, where
 * it has a thread make a system call that ends, tracer or no tracer, with the registers of the frame in the fourth
 * page. Until then the stack pointer is the thread's own: a signal may come. */

#define data ((struct data *)(first + PAGE))
#define list ((const struct list *)(first + 2 * PAGE))

#ifdef __x86_64__
#define PC REG_RIP
#include "system_call.h"
#define AT(offset) (long)(offset)
#define SYSTEM_CALL "syscall"
#define TO_FRAME "lea first + 3 * 4096(%rip), %rsp"
#define RETURN "15"
#else
#define PC REG_EIP
static long call(long number, long a, long b, long c, long d)
{
    long result;
    __asm__ volatile("int $0x80" : "=a"(result)
                     : "a"(number), "b"(a), "c"(b), "d"(c), "S"(d), "D"(0) : "memory");
    return result;
}
#define AT(offset) (long)(offset)  /* the upper half of a file's offset is in the fifth argument: 0 */
#define SYSTEM_CALL "int $0x80"
#define TO_FRAME "nop"         /* no frame is made for these programs */
#define RETURN "173"
#endif

__asm__(".section .head,\"ax\"\n"
        ".globl first\n.hidden first\n"
        "first:\n"
        "\t.ascii \"ubpx guard 1\\n\\0\\0\\0\"\n"
        "\t.long handler - first, gate - first, restorer - first, 0\n"
        "\t.fill 32\n"
        "gate:\n\t" SYSTEM_CALL "\n\t" TO_FRAME "\n"
        "restorer:\n\tmov $" RETURN ", %eax\n\t" SYSTEM_CALL "\n"
        "\t.text\n");

static uint64_t row_of(unsigned long address)
{
    for (uint64_t at = 0; at < list->count && at < MANY_AREAS; at++) {
        const struct area *area = &list->areas[at];
        if ((area->size & (PAGE - 1)) != ROWS)
            continue;
        const uint64_t *row = (const uint64_t *)(unsigned long)area->start;
        const uint64_t *end = (const uint64_t *)(unsigned long)(area->start + area->size - ROWS);
        for (; row < end && *row; row++)
            if ((unsigned long)((*row & ~STANDING) >> 8) == address)
                return *row;
    }
    return 0;
}

static int in_slot(unsigned long address)
{
    for (uint64_t at = 0; at < list->count && at < MANY_AREAS; at++) {
        const struct area *area = &list->areas[at];
        if ((area->size & (PAGE - 1)) == 0 && address - area->start < area->size)
            return 1;
    }
    return 0;
}

static void restore(int memory, uint64_t row)
{
    unsigned long address = (unsigned long)((row & ~STANDING) >> 8);
    unsigned char original = (unsigned char)row, found = 0;

    if (!(row & STANDING) || original == TRAP)
        return;
    if (memory >= 0) {
        if (call(SYS_pread64, memory, (long)&found, 1, AT(address)) != 1 || found != TRAP)
            return;
        if (call(SYS_pwrite64, memory, (long)&original, 1, AT(address)) == 1)
            return;
    }
    /* No way through protections: open the page. It stays open, another thread may be about to write too. */
    if (call(SYS_mprotect, (long)(address & ~(PAGE - 1ul)), PAGE, 7, 0) == 0 && *(unsigned char *)address == TRAP)
        *(unsigned char *)address = original;
}

static void restore_all(unsigned long hit)
{
    static const char path[] = "/proc/thread-self/mem";
    int memory = (int)call(SYS_openat, -100, (long)path, 02000002 /* O_RDWR | O_CLOEXEC */, 0);

    restore(memory, row_of(hit));
    if (memory < 0)
        return;                /* each at its own time */
    for (uint64_t at = 0; at < list->count && at < MANY_AREAS; at++) {
        const struct area *area = &list->areas[at];
        if ((area->size & (PAGE - 1)) != ROWS)
            continue;
        const uint64_t *row = (const uint64_t *)(unsigned long)area->start;
        const uint64_t *end = (const uint64_t *)(unsigned long)(area->start + area->size - ROWS);
        for (; row < end && *row; row++)
            restore(memory, *row);
    }
    call(SYS_close, memory, 0, 0, 0);
}

/* The tracer had kept signals back until this thread's step was done. */
static void give_back_signals(ucontext_t *context)
{
    long tid = call(SYS_gettid, 0, 0, 0, 0);

    for (int at = 0; at < MANY_TASKS; at++) {
        const struct task *task = &list->tasks[at];
        if ((long)task->tid != tid)
            continue;
        __builtin_memcpy(&context->uc_sigmask, &task->mask, sizeof task->mask);
        for (int number = 1; number <= MANY_SIGNALS; number++)
            if (task->waiting >> (number - 1) & 1)
                call(SYS_tgkill, call(SYS_getpid, 0, 0, 0, 0), tid, number, 0);
    }
}

/* Whether the signal was for the tracer that is no more, and all is put right. */
static int was_ours(const siginfo_t *info, ucontext_t *context)
{
    greg_t *registers = context->uc_mcontext.gregs;
    unsigned long pc = (unsigned long)registers[PC];
    int has_handler = data->before.handler > 1;

    if (info->si_code == TRAP_HWBKPT)
        return 1;              /* a watchpoint's: no program can set one itself */
    /* A step, or one over a system call. */
    if ((info->si_code == TRAP_TRACE || info->si_code == TRAP_BRKPT) && (in_slot(pc) || !has_handler)) {
        registers[REG_EFL] &= ~TRAP_FLAG;
        give_back_signals(context);
        return 1;
    }
    if (info->si_code != SI_KERNEL || registers[REG_TRAPNO] != INT3)
        return 0;
    if (registers[REG_EFL] & MOVED) {
        registers[REG_EFL] &= ~MOVED;
        return 1;
    }
    if (row_of(pc - 1)) {
        restore_all(pc - 1);
        registers[PC] = (greg_t)(pc - 1);
        return 1;
    }
    return in_slot(pc) || *(const unsigned char *)(pc - 1) != TRAP;
}

__attribute__((used)) void handler(int number, siginfo_t *info, void *context)
{
    static const struct action by_default = {0, 0, 0, 0};
    unsigned long before = data->before.handler;
    int sent = info->si_code <= 0;

    if (was_ours(info, context))
        return;
    if (before > 1) {
        if (data->before.flags & SA_RESETHAND)
            data->before.handler = 0;
        ((void (*)(int, siginfo_t *, void *))before)(number, info, context);
        return;
    }
    if (before == 1 && sent)
        return;
    /* The program dies of it, as it would have without us: of the same instruction once more, if it was one. */
    call(SYS_rt_sigaction, SIGTRAP, (long)&by_default, 0, 8);
    if (sent)
        call(SYS_tgkill, call(SYS_getpid, 0, 0, 0, 0), call(SYS_gettid, 0, 0, 0, 0), SIGTRAP, 0);
    else
        ((ucontext_t *)context)->uc_mcontext.gregs[PC] -= 1;
}
