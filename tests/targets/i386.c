/* i386 THREADS CALLS [FUNCTION]: each thread calls FUNCTION (default: every one) CALLS times and checks results,
 * registers and flags; a timer's signal checks meanwhile that the thread stands in code of the program's own.
 * Protocol: "ready", byte "g", "calls=N" (of each function) and "signals=N", again; byte "q": exit 0. For -m32. */
#include "common.h"
#include <signal.h>
#include <sys/time.h>
#include <ucontext.h>

#ifndef __i386__
#error "build it with -m32"
#endif

/* Each takes a long on the stack and keeps every register but eax. */
FUNCTION(probed_mov, "mov 4(%esp), %eax\n lea 1(%eax), %eax\n ret");
FUNCTION(probed_push, "push %ebp\n mov (%esp), %eax\n not %ebp\n lea 1(%eax,%ebp), %eax\n mov 8(%esp), %ebp\n"
                      "lea 3(%ebp,%eax), %eax\n pop %ebp\n ret");
FUNCTION(probed_push_esp, "push %esp\n pop %eax\n not %eax\n lea 1(%esp,%eax), %eax\n push %edx\n"
                          "mov 8(%esp), %edx\n lea 5(%edx,%eax), %eax\n pop %edx\n ret");
FUNCTION(probed_nop, "nopl 0(%eax,%eax,1)\n mov 4(%esp), %eax\n lea 4(%eax), %eax\n ret");
FUNCTION(probed_endbr, "endbr32\n mov 4(%esp), %eax\n lea 10(%eax), %eax\n ret");
FUNCTION(probed_jmp, "jmp 1f\n ud2\n1: mov 4(%esp), %eax\n lea 13(%eax), %eax\n ret");
FUNCTION(probed_jcc, "jle 1f\n mov 4(%esp), %eax\n lea 11(%eax), %eax\n ret\n"
                     "1: mov 4(%esp), %eax\n lea 12(%eax), %eax\n ret");
FUNCTION(probed_jecxz, "jecxz 1f\n mov 4(%esp), %eax\n lea 2(%eax), %eax\n ret\n1: ud2");
FUNCTION(probed_pusha, "pusha\n popa\n mov 4(%esp), %eax\n lea 6(%eax), %eax\n ret");
FUNCTION(inc_entry, "mov 4(%esp), %eax");
CONTINUATION(probed_inc, "inc %eax\n ret");
FUNCTION(leave_entry, "push %ebp\n mov %esp, %ebp\n mov 8(%ebp), %eax\n lea 7(%eax), %eax");
CONTINUATION(probed_leave, "leave\n ret");
/* What a function that returns a struct ends with. */
FUNCTION(ret_4_entry, "pushl 4(%esp)\n call ret_4_body\n ret");
FUNCTION(ret_4_body, "mov 4(%esp), %eax\n lea 9(%eax), %eax");
CONTINUATION(probed_ret_4, "ret $4");
FUNCTION(probed_pushf, "pushf\n pop %eax\n ret");
/* Where am I: the ways of position-independent code. */
FUNCTION(probed_pic, "call 1f\nprobed_pic_next:\n1: pop %eax\n ret");
FUNCTION(probed_thunk_call, "call probed_thunk\nprobed_thunk_call_next: ret");
FUNCTION(probed_thunk, "mov (%esp), %eax\n ret");
FUNCTION(indirect_entry, "call 1f\n1: pop %eax\n lea probed_thunk-1b(%eax), %eax");
CONTINUATION(probed_indirect, "call *%eax\nprobed_indirect_next: ret");
/* The system calls of libc: getpid, by the vdso's __kernel_vsyscall. */
FUNCTION(vsyscall_entry, "mov $20, %eax");
CONTINUATION(probed_vsyscall, "call *%gs:0x10\n ret");
FUNCTION(probed_gs, "mov %gs:0, %eax\n ret");

