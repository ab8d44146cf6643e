/* hard WHAT TIMES: instructions that show a probe if anything does; each is called TIMES times, alone, and its
 * result looked at. Protocol: "ready", byte, "calls=N", byte, exit 0.
 *   syscall   rcx is the next address, r11 the flags, without TF
 *   flags     popf with any flags that a program may change, ID included; pushf shows them again
 *   x87       the address of the last floating-point instruction (fnstenv) is the program's
 *   ss        mov ss
 *   stepping  the program steps itself over probed instructions: one trap behind each
 *   setting   popf sets TF: the next instruction ends in a trap
 *   repeat    rep movsb of a quarter of a megabyte, while a timer's signals strike
 *   restart   read that waits, and that the kernel begins again behind each signal's handler
 *   eintr     the same without SA_RESTART: the program calls again
 *   ignored   nanosleep, while ignored signals strike
 *   jumps     read that waits, left by siglongjmp out of the handler
 *   forks     fork by a probed system call
 *   clones    threads and a child that shares memory, by a probed system call
 *   sigreturn the end of a signal's handler is a probed system call
 *   exec, exit  by a probed system call; the program ends there
 *   refused   a seccomp filter's SIGSYS names the address behind the system call
 * The handlers call the probed system call too. "made=N" says how often it was called in all. */
#include "common.h"
#include <signal.h>
#include <linux/filter.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <setjmp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <time.h>
#include <ucontext.h>

enum { TRAP_FLAG = 0x100, LENGTH = 1 << 18 };

/* (number, first, second, third) -> rax; rcx and r11 behind it are kept. */
FUNCTION(make_syscall, "mov %rdi, %rax\n mov %rsi, %rdi\n mov %rdx, %rsi\n mov %rcx, %rdx");
CONTINUATION(probed_syscall, "syscall\nbehind_syscall: mov %rcx, seen_rcx(%rip)\n mov %r11, seen_r11(%rip)\n ret");
/* What a clone returns to: counts, and exits by itself alone. */
FUNCTION(newborn, "lock incq born(%rip)\n mov $60, %eax\n xor %edi, %edi\n syscall");
FUNCTION(restore, "mov $15, %eax");
CONTINUATION(probed_sigreturn, "syscall");
FUNCTION(set_flags, "push %rdi");
CONTINUATION(probed_popf, "popfq\n pushfq\n pop %rax\n push $0x202\n popfq\n ret");
FUNCTION(probed_fld, "fldpi\n fnstenv environment(%rip)\n fstp %st(0)\n ret");
FUNCTION(load_ss, "mov %ss, %eax\n mov $1, %ecx");
CONTINUATION(probed_ss, "mov %eax, %ss\n add $2, %ecx\n mov %ecx, %eax\n ret");
FUNCTION(copy, "mov %rdx, %rcx\n cld");
CONTINUATION(probed_rep, "rep movsb\n mov %rcx, %rax\n ret");
/* Each instruction between the two popf ends in a trap; so does the second popf. */
FUNCTION(stepped, "pushfq\n pushfq\n orq $0x100, (%rsp)\nsetting: popfq\n nop\nstepped_nop: nop\n lea 1(%rdi), %rax\n"
                  "stepped_push: push %rax\nstepped_pop: pop %rcx\nstepped_call: call stepped_called\n"
                  "stepped_fld: fldz\n fstp %st(0)\n mov $39, %eax\nstepped_syscall: syscall\n lea 1(%rdi), %rax\n"
                  " push %rdi\n mov $4, %ecx\n lea sink(%rip), %rdi\nstepped_rep: rep stosb\n pop %rdi\n mov %ss, %ecx\n"
                  "stepped_ss: mov %ecx, %ss\n nop\n"
                  "stepped_last: popfq\nbehind_stepped: ret\nstepped_called: ret");
long make_syscall(long, ...), set_flags(long), load_ss(void), copy(void *, void *, long), stepped(long);
void newborn(void), restore(void);
atomic_ulong born;
void probed_fld(void), behind_syscall(void), behind_stepped(void);
unsigned long seen_rcx, seen_r11;
struct { unsigned control[3], ip, cs, dp, ds; } __attribute__((packed)) environment;
/* Behind the system call there is none, nor behind mov ss; of the rep there is one behind each iteration. */
enum { STEPPED_INSNS = 22 };

extern char __executable_start, etext;

static volatile unsigned long alarms, made, traps, last_trap;
static volatile bool jumping;
static sigjmp_buf away;
static char source[LENGTH];
char sink[LENGTH];

static void check(bool right, const char *what, unsigned long value)
{
    if (!right)
        give_up(BAD_RESULT, "%s: %#lx", what, value);
}

