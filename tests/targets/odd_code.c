/* Code that is never run: instructions of every class in one function, for the tools that read code.
 * The second function holds what the disassemblers disagree about, where every processor agrees with one of them. */
__asm__(
    ".text\n"
    ".globl every_class\n"
    ".type every_class, @function\n"
    "every_class:\n"
    "1:\n"
#ifdef __x86_64__
    "  endbr64; nopw 0x100(%rax,%rax); nopl 0x77665544(%rip)\n"
    "  push %rbp; push %r12; push %rsp; push $1; push $0x11223344; pop %r12; pop %rsp; leave\n"
    "  mov 1b(%rip), %rax; lea 1b(%rip), %rdi; shll %cl, 1b(%rip); cmpxchg16b 1b(%rip); incl 1b(%rip)\n"
    "  movl $0x11223344, 1b(%rip); vmovups 1b(%rip), %ymm0; andn 1b(%rip), %rax, %rdx; mulx 1b(%rip), %rax, %rdx\n"
    "  call *1b(%rip); call *%rax; jmp *1b(%rip); notrack jmp *%rax\n"
    "  movabs 0x1122334455667788, %rax; 3: jrcxz 3b; jecxz 3b; syscall\n"
#else
    "  endbr32; nopw 0x100(%eax,%eax)\n"
    "  push %ebp; push %esp; push $1; push $0x11223344; pop %esp; leave; pusha; popa; daa\n"
    "  call *%gs:0x10; call *%eax; jmp *%eax; notrack jmp *%eax; 3: jecxz 3b; call 2f; 2: pop %ebx; int $0x80; sysenter\n"
#endif
    "  jmp 1b; jne 1b; .byte 0x0f, 0x85; .long -6; .byte 0xe9; .long -5; call every_class\n"
    "  4: loop 4b; loopne 4b; 5: jmp 5b; jne 5b; je 6f; jmp 6f; 6:\n"
    "  pushf; popf; rep movsb; repne scasb; rep ret; ret $8; lock incl (%eax); xchg %ax, %ax; pause; rdtsc; cpuid\n"
    "  mov %eax, %ss; smsw %eax; sgdt (%eax); str %eax\n"
    "  idivl (%ecx); fwait; fldl (%eax); xbegin 1b; hlt; int3; ud2\n"
    "  ret\n"
    ".size every_class, . - every_class\n"
    ".globl odd_ones\n"
    ".type odd_ones, @function\n"
    "odd_ones:\n"
    "  .byte 0xdf, 0xc8\n"             /* fxch, an alias */
    "  .byte 0x0f, 0x1c, 0xc0\n"       /* a wide nop */
    "  .byte 0x0f, 0xb9, 0xc0\n"       /* ud1 with its ModRM byte */
    "  .byte 0x66, 0x0f, 0x81, 0, 0, 0, 0\n" /* jno with an operand-size prefix */
    "  ret\n"
    ".size odd_ones, . - odd_ones\n");

int main(void)
{
    return 0;
}
