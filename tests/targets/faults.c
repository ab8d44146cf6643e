/* faults SORT TIMES: a probed instruction faults; the handler verifies that the fault is shown
 * at the program's own address with every register as it was, puts the cause right, and the
 * instruction runs again. SORT: load, store, divide.
 * Protocol: "ready", byte, "arrivals=2*TIMES", byte, exit 0. */
#include "common.h"
#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>

enum { BAD_ADDRESS = 0x10, PAGE = 4096 };

static struct { long value; char rest[PAGE - 8]; } fault_page __attribute__((aligned(PAGE), used));
static long good = 7777;
static unsigned long faults;

/* rcx, rdx.. hold rdi + their number, so that a borrowed register shows. */
#define PATTERN "lea 1(%rdi), %rcx\n lea 3(%rdi), %r8\n lea 4(%rdi), %r9\n lea 5(%rdi), %r10\n lea 6(%rdi), %r11\n"
FUNCTION(load_entry, PATTERN);
CONTINUATION(probed_fault_load, "mov (%rsi), %rax\n ret");
FUNCTION(store_entry, PATTERN);
CONTINUATION(probed_fault_store, "mov %rcx, fault_page(%rip)\n mov %rcx, %rax\n ret");
FUNCTION(divide_entry, PATTERN "mov %rdi, %rax\n cqo");
CONTINUATION(probed_fault_divide, "idiv %rsi\n ret");
long load_entry(long, long), store_entry(long, long), divide_entry(long, long);
long probed_fault_load(long), probed_fault_store(long), probed_fault_divide(long);

static const struct sort {
    const char *name;
    long (*entry)(long, long);
    long (*probed)(long);
    long cause;
    int signal, code;
} sorts[] = {
    {"load", load_entry, probed_fault_load, BAD_ADDRESS, SIGSEGV, SEGV_MAPERR},
    {"store", store_entry, probed_fault_store, 0, SIGSEGV, SEGV_ACCERR},
    {"divide", divide_entry, probed_fault_divide, 0, SIGFPE, FPE_INTDIV},
};
static const struct sort *sort;

static void *expected_address(void)
{
    if (sort->signal == SIGFPE)
        return (void *)sort->probed;
    return sort->entry == store_entry ? (void *)&fault_page : (void *)BAD_ADDRESS;
}

static void put_right(greg_t *regs)
{
    if (sort->entry == load_entry)
        regs[REG_RSI] = (greg_t)&good;
    else if (sort->entry == divide_entry)
        regs[REG_RSI] = 1;
    else if (mprotect(&fault_page, PAGE, PROT_READ | PROT_WRITE))
        give_up(BAD_SYSCALL, "mprotect");
}

static void on_fault(int signal, siginfo_t *info, void *context)
{
    greg_t *regs = ((ucontext_t *)context)->uc_mcontext.gregs;
    greg_t argument = regs[REG_RDI];
    if (signal != sort->signal || info->si_code != sort->code)
        give_up(BAD_RESULT, "signal %d with code %d", signal, info->si_code);
    if (regs[REG_RIP] != (greg_t)sort->probed)
        give_up(BAD_RESULT, "%s faults at %#llx, not %p", sort->name, regs[REG_RIP], (void *)sort->probed);
    if (info->si_addr != expected_address())
        give_up(BAD_RESULT, "%s: si_addr is %p, not %p", sort->name, info->si_addr, expected_address());
    const int numbered[] = {REG_RCX, 1, REG_R8, 3, REG_R9, 4, REG_R10, 5, REG_R11, 6};
    for (int i = 0; i < 10; i += 2)
        if (regs[numbered[i]] != argument + numbered[i + 1])
            give_up(BAD_RESULT, "%s: register %d is %#llx", sort->name, numbered[i], regs[numbered[i]]);
    if (regs[REG_EFL] & 0x100)
        give_up(BAD_RESULT, "%s: the trap flag shows", sort->name);
    faults++;
    put_right(regs);
}

static long right_result(long argument)
{
    if (sort->entry == load_entry)
        return good;
    return sort->entry == store_entry ? argument + 1 : argument;
}

int main(int argc, char **argv)
{
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO};
    if (argc != 3)
        give_up(2, "usage: faults SORT TIMES");
    for (int i = 0; i < 3; i++)
        if (strcmp(argv[1], sorts[i].name) == 0)
            sort = &sorts[i];
    if (!sort)
        give_up(2, "no fault of sort %s", argv[1]);
    limit_life();
    long times = number(argv[2]);
    if (sigaction(sort->signal, &action, NULL))
        give_up(BAD_SYSCALL, "sigaction");
    say("ready");
    await_byte();
    for (long i = 1; i <= times; i++) {
        if (mprotect(&fault_page, PAGE, PROT_NONE))
            give_up(BAD_SYSCALL, "mprotect");
        long result = sort->entry(i, sort->cause);
        if (result != right_result(i))
            give_up(BAD_RESULT, "%s gave %ld", sort->name, result);
    }
    if (faults != (unsigned long)times)
        give_up(BAD_RESULT, "%lu faults in %ld calls", faults, times);
    say("arrivals=%ld", 2 * times);
    await_byte();
    return 0;
}
