/* The floor: what no tracer can do without. floor PID ADDRESS HITS: attaches, and has the instruction at ADDRESS, a lea
 * of four bytes whose result the caller checks, replaced by int3 and a lea of three bytes that does the same for small
 * numbers: so a hit needs nothing but waitpid and CONT. Prints "armed", and after HITS hits puts all back, detaches and
 * ends. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

static const unsigned char expected[] = {0x48, 0x8d, 0x47, 0x01}; /* lea 1(%rdi), %rax */
static const unsigned char trapped[] = {0xcc, 0x8d, 0x47, 0x01};  /* int3; lea 1(%rdi), %eax */

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

int main(int argc, char **argv)
{
    if (argc != 4)
        return 2;
    pid_t pid = atoi(argv[1]);
    off_t address = (off_t)strtoul(argv[2], NULL, 0);
    long hits = atol(argv[3]);
    unsigned char found[sizeof expected];
    char path[64];
    int status;
    alarm(600);
    snprintf(path, sizeof path, "/proc/%d/mem", pid);
    int memory = open(path, O_RDWR | O_CLOEXEC);
    if (memory < 0 || pread(memory, found, sizeof found, address) != sizeof found)
        fail(path);
    if (memcmp(found, expected, sizeof expected))
        return 2;
    if (ptrace(PTRACE_SEIZE, pid, NULL, NULL) || pwrite(memory, trapped, sizeof trapped, address) < 0)
        fail("SEIZE");
    puts("armed");
    fflush(stdout);
    for (; hits > 0; hits--) {
        if (waitpid(-1, &status, __WALL) != pid || status >> 8 != SIGTRAP)
            fail("a stop of another kind");
        if (hits > 1 && ptrace(PTRACE_CONT, pid, NULL, NULL))
            fail("CONT");
    }
    if (pwrite(memory, expected, sizeof expected, address) < 0 || ptrace(PTRACE_DETACH, pid, NULL, NULL))
        fail("DETACH");
    return 0;
}
