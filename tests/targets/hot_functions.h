/* The probed functions: each begins with one instruction of interest, takes a long, and
 * keeps every register but rax; all but probed_rip keep the flags too. */
#ifndef UBPX_TARGETS_HOT_FUNCTIONS_H
#define UBPX_TARGETS_HOT_FUNCTIONS_H

#include "common.h"

unsigned long rip_counter;
long rip_value = 8;
void indirect_helper(void);
void (*indirect_table[1])(void) = {indirect_helper};

/* rax = the return address on the stack minus the right one: 0; flags are kept. */
#define RETURN_CHECK(name, next)                                                           \
    FUNCTION(name, "push %rdx\n lea " #next "(%rip), %rdx\n not %rdx\n mov 8(%rsp), %rax\n"  \
                   "lea 1(%rax,%rdx), %rax\n pop %rdx\n ret")

RETURN_CHECK(call_helper, probed_call_next);
RETURN_CHECK(indirect_helper, probed_indirect_next);

/* The pushed value is compared with rbp. */
FUNCTION(probed_push, "push %rbp\n mov (%rsp), %rax\n not %rbp\n lea 1(%rax,%rbp), %rax\n"
                      "lea 3(%rdi,%rax), %rax\n pop %rbp\n ret");
FUNCTION(probed_nop, "nopl 0(%rax,%rax,1)\n lea 4(%rdi), %rax\n ret");
FUNCTION(probed_endbr, "endbr64\n lea 10(%rdi), %rax\n ret");
FUNCTION(probed_lea, "lea 1(%rdi), %rax\n ret");
FUNCTION(probed_rip, "lock incq rip_counter(%rip)\n lea 5(%rdi), %rax\n ret");
FUNCTION(probed_load, "mov rip_value(%rip), %rax\n lea (%rax,%rdi), %rax\n ret");
FUNCTION(probed_call, "call call_helper\nprobed_call_next: lea 6(%rdi,%rax), %rax\n ret");
FUNCTION(probed_indirect, "call *indirect_table(%rip)\nprobed_indirect_next: lea 7(%rdi,%rax), %rax\n ret");
FUNCTION(probed_jcc, "jle 1f\n lea 11(%rdi), %rax\n ret\n1: lea 12(%rdi), %rax\n ret");
FUNCTION(probed_jmp, "jmp 1f\n ud2\n1: lea 13(%rdi), %rax\n ret");
FUNCTION(probed_pushf, "pushfq\n pop %rax\n ret");
FUNCTION(probed_popf, "pushfq\n jmp probed_popf_itself");
FUNCTION(probed_popf_itself, "popfq\n lea 14(%rdi), %rax\n ret");
/* Never called. */
FUNCTION(refused_hlt, "hlt\n ret");
/* In the middle of a leaf function: what lies below the stack pointer is the program's. */
FUNCTION(redzone_entry, "mov %rdi, -8(%rsp)\n mov %rdi, -128(%rsp)");
CONTINUATION(probed_redzone, "lea 0(,%rdi,2), %rax\n not %rax\n add -8(%rsp), %rax\n add -128(%rsp), %rax\n"
                             "lea 16(%rdi,%rax), %rax\n ret");

long probed_push(long), probed_nop(long), probed_endbr(long), probed_lea(long), probed_rip(long);
long probed_load(long), probed_call(long), probed_indirect(long), probed_jcc(long), probed_jmp(long);
long probed_pushf(long), probed_popf(long), redzone_entry(long);

enum { CARRY = 1, PARITY = 4, ADJUST = 0x10, ZERO = 0x40, SIGN = 0x80, OVERFLOW = 0x800 };
enum { STATUS_FLAGS = CARRY | PARITY | ADJUST | ZERO | SIGN | OVERFLOW, ALWAYS = 0x202 };

struct probed {
    const char *name; /* of the symbol to probe */
    long (*function)(long);
    long added;
    bool keeps_flags;
};