static void do_syscall(void)
{
    made++;
    check(make_syscall(SYS_getppid) == getppid(), "getppid", 0);
    check(seen_rcx == (unsigned long)behind_syscall, "rcx", seen_rcx);
    check(!(seen_r11 & TRAP_FLAG) && (seen_r11 & 0x202) == 0x202, "r11", seen_r11);
}

static void do_flags(void)
{
    static const unsigned long tried[] = {0, 0x8d5, 0xcd7, 0x4202, 0x240202, 0x200202, 0x8d5, 0x200000};
    for (size_t i = 0; i < sizeof tried / sizeof *tried; i++) {
        unsigned long wanted = (tried[i] & ~0x102ul) | 0x202, found = set_flags(tried[i]);
        check(found == wanted, "flags", found);
    }
}

static void do_x87(void)
{
    probed_fld();
    check(environment.ip == (unsigned)(unsigned long)probed_fld, "FIP", environment.ip);
}

static void do_ss(void)
{
    check(load_ss() == 3, "mov ss", 0);
}

static void on_trap(int signal, siginfo_t *info, void *context)
{
    unsigned long rip = ((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP];
    check(signal == SIGTRAP && info->si_code == TRAP_TRACE, "code", info->si_code);
    check((unsigned long)info->si_addr == rip, "si_addr", (unsigned long)info->si_addr);
    check(rip > (unsigned long)stepped && rip <= (unsigned long)behind_stepped + 1, "trap", rip);
    traps++;
    last_trap = rip;
}

static void do_stepping(void)
{
    unsigned long before = traps;
    check(stepped(4) == 5, "rax", 0);
    check(traps - before == STEPPED_INSNS, "traps", traps - before);
    check(last_trap == (unsigned long)behind_stepped, "last trap", last_trap);
}

/* Slots are near the program; what is mapped elsewhere lies at most 1 TiB, and the stack's gap, below the end. */
static const unsigned long LIBRARIES = 0x7e0000000000ul;

static void on_alarm(int signal, siginfo_t *info, void *context)
{
    unsigned long rip = ((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP];
    bool in_program = rip >= (unsigned long)&__executable_start && rip < (unsigned long)&etext;
    check(signal == SIGUSR1 && info != NULL, "signal", signal);
    check(in_program || rip > LIBRARIES, "rip of the frame", rip);
    alarms++;
    made++;
    make_syscall(SYS_getppid);
    if (jumping)
        siglongjmp(away, 1);
}

/* From now on this signal strikes so often, in microseconds; 0: no more. */
static void strike(int signal, long every_us)
{
    static timer_t timer;
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = signal};
    struct itimerspec often = {{0, every_us * 1000}, {0, every_us * 1000}};
    if (every_us && timer_create(CLOCK_MONOTONIC, &event, &timer))
        give_up(BAD_SYSCALL, "timer_create");
    if (every_us ? timer_settime(timer, 0, &often, NULL) : timer_delete(timer))
        give_up(BAD_SYSCALL, "timer_settime");
}

/* Wait three milliseconds in a read by the probed system call; its result. */
static long read_timer(void)
{
    static int timer = -1;
    static unsigned long expired;
    struct itimerspec soon = {{0, 0}, {0, 3000000}};
    if (timer < 0)
        timer = timerfd_create(CLOCK_MONOTONIC, 0);
    timerfd_settime(timer, 0, &soon, NULL);
    long result;
    do {
        made++;
        result = make_syscall(SYS_read, (long)timer, &expired, sizeof expired);
    } while (result == -EINTR);
    return result;
}

static void do_read(void)
{
    check(read_timer() == 8, "read", 0);
}

static void do_ignored(void)
{
    static struct timespec pause = {0, 3000000};
    made++;
    check(make_syscall(SYS_nanosleep, &pause, NULL) == 0, "nanosleep", 0);
    check(read_timer() == 8, "read", 0);
}

static void do_jumps(void)
{
    if (sigsetjmp(away, 1) == 0) {
        jumping = true;
        read_timer();
    }
    jumping = false;
}

static void do_repeat(void)
{
    memset(sink, 0, sizeof sink);
    check(copy(sink, source, LENGTH) == 0, "rcx", 0);
    check(memcmp(sink, source, LENGTH) == 0, "copy", 0);
}

static void do_forks(void)
{
    made++;
    pid_t pid = (pid_t)make_syscall(SYS_fork);
    if (pid == 0)
        _exit(seen_rcx == (unsigned long)behind_syscall ? 7 : 8);
    reap(pid, 7 << 8, "fork");
    check(seen_rcx == (unsigned long)behind_syscall, "rcx", seen_rcx);
}

static void do_clones(void)
{
    static unsigned long stack[2][1024] __attribute__((aligned(16)));
    static const long sort[] = {
        CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM,
        CLONE_VM | CLONE_VFORK | SIGCHLD,
    };
    for (int i = 0; i < 2; i++) {
        unsigned long before = born;
        stack[i][1023] = (unsigned long)newborn;
        made++;
        long child = make_syscall(SYS_clone, sort[i], &stack[i][1023], NULL);
        check(child > 0, "clone", child);
        check(seen_rcx == (unsigned long)behind_syscall, "rcx", seen_rcx);
        if (i == 1)
            reap((pid_t)child, 0, "clone");
        for (int waits = 0; born == before; waits++, usleep(1000))
            check(waits < 20000, "born", born);
        usleep(1000); /* the thread leaves its stack */
    }
}

struct kernel_action { void (*handler)(int, siginfo_t *, void *); unsigned long flags; void (*restorer)(void); unsigned long mask; };

static volatile unsigned long handled;

static void on_return(int signal, siginfo_t *info, void *context)
{
    check(signal == SIGUSR2 && info != NULL && context != NULL, "signal", signal);
    handled++;
}

static void do_sigreturn(void)
{
    struct kernel_action action = {on_return, SA_SIGINFO | 0x04000000, restore, 0};
    if (handled == 0 && syscall(SYS_rt_sigaction, SIGUSR2, &action, NULL, 8))
        give_up(BAD_SYSCALL, "rt_sigaction");
    unsigned long before = handled;
    raise(SIGUSR2);
    check(handled == before + 1, "handled", handled);
}

static void do_exec(void)
{
    char *argv[] = {"true", NULL};
    made++;
    make_syscall(SYS_execve, "/bin/true", argv, environ);
}

static void do_exit(void)
{
    made++;
    make_syscall(SYS_exit_group, 17L);
}

static volatile unsigned long refusals;

static void on_refusal(int signal, siginfo_t *info, void *context)
{
    unsigned long rip = ((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP];
    check(signal == SIGSYS && info->si_syscall == SYS_getpriority, "SIGSYS", info->si_syscall);
    check(info->si_call_addr == (void *)behind_syscall, "si_call_addr", (unsigned long)info->si_call_addr);
    check(rip == (unsigned long)behind_syscall, "rip", rip);
    refusals++;
}

static void do_refused(void)
{
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_getpriority, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof filter / sizeof *filter, filter};
    struct sigaction action = {.sa_sigaction = on_refusal, .sa_flags = SA_SIGINFO};
    if (refusals == 0) {
        sigaction(SIGSYS, &action, NULL);
        if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program))
            give_up(BAD_SYSCALL, "prctl");
    }
    unsigned long before = refusals;
    made++;
    make_syscall(SYS_getpriority, 0L, 0L);
    check(refusals == before + 1, "refusals", refusals);
}

