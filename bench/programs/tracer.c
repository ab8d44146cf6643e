/* The yardsticks: tracers in C that do what one counted hit needs, and nothing else.
 *
 * tracer WAY PID ADDRESS LENGTH SLOT STUB OVER, the last five as target.c prints them:
 *   slot   one stop: int3; GETREGS, rip to the slot by POKEUSER, CONT
 *   step   two stops: int3; GETREGS, rip to the slot by SETREGS, SINGLESTEP; GETREGS, rip back by SETREGS, CONT
 *   stub   one stop: a jump to the stub, in which an int3 stands; GETREGS, CONT
 * It prints "armed", and counts; at OVER it takes out what it wrote, detaches and prints the hits as a JSON object. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

enum { JUMP_SIZE = 5, TRAP = 0xcc, JUMP = 0xe9 };

static void check(long result, const char *what)
{
    if (result >= 0)
        return;
    perror(what);
    exit(1);
}

struct patch {
    unsigned long address;
    unsigned char size, bytes[JUMP_SIZE], original[JUMP_SIZE];
};

static void write_patch(int memory, const struct patch *patch, const unsigned char *bytes)
{
    check(pwrite(memory, bytes, patch->size, (off_t)patch->address) == patch->size ? 0 : -1, "pwrite");
}

static void apply(int memory, struct patch *patch)
{
    check(pread(memory, patch->original, patch->size, (off_t)patch->address), "pread");
    write_patch(memory, patch, patch->bytes);
}

static void wait_trap(pid_t pid)
{
    int status;
    check(waitpid(pid, &status, __WALL), "waitpid");
    if (!WIFSTOPPED(status) || status >> 8 != SIGTRAP) {
        fprintf(stderr, "the program did something else: %#x\n", status);
        exit(1);
    }
}

static void set_registers(pid_t pid, struct user_regs_struct *regs, unsigned long rip)
{
    regs->rip = rip;
    check(ptrace(PTRACE_SETREGS, pid, NULL, regs), "SETREGS");
}

int main(int argc, char **argv)
{
    if (argc != 8)
        return 2;
    char way = argv[1][2]; /* slOt, stEp, stUb */
    pid_t pid = atoi(argv[2]);
    unsigned long value[5], hits = 0;
    for (int i = 0; i < 5; i++)
        value[i] = strtoul(argv[3 + i], NULL, 0);
    unsigned long address = value[0], length = value[1], slot = value[2], stub = value[3], over = value[4];
    unsigned long trap = way == 'u' ? stub + 1 : address + 1;
    struct patch place = {address, 1, {TRAP}, {0}}, last = {over, 1, {TRAP}, {0}};
    struct user_regs_struct regs;
    char path[64];
    if (way == 'u') {
        int distance = (int)(stub - (address + JUMP_SIZE));
        place.size = JUMP_SIZE;
        place.bytes[0] = JUMP;
        memcpy(place.bytes + 1, &distance, sizeof distance);
    }
    snprintf(path, sizeof path, "/proc/%d/mem", pid);
    int memory = open(path, O_RDWR | O_CLOEXEC);
    check(memory, path);
    check(ptrace(PTRACE_SEIZE, pid, NULL, NULL), "SEIZE");
    apply(memory, &place);
    apply(memory, &last);
    puts("armed");
    fflush(stdout);
    for (;; hits++) {
        wait_trap(pid);
        check(ptrace(PTRACE_GETREGS, pid, NULL, &regs), "GETREGS");
        if (regs.rip != trap)
            break;
        if (way == 'o') {
            check(ptrace(PTRACE_POKEUSER, pid, offsetof(struct user, regs.rip), slot), "POKEUSER");
        } else if (way == 'e') {
            set_registers(pid, &regs, slot);
            check(ptrace(PTRACE_SINGLESTEP, pid, NULL, NULL), "SINGLESTEP");
            wait_trap(pid);
            check(ptrace(PTRACE_GETREGS, pid, NULL, &regs), "GETREGS");
            set_registers(pid, &regs, address + length);
        }
        check(ptrace(PTRACE_CONT, pid, NULL, NULL), "CONT");
    }
    write_patch(memory, &place, place.original);
    write_patch(memory, &last, last.original);
    set_registers(pid, &regs, over);
    check(ptrace(PTRACE_DETACH, pid, NULL, NULL), "DETACH");
    printf("{\"hits\": %lu}\n", hits);
    return 0;
}
