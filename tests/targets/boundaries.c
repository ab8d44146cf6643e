/* boundaries: code whose instructions are hard to tell, each function with unwind data, so that a stripped copy is
 * as good. For each byte on standard input it calls what there is, checks the results, and says "called". */
#include "common.h"

#define UNWOUND(name, body) FUNCTION(name, ".cfi_startproc\n" body "\n.cfi_endproc")

int several;
unsigned long counter;
/* Skips the lock prefix as long as there are not several threads. */
UNWOUND(maybe_locked, "cmpl $0, several(%rip)\n je 1f\n .globl maybe_outer\nmaybe_outer: .byte 0xf0\n"
                      "1: incq counter(%rip)\n mov counter(%rip), %rax\n ret");
/* Reads a constant that stands between its instructions. */
UNWOUND(reads_amid, "mov 1f(%rip), %rax\n jmp 2f\n1: .quad 0x1122334455667788\n2: not %rax\n ret");
/* Jumps through a register into the last part, which no direct branch leads to. */
UNWOUND(computed, "mov %rdi, %rax\n lea 1f(%rip), %rcx\n jmp *%rcx\n .byte 0x06, 0x0e\n1: add $5, %rax\n ret");
asm(".p2align 4\nbetween: .quad 0x9090909090909090, 2\n");

long maybe_locked(void), reads_amid(void), computed(long);

__attribute__((noinline)) long by_case(long which)
{
    switch (which) {
    case 0: return getpid();
    case 1: return getppid() + 1;
    case 2: return which * 9;
    case 3: return maybe_locked() - which;
    case 4: return reads_amid();
    case 5: return (long)strlen(getenv("PATH"));
    default: return -which;
    }
}

int main(void)
{
    limit_life();
    say("ready");
    for (unsigned long calls = 0;; ) {
        several = await_byte() == 's';
        for (long which = 0; which < 8; which++)
            by_case(which);
        calls += 2;
        if (maybe_locked() != (long)calls || reads_amid() != ~0x1122334455667788 || computed(7) != 12)
            give_up(BAD_RESULT, "a call gave a wrong result");
        say("called");
    }
}