long probed_mov(long), probed_push(long), probed_push_esp(long), probed_nop(long), probed_endbr(long);
long probed_jmp(long), probed_jcc(long), probed_jecxz(long), probed_pusha(long), inc_entry(long), leave_entry(long);
long ret_4_entry(long), probed_pushf(long), probed_pic(long), probed_thunk_call(long), indirect_entry(long);
long vsyscall_entry(long), probed_gs(long);
extern const char probed_pic_next[], probed_thunk_call_next[], probed_indirect_next[];

enum { CARRY = 1, PARITY = 4, ADJUST = 0x10, ZERO = 0x40, SIGN = 0x80, OVERFLOW = 0x800 };
enum { STATUS_FLAGS = CARRY | PARITY | ADJUST | ZERO | SIGN | OVERFLOW, ALWAYS = 0x202 };
enum result { SUM, FLAGS, HERE, PID, SELF };

static const struct probed {
    const char *name; /* of the symbol to probe */
    long (*function)(long);
    enum result result;
    long added; /* SUM: to the argument; HERE: the address itself */
    bool changes_flags;
} all_probed[] = {
    {"probed_mov", probed_mov, SUM, 1, false},
    {"probed_push", probed_push, SUM, 3, false},
    {"probed_push_esp", probed_push_esp, SUM, 5, false},
    {"probed_nop", probed_nop, SUM, 4, false},
    {"probed_endbr", probed_endbr, SUM, 10, false},
    {"probed_jmp", probed_jmp, SUM, 13, false},
    {"probed_jcc", probed_jcc, SUM, 11, false},
    {"probed_jecxz", probed_jecxz, SUM, 2, false},
    {"probed_pusha", probed_pusha, SUM, 6, false},
    {"probed_inc", inc_entry, SUM, 1, true},
    {"probed_leave", leave_entry, SUM, 7, false},
    {"probed_ret_4", ret_4_entry, SUM, 9, false},
    {"probed_pushf", probed_pushf, FLAGS, 0, false},
    {"probed_pic", probed_pic, HERE, (long)probed_pic_next, false},
    {"probed_thunk_call", probed_thunk_call, HERE, (long)probed_thunk_call_next, false},
    {"probed_indirect", indirect_entry, HERE, (long)probed_indirect_next, false},
    {"probed_vsyscall", vsyscall_entry, PID, 0, false},
    {"probed_gs", probed_gs, SELF, 0, false},
};
enum { FUNCTIONS = sizeof all_probed / sizeof *all_probed };

/* Flags going in and out, then what the others held afterwards: the argument plus 1, 2, .. going in. */
struct observed {
    unsigned long flags, ecx, edx, ebx, esi, edi, ebp;
};

long call_observed(long (*function)(long), long argument, struct observed *observed);
FUNCTION(call_observed,
         "push %ebp\n push %ebx\n push %esi\n push %edi\n"
         "mov 20(%esp), %eax\n mov 24(%esp), %ecx\n mov 28(%esp), %edx\n"
         "push %edx\n push %ecx\n pushl (%edx)\n"
         "lea 2(%ecx), %edx\n lea 3(%ecx), %ebx\n lea 4(%ecx), %esi\n lea 5(%ecx), %edi\n lea 6(%ecx), %ebp\n"
         "lea 1(%ecx), %ecx\n"
         "popf\n call *%eax\n pushf\n push %eax\n mov 12(%esp), %eax\n"
         "mov %ecx, 4(%eax)\n mov %edx, 8(%eax)\n mov %ebx, 12(%eax)\n mov %esi, 16(%eax)\n"
         "mov %edi, 20(%eax)\n mov %ebp, 24(%eax)\n"
         "pop %edx\n pop %ecx\n mov %ecx, (%eax)\n add $8, %esp\n mov %edx, %eax\n"
         "pop %edi\n pop %esi\n pop %ebx\n pop %ebp\n ret");

static long right_result(const struct probed *probed, long argument, unsigned long flags)
{
    bool less_or_equal = (flags & ZERO) || !(flags & SIGN) != !(flags & OVERFLOW);
    switch (probed->result) {
    case FLAGS: return (long)flags;
    case HERE: return probed->added;
    case PID: return getpid();
    case SELF: return (long)pthread_self();
    default: return argument + probed->added + (probed->function == probed_jcc && less_or_equal);
    }
}