static const struct probed all_probed[] = {
    {"probed_push", probed_push, 3, true},
    {"probed_nop", probed_nop, 4, true},
    {"probed_endbr", probed_endbr, 10, true},
    {"probed_lea", probed_lea, 1, true},
    {"probed_rip", probed_rip, 5, false},
    {"probed_load", probed_load, 8, true},
    {"probed_call", probed_call, 6, true},
    {"probed_indirect", probed_indirect, 7, true},
    {"probed_jcc", probed_jcc, 11, true},
    {"probed_jmp", probed_jmp, 13, true},
    {"probed_pushf", probed_pushf, 0, true},
    {"probed_popf_itself", probed_popf, 14, true},
    {"probed_redzone", redzone_entry, 15, false},
};

static inline const struct probed *find_probed(const char *name)
{
    for (size_t i = 0; i < sizeof all_probed / sizeof *all_probed; i++)
        if (strcmp(all_probed[i].name, name) == 0)
            return &all_probed[i];
    give_up(2, "no probed function %s", name);
    return NULL;
}

/* Registers around one call: flags going in and out, then what the others held afterwards. */
struct observed {
    unsigned long flags, rcx, rdx, rsi, r8, r9, r10, r11, rbp, r12;
};

long call_observed(long (*function)(long), long argument, struct observed *observed);

/* Every register holds argument + its own number during the call. */
FUNCTION(call_observed,
         "push %rbx\n push %rbp\n push %r12\n"
         "mov %rdx, %rbx\n mov %rdi, %rax\n mov %rsi, %rdi\n"
         "lea 1(%rdi), %rcx\n lea 2(%rdi), %rdx\n lea 3(%rdi), %rsi\n lea 4(%rdi), %r8\n"
         "lea 5(%rdi), %r9\n lea 6(%rdi), %r10\n lea 7(%rdi), %r11\n lea 8(%rdi), %rbp\n"
         "lea 9(%rdi), %r12\n"
         "pushq (%rbx)\n popfq\n call *%rax\n pushfq\n popq (%rbx)\n"
         "mov %rcx, 8(%rbx)\n mov %rdx, 16(%rbx)\n mov %rsi, 24(%rbx)\n mov %r8, 32(%rbx)\n"
         "mov %r9, 40(%rbx)\n mov %r10, 48(%rbx)\n mov %r11, 56(%rbx)\n mov %rbp, 64(%rbx)\n"
         "mov %r12, 72(%rbx)\n"
         "pop %r12\n pop %rbp\n pop %rbx\n ret");

static inline long right_result(const struct probed *probed, long argument, unsigned long flags)
{
    if (probed->function == probed_pushf)
        return (long)flags;
    bool less_or_equal = (flags & ZERO) || !(flags & SIGN) != !(flags & OVERFLOW);
    return argument + probed->added + (probed->function == probed_jcc && less_or_equal);
}

/* One call with all that can be seen of it checked. */
static inline void call_and_check(const struct probed *probed, long argument)
{
    unsigned long flags = (((unsigned long)argument * 0x9e3779b97f4a7c15UL >> 40) & STATUS_FLAGS) | ALWAYS;
    struct observed seen = {.flags = flags};
    long result = call_observed(probed->function, argument, &seen);
    if (result != right_result(probed, argument, flags))
        give_up(BAD_RESULT, "%s(%ld) with flags %#lx gave %#lx", probed->name, argument, flags, result);
    if (seen.flags != flags && (probed->keeps_flags || (seen.flags & ~(unsigned long)STATUS_FLAGS) != ALWAYS))
        give_up(BAD_RESULT, "%s changed flags from %#lx to %#lx", probed->name, flags, seen.flags);
    const unsigned long *word = &seen.rcx;
    for (long i = 0; i < 9; i++)
        if (word[i] != (unsigned long)(argument + 1 + i))
            give_up(BAD_RESULT, "%s changed register %ld to %#lx", probed->name, i, word[i]);
}

#endif
