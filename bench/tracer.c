/* The yardstick: a tracer in C that does what one counted hit needs, and nothing else.
 *
 * tracer PID ADDRESS SLOT: attaches, writes int3 at ADDRESS, prints "armed"; for each hit:
 * waitpid(-1), GETREGS, rip to SLOT (a copy of the instruction and a jump back), SETREGS, CONT,
 * count. At SIGUSR1, when no more hits come, it takes the int3 out, detaches and prints
 * "hits=N". */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ptrace.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static void patch(int memory, unsigned long address, unsigned char byte)
{
    if (pwrite(memory, &byte, 1, (off_t)address) != 1)
        fail("cannot write the target's memory");
}

/* The end of a run is told by a signal, which wakes waitpid: the loop needs no poll. */
static volatile sig_atomic_t over;

static void on_end(int signal)
{
    (void)signal;
    over = 1;
}

static unsigned long serve(unsigned long address, unsigned long slot)
{
    struct user_regs_struct regs;
    unsigned long hits = 0;
    int status;
    while (!over) { /* a signal between here and waitpid would be missed: it is sent again */
        pid_t thread = waitpid(-1, &status, __WALL);
        if (thread < 0) {
            if (errno == EINTR)
                continue;
            fail("waitpid");
        }
        if (!WIFSTOPPED(status) || status >> 8 != SIGTRAP)
            fail("the target did something else");
        if (ptrace(PTRACE_GETREGS, thread, NULL, &regs))
            fail("GETREGS");
        if (regs.rip != address + 1)
            fail("a stop elsewhere");
        regs.rip = slot;
        if (ptrace(PTRACE_SETREGS, thread, NULL, &regs))
            fail("SETREGS");
        if (ptrace(PTRACE_CONT, thread, NULL, NULL))
            fail("CONT");
        hits++;
    }
    return hits;
}

int main(int argc, char **argv)
{
    if (argc != 4)
        return 2;
    pid_t pid = atoi(argv[1]);
    unsigned long address = strtoul(argv[2], NULL, 0), slot = strtoul(argv[3], NULL, 0);
    char path[64];
    unsigned char original;
    int status;
    struct sigaction action = {.sa_handler = on_end};
    sigaction(SIGUSR1, &action, NULL);
    alarm(600);
    snprintf(path, sizeof path, "/proc/%d/mem", pid);
    int memory = open(path, O_RDWR | O_CLOEXEC);
    if (memory < 0 || pread(memory, &original, 1, (off_t)address) != 1)
        fail(path);
    if (ptrace(PTRACE_SEIZE, pid, NULL, NULL))
        fail("SEIZE");
    patch(memory, address, 0xcc);
    puts("armed");
    fflush(stdout);
    unsigned long hits = serve(address, slot);
    patch(memory, address, original);
    if (ptrace(PTRACE_INTERRUPT, pid, NULL, NULL) || waitpid(pid, &status, __WALL) != pid)
        fail("INTERRUPT");
    if (ptrace(PTRACE_DETACH, pid, NULL, NULL))
        fail("DETACH");
    printf("hits=%lu\n", hits);
    return 0;
}
