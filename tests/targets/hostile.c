/* hostile SEED ROUNDS: does to itself, its probed code and whoever traces it what it can think of.
 * Protocol: "ready"; "g": ROUNDS random misdeeds, then "areas=N" (areas of others that it harmed) and
 * "survived=N" (calls that came back), if it lives; "q": exit 0.
 * It may die of what it does at any time. What it writes over code is made of bytes that form no system call. */
#include "common.h"
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/time.h>

enum { PAGE = 4096, MOST_AREAS = 16, FUNCTIONS = 4 };

asm(".text\n.p2align 12\n.globl victims\nvictims:\n");
ADD_ONE(probed_lea);
FUNCTION(probed_push, "push %rbp\n lea 1(%rdi), %rax\n pop %rbp\n ret");
FUNCTION(probed_call, "call probed_lea\n ret");
FUNCTION(probed_string, "mov %rdi, %rax\n lea scratch(%rip), %rsi\n lea scratch+64(%rip), %rdi\n mov $16, %ecx\n"
                        "probed_rep: rep movsb\n inc %rax\n ret");
asm(".p2align 12\n");
char scratch[128] __attribute__((visibility("hidden")));
extern unsigned char victims[];
long probed_lea(long), probed_push(long), probed_call(long), probed_string(long);
static long (*const functions[FUNCTIONS])(long) = {probed_lea, probed_push, probed_call, probed_string};

static struct area { unsigned char *start, *end; } areas[MOST_AREAS];
static int area_count;
static unsigned char original[PAGE];
static __thread sigjmp_buf guard;
static __thread volatile sig_atomic_t guarded;
static unsigned long state;
static long survived, harmed;

static unsigned long any(unsigned long below)
{
    state = state * 6364136223846793005UL + 1442695040888963407UL;
    return (state >> 33) % below;
}

static unsigned char any_code(void)
{
    static const unsigned char bytes[] = {0xcc, 0x90, 0xc3, 0xf4, 0x55, 0x5d, 0x48, 0x8b, 0x00, 0xc9, 0xeb, 0xfe,
                                          0xf3, 0xa4, 0x9d, 0x9c, 0xce, 0xf1};
    return bytes[any(sizeof bytes)];
}

static void on_signal(int number)
{
    if (guarded)
        siglongjmp(guard, 1);
    if (number != SIGTRAP && number != SIGALRM)
        _exit(64 + number);
}

/* Run something that may fault, or never end. */
static void attempt(void (*what)(unsigned long), unsigned long argument)
{
    struct itimerval soon = {.it_value.tv_usec = 20000}, never = {0};
    if (sigsetjmp(guard, 1) == 0) {
        guarded = 1;
        setitimer(ITIMER_REAL, &soon, NULL);
        what(argument);
        survived++;
    }
    guarded = 0;
    setitimer(ITIMER_REAL, &never, NULL);
}

static void call_some(unsigned long which)
{
    for (long i = 0; i < 10; i++)
        functions[which % FUNCTIONS](i);
}

static void jump_into_an_area(unsigned long at)
{
    ((long (*)(long))at)(1);
}

static void with_trap_flag(unsigned long which)
{
    asm volatile("pushf\n orl $0x100, (%%rsp)\n popf" ::: "memory", "cc");
    functions[which % FUNCTIONS](1);
}

static void with_a_bad_stack(unsigned long which)
{
    asm volatile("mov %0, %%rsp\n jmp *%1" ::"r"(any(2) ? 0x10UL : 0x7ffffffff000UL), "r"(functions[which % FUNCTIONS]));
}

/* Memory that we never mapped: without a name, executable. */
static void find_areas(void)
{
    static char text[1 << 16];
    int file = open("/proc/self/maps", O_RDONLY);
    ssize_t size = 0, got;
    while ((got = read(file, text + size, sizeof text - 1 - size)) > 0)
        size += got;
    close(file);
    text[size] = 0;
    area_count = 0;
    for (char *line = text; *line && area_count < MOST_AREAS; line = strchr(line, '\n') + 1) {
        unsigned long start, end, inode;
        char permissions[5];
        int length = 0;
        sscanf(line, "%lx-%lx %4s %*x %*x:%*x %lu%n", &start, &end, permissions, &inode, &length);
        if (permissions[2] == 'x' && inode == 0 && line[length + strspn(line + length, " ")] == '\n')
            areas[area_count++] = (struct area){(unsigned char *)start, (unsigned char *)end};
    }
}

