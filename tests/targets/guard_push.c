/* guard_push TIMES: pushes and calls with the stack pointer at a guard page must fault as the
 * original would: at its own address, with nothing written and the stack pointer unmoved.
 * Every other time the stack is good and the instruction works.
 * Protocol: "ready", byte, "pushes=TIMES", byte, exit 0. */
#include "common.h"
#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>

enum { PAGE = 4096 };

/* on_stack(function, stack, argument): calls function with rsp = stack; -1 if it faulted. */
unsigned long saved_stack;
FUNCTION(on_stack, "push %rbx\n push %rbp\n push %r12\n mov %rsp, saved_stack(%rip)\n"
                   "mov %rsi, %rsp\n mov %rdx, %rbp\n jmp *%rdi\n"
                   "back: mov saved_stack(%rip), %rsp\n pop %r12\n pop %rbp\n pop %rbx\n ret");
FUNCTION(probed_guard_push, "push %rbp\n pop %rax\n jmp back");
FUNCTION(probed_guard_call, "call guard_helper\n jmp back");
FUNCTION(guard_helper, "mov %rbp, %rax\n ret");
long on_stack(void (*function)(void), void *stack, long argument);
void probed_guard_push(void), probed_guard_call(void), back(void);

static char *guard;
static void (*current)(void);
static unsigned long faults;

static void on_fault(int signal, siginfo_t *info, void *context)
{
    greg_t *regs = ((ucontext_t *)context)->uc_mcontext.gregs;
    if (regs[REG_RIP] != (greg_t)current)
        give_up(BAD_RESULT, "signal %d at %#llx, not %p", signal, regs[REG_RIP], (void *)current);
    if (regs[REG_RSP] != (greg_t)(guard + PAGE))
        give_up(BAD_RESULT, "the stack pointer moved to %#llx", regs[REG_RSP]);
    if (info->si_addr != guard + PAGE - 8 || info->si_code != SEGV_ACCERR)
        give_up(BAD_RESULT, "fault of %p, code %d", info->si_addr, info->si_code);
    faults++;
    regs[REG_RIP] = (greg_t)back;
    regs[REG_RAX] = -1;
}

static void run(void (*function)(void), bool good, long argument)
{
    current = function;
    long result = on_stack(function, guard + (good ? 2 * PAGE : PAGE), argument);
    if (result != (good ? argument : -1))
        give_up(BAD_RESULT, "result %ld with a %s stack", result, good ? "good" : "bad");
}

static void check_guard(void)
{
    if (mprotect(guard, PAGE, PROT_READ))
        give_up(BAD_SYSCALL, "mprotect");
    for (int i = 0; i < PAGE; i++)
        if (guard[i])
            give_up(BAD_RESULT, "the guard page was written at offset %d", i);
}

int main(int argc, char **argv)
{
    static char handler_stack[64 * 1024];
    stack_t other = {.ss_sp = handler_stack, .ss_size = sizeof handler_stack};
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    if (argc != 2)
        give_up(2, "usage: guard_push TIMES");
    limit_life();
    long times = number(argv[1]);
    guard = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (guard == MAP_FAILED || mprotect(guard, PAGE, PROT_NONE) || sigaltstack(&other, NULL))
        give_up(BAD_SYSCALL, "preparing");
    sigaction(SIGSEGV, &action, NULL);
    say("ready");
    await_byte();
    for (long i = 0; i < times; i++) {
        run(probed_guard_push, i % 2, i);
        run(probed_guard_call, i % 2, i);
    }
    if (faults != (unsigned long)((times + 1) / 2 * 2))
        give_up(BAD_RESULT, "%lu faults", faults);
    check_guard();
    say("pushes=%ld", times);
    await_byte();
    return 0;
}
