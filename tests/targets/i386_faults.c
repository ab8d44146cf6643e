/* i386_faults SORT TIMES: a probed instruction faults; the handler verifies that the fault is shown at the program's
 * own address with every register as it was, puts the cause right, and the instruction runs again.
 * SORT: load, store, divide. For -m32.
 * Protocol: "ready", byte, "arrivals=2*TIMES", byte, exit 0. */
#include "common.h"
#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>

enum { BAD_ADDRESS = 0x10, PAGE = 4096 };

static char fault_page[PAGE] __attribute__((aligned(PAGE)));
static long good = 7777;

/* ecx: the first argument, a number or the place for the store; edx: the second; esi, edi: edx + 1 and 2. */
#define PATTERN "push %esi\n push %edi\n mov 12(%esp), %ecx\n mov 16(%esp), %edx\n lea 1(%edx), %esi\n lea 2(%edx), %edi\n"
FUNCTION(load_entry, PATTERN);
CONTINUATION(probed_fault_load, "mov (%ecx), %eax\n pop %edi\n pop %esi\n ret");
FUNCTION(store_entry, PATTERN);
CONTINUATION(probed_fault_store, "mov %edx, (%ecx)\n mov %edx, %eax\n pop %edi\n pop %esi\n ret");
FUNCTION(divide_entry, PATTERN "mov %edx, %eax\n cltd");
CONTINUATION(probed_fault_divide, "idiv %ecx\n pop %edi\n pop %esi\n ret");
long load_entry(long, long), store_entry(long, long), divide_entry(long, long);
extern const char probed_fault_load[], probed_fault_store[], probed_fault_divide[];

static const struct sort {
    const char *name;
    long (*entry)(long, long);
    const char *probed;
    int signal, code;
} sorts[] = {
    {"load", load_entry, probed_fault_load, SIGSEGV, SEGV_MAPERR},
    {"store", store_entry, probed_fault_store, SIGSEGV, SEGV_ACCERR},
    {"divide", divide_entry, probed_fault_divide, SIGFPE, FPE_INTDIV},
};
static const struct sort *sort;
static unsigned long faults;

static long cause(void)
{
    return sort->entry == load_entry ? BAD_ADDRESS : sort->entry == store_entry ? (long)fault_page : 0;
}

static const void *expected_address(void)
{
    return sort->signal == SIGFPE ? sort->probed : (const void *)cause();
}

static void on_fault(int number, siginfo_t *info, void *context)
{
    greg_t *regs = ((ucontext_t *)context)->uc_mcontext.gregs;
    long seed = regs[REG_ESI] - 1;
    faults++;
    if (number != sort->signal || info->si_code != sort->code)
        give_up(BAD_RESULT, "signal %d with code %d", number, info->si_code);
    if (regs[REG_EIP] != (greg_t)sort->probed)
        give_up(BAD_RESULT, "eip %#x is not the instruction's %p", regs[REG_EIP], sort->probed);
    if (info->si_addr != expected_address())
        give_up(BAD_RESULT, "si_addr %p is not %p", info->si_addr, expected_address());
    if (regs[REG_ECX] != cause() || regs[REG_EDI] != seed + 2 || seed < 1 || regs[REG_EFL] & 0x100)
        give_up(BAD_RESULT, "registers have changed");
    if (sort->entry == load_entry)
        regs[REG_ECX] = (greg_t)&good;
    else if (sort->entry == divide_entry)
        regs[REG_ECX] = 1;
    else if (mprotect(fault_page, PAGE, PROT_READ | PROT_WRITE))
        give_up(BAD_SYSCALL, "mprotect");
}

int main(int argc, char **argv)
{
    if (argc != 3)
        give_up(2, "usage: i386_faults SORT TIMES");
    for (size_t i = 0; i < sizeof sorts / sizeof *sorts; i++)
        if (strcmp(sorts[i].name, argv[1]) == 0)
            sort = &sorts[i];
    if (!sort)
        give_up(2, "no sort %s", argv[1]);
    long times = number(argv[2]);
    limit_life();
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO};
    if (sigaction(sort->signal, &action, NULL))
        give_up(BAD_SYSCALL, "sigaction: %s", strerror(errno));
    say("ready");
    await_byte();
    for (long i = 1; i <= times; i++) {
        if (sort->entry == store_entry && mprotect(fault_page, PAGE, PROT_READ))
            give_up(BAD_SYSCALL, "mprotect");
        long result = sort->entry(cause(), i), right = sort->entry == load_entry ? good : i;
        if (result != right)
            give_up(BAD_RESULT, "%s %ld gave %ld", sort->name, i, result);
    }
    say("arrivals=%lu", faults + times);
    await_byte();
    return 0;
}