static void harm_area(struct area *area)
{
    size_t size = area->end - area->start;
    harmed++;
    unsigned char byte = any_code();
    switch (any(6)) {
    case 0:
        munmap(area->start, any(2) ? size : PAGE);
        break;
    case 1:
        mmap(area->start, size, PROT_READ | PROT_WRITE, MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        break;
    case 2:
        mprotect(area->start, size, any(2) ? PROT_NONE : PROT_READ | PROT_EXEC);
        break;
    default:
        if (mprotect(area->start, size, PROT_READ | PROT_WRITE | PROT_EXEC) == 0)
            for (size_t i = 0; i < size; i++)
                if (any(3))
                    area->start[i] = any(2) ? any_code() : byte;
        if (any(2))
            mprotect(area->start, size, PROT_READ | PROT_EXEC);
    }
}

static void harm_code(void)
{
    unsigned char *function = (unsigned char *)functions[any(FUNCTIONS)];
    if (any(8) == 0) {
        madvise(victims, PAGE, MADV_DONTNEED);
        return;
    }
    mprotect(victims, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC);
    if (any(3) == 0)
        memcpy(victims, original, PAGE);
    else
        for (unsigned long i = any(3), size = any(8); i < size; i++)
            function[i] = any_code();
    if (any(2))
        mprotect(victims, PAGE, PROT_READ | PROT_EXEC);
}

static void *forge(void *thread)
{
    static const int codes[] = {0x80, 1, 2, 3, 4, -6, 0x10000};
    for (int i = 0; i < 50; i++) {
        siginfo_t info = {.si_signo = SIGTRAP, .si_code = codes[i % 7]};
        info.si_addr = (void *)functions[i % FUNCTIONS];
        syscall(SYS_rt_tgsigqueueinfo, getpid(), (pid_t)(intptr_t)thread, SIGTRAP, &info);
    }
    return NULL;
}

static void forge_traps(void)
{
    pthread_t thread;
    if (pthread_create(&thread, NULL, forge, (void *)(intptr_t)gettid()) == 0) {
        for (int i = 0; i < 20; i++)
            attempt(call_some, i);
        pthread_join(thread, NULL);
    }
}

static void fork_and_call(void)
{
    pid_t child = any(2) ? fork() : vfork();
    if (child == 0) {
        guarded = 0;
        signal(SIGALRM, SIG_DFL);
        alarm(1);
        functions[any(FUNCTIONS)](1);
        _exit(0);
    }
    if (child > 0)
        waitpid(child, NULL, 0);
}

static void misbehave(void)
{
    find_areas();
    struct area *area = area_count ? &areas[any(area_count)] : NULL;
    switch (any(10)) {
    case 0: case 1: if (area) harm_area(area); break;
    case 2: harm_code(); break;
    case 3: case 4: if (area) attempt(jump_into_an_area, (unsigned long)area->start + any(area->end - area->start)); break;
    case 5: attempt(with_trap_flag, any(FUNCTIONS)); break;
    case 6: attempt(with_a_bad_stack, any(FUNCTIONS)); break;
    case 7: forge_traps(); break;
    case 8: fork_and_call(); break;
    default: attempt(call_some, any(FUNCTIONS));
    }
}

int main(int argc, char **argv)
{
    if (argc != 3)
        give_up(2, "usage: hostile SEED ROUNDS");
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    state = number(argv[1]);
    memcpy(original, victims, PAGE);
    stack_t stack = {.ss_sp = malloc(1 << 16), .ss_size = 1 << 16};
    sigaltstack(&stack, NULL);
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_ONSTACK};
    for (const int *each = (int[]){SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP, SIGALRM, 0}; *each; each++)
        sigaction(*each, &action, NULL);
    say("ready");
    for (int byte; (byte = await_byte()) != 'q';)
        if (byte == 'g') {
            for (long round = number(argv[2]); round > 0; round--)
                misbehave();
            say("areas=%ld", harmed);
            say("survived=%ld", survived);
        }
    return 0;
}