static const struct { const char *name; void (*run)(void); } all[] = {
    {"syscall", do_syscall}, {"flags", do_flags},  {"x87", do_x87},     {"ss", do_ss},
    {"stepping", do_stepping}, {"repeat", do_repeat}, {"restart", do_read}, {"eintr", do_read},
    {"ignored", do_ignored}, {"jumps", do_jumps}, {"forks", do_forks}, {"refused", do_refused},
    {"clones", do_clones}, {"sigreturn", do_sigreturn}, {"exec", do_exec}, {"exit", do_exit},
};

int main(int argc, char **argv)
{
    struct sigaction trap = {.sa_sigaction = on_trap, .sa_flags = SA_SIGINFO};
    struct sigaction alarm = {.sa_sigaction = on_alarm, .sa_flags = SA_SIGINFO | SA_RESTART};
    void (*run)(void) = NULL;
    if (argc != 3)
        give_up(2, "usage: hard WHAT TIMES");
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (!strcmp(all[i].name, argv[1]))
            run = all[i].run;
    if (run == NULL)
        give_up(2, "there is no %s", argv[1]);
    limit_life();
    memset(source, 7, sizeof source);
    sigaction(SIGTRAP, &trap, NULL);
    if (!strcmp(argv[1], "eintr"))
        alarm.sa_flags = SA_SIGINFO;
    sigaction(SIGUSR1, &alarm, NULL);
    unsigned long times = number(argv[2]);
    say("ready");
    await_byte();
    bool struck = run == do_repeat || run == do_read || run == do_ignored || run == do_jumps;
    if (struck)
        strike(run == do_ignored ? SIGURG : SIGUSR1, 700);
    for (unsigned long i = 0; i < times; i++)
        run();
    if (struck)
        strike(0, 0);
    say("calls=%lu", times);
    say("alarms=%lu", alarms);
    say("made=%lu", made);
    await_byte();
    return 0;
}