static void call_and_check(const struct probed *probed, long argument)
{
    unsigned long flags = ((unsigned long)argument * 0x9e3779b9UL >> 8 & STATUS_FLAGS) | ALWAYS;
    struct observed seen = {.flags = flags};
    long result = call_observed(probed->function, argument, &seen), right = right_result(probed, argument, flags);
    if (result != right)
        give_up(BAD_RESULT, "%s(%ld) with flags %#lx gave %#lx, not %#lx", probed->name, argument, flags, result, right);
    unsigned long changeable = probed->changes_flags ? STATUS_FLAGS : 0;
    if ((seen.flags ^ flags) & ~changeable)
        give_up(BAD_RESULT, "%s changed flags from %#lx to %#lx", probed->name, flags, seen.flags);
    const unsigned long *word = &seen.ecx;
    for (long i = 0; i < 6; i++)
        if (word[i] != (unsigned long)(argument + 1 + i))
            give_up(BAD_RESULT, "%s changed register %ld to %#lx", probed->name, i, word[i]);
}

/* Where the program has code before anybody is attached. */
enum { MOST_RANGES = 32 };
static struct { unsigned long start, end; } code[MOST_RANGES];
static int ranges;
static atomic_ulong signals;

static void read_code_ranges(void)
{
    char line[512], permissions[8];
    FILE *maps = fopen("/proc/self/maps", "r");
    if (!maps)
        give_up(BAD_SYSCALL, "maps: %s", strerror(errno));
    while (ranges < MOST_RANGES && fgets(line, sizeof line, maps))
        if (sscanf(line, "%lx-%lx %7s", &code[ranges].start, &code[ranges].end, permissions) == 3)
            ranges += permissions[2] == 'x';
    fclose(maps);
}

static void on_tick(int number, siginfo_t *info, void *context)
{
    (void)number, (void)info;
    unsigned long pc = ((ucontext_t *)context)->uc_mcontext.gregs[REG_EIP];
    for (int i = 0; i < ranges; i++)
        if (code[i].start <= pc && pc < code[i].end) {
            atomic_fetch_add(&signals, 1);
            return;
        }
    give_up(BAD_RESULT, "a signal shows eip %#lx, where the program has no code", pc);
}

static const char *chosen;
static pthread_barrier_t barrier;

static void *run(void *times)
{
    pthread_barrier_wait(&barrier);
    for (long i = 1; i <= (long)times; i++)
        for (int each = 0; each < FUNCTIONS; each++)
            if (!chosen || strcmp(chosen, all_probed[each].name) == 0)
                call_and_check(&all_probed[each], i * 16 + each);
    return NULL;
}

static void run_threads(long threads, long times)
{
    pthread_t ids[threads];
    pthread_barrier_init(&barrier, NULL, threads);
    for (long i = 0; i < threads; i++)
        start_thread(&ids[i], run, (void *)times);
    for (long i = 0; i < threads; i++)
        pthread_join(ids[i], NULL);
}

int main(int argc, char **argv)
{
    if (argc < 3)
        give_up(2, "usage: i386 THREADS CALLS [FUNCTION]");
    long threads = number(argv[1]);
    long calls = number(argv[2]);
    chosen = argc > 3 ? argv[3] : NULL;
    limit_life();
    read_code_ranges();
    struct sigaction action = {.sa_sigaction = on_tick, .sa_flags = SA_SIGINFO | SA_RESTART};
    struct itimerval ticks = {{0, 2000}, {0, 2000}};
    if (sigaction(SIGPROF, &action, NULL))
        give_up(BAD_SYSCALL, "sigaction: %s", strerror(errno));
    run_threads(threads, 0); /* their stacks stay mapped from now on */
    say("ready");
    while (await_byte() == 'g') {
        if (setitimer(ITIMER_PROF, &ticks, NULL))
            give_up(BAD_SYSCALL, "setitimer: %s", strerror(errno));
        run_threads(threads, calls);
        setitimer(ITIMER_PROF, &(struct itimerval){0}, NULL);
        say("calls=%ld", threads * calls);
        say("signals=%lu", atomic_load(&signals));
    }
    return 0;
}
