/* mover [FILE [OTHER]]: code in a page of its own that the program unmaps, moves, drops, protects and writes over.
 * "a" maps it without a file, writable; "f" maps FILE, "c" maps OTHER over it where it is; "l" maps 2 MB of it, of huge pages if
 * there are any; all say "at=ADDRESS". FILE is written by "F" first, OTHER (all int3) by "C".
 * "u" unmaps, "n" "x" "w" protect (nothing, r-x, rwx), "d" drops (MADV_DONTNEED), "m" moves ("at=ADDRESS"),
 * "t" truncates FILE: each says "done". What follows writes into the code, which must be writable:
 * "o" other code over it, each function with an int3 first;
 * "k" int3 everywhere, as freed code has; "i" another operand of value(); "b" the code again as it was;
 * "r" says "first=BYTE" of add_one() as the program reads it; "q": exit 0.
 * "g" calls each function ten times and says "calls=N" (all of each so far), then "traps=N" (its own SIGTRAPs so far). */
#include "common.h"
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <sys/mman.h>

enum { PAGE = 4096, HUGE_PAGE = 2 << 20, ADD_ONE = 0, PUSHER = 64, VALUE = 128 };

asm(".section .rodata\n.p2align 6\n"
    "code:\n lea 1(%rdi), %rax\n ret\n"
    ".p2align 6, 0x90\n push %rbp\n mov %rsp, %rbp\n lea 1(%rdi), %rax\n pop %rbp\n ret\n"
    ".p2align 6, 0x90\n mov $1, %eax\n add %rdi, %rax\n ret\n"
    ".p2align 6, 0x90\n"
    "other_code:\n int3\n lea 1(%rdi), %rax\n ret\n"
    ".p2align 6, 0x90\n int3\n lea 1(%rdi), %rax\n ret\n"
    ".p2align 6, 0x90\n int3\n mov $1, %eax\n add %rdi, %rax\n ret\n"
    ".p2align 6, 0x90\nend_of_code:\n.text\n");
extern const unsigned char code[], other_code[], end_of_code[];

static volatile sig_atomic_t traps;
static unsigned char *at;
static size_t size = PAGE;
static long operand = 1;

static void on_trap(int number)
{
    (void)number;
    traps++;
}

static void must(bool fine, const char *what)
{
    if (!fine)
        give_up(BAD_SYSCALL, "%s: %s", what, strerror(errno));
}

static void fill_file(const char *path, const unsigned char *bytes, size_t length, int filler)
{
    unsigned char page[PAGE];
    memset(page, filler, PAGE);
    memcpy(page, bytes, length);
    int file = open(path, O_RDWR | O_CREAT, 0600);
    must(file >= 0 && pwrite(file, page, PAGE, 0) == PAGE && ftruncate(file, PAGE) == 0 && close(file) == 0, path);
}

static void map(const char *path, int protection, unsigned char *where)
{
    int file = path ? open(path, O_RDONLY) : -1;
    must(!path || file >= 0, path);
    at = mmap(where, size, protection, MAP_PRIVATE | (where ? MAP_FIXED : 0) | (path ? 0 : MAP_ANONYMOUS), file, 0);
    must(at != MAP_FAILED, "mmap");
    if (path)
        close(file);
    else
        memcpy(at, code, other_code - code);
    say("at=%lu", (unsigned long)at);
}

static void map_huge(void)
{
    unsigned char *space = mmap(NULL, 2 * HUGE_PAGE, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    must(space != MAP_FAILED, "mmap");
    at = (unsigned char *)(((uintptr_t)space + HUGE_PAGE - 1) & -(uintptr_t)HUGE_PAGE);
    madvise(at, HUGE_PAGE, MADV_HUGEPAGE);
    memset(at, 0x90, HUGE_PAGE);
    memcpy(at, code, other_code - code);
    must(mprotect(at, HUGE_PAGE, PROT_READ | PROT_EXEC) == 0, "mprotect");
    say("at=%lu", (unsigned long)at);
}

static void protect(int protection)
{
    must(mprotect(at, size, protection) == 0, "mprotect");
    say("done");
}

static void move(void)
{
    unsigned char *there = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    must(there != MAP_FAILED, "mmap");
    at = mremap(at, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, there);
    must(at == there, "mremap");
    say("at=%lu", (unsigned long)at);
}

static void call_all(void)
{
    static long calls;
    for (long i = 0; i < 10; i++, calls++)
        for (int offset = ADD_ONE; offset <= VALUE; offset += PUSHER) {
            long expected = i + (offset == VALUE ? operand : 1);
            if (((long (*)(long))(at + offset))(i) != expected)
                give_up(BAD_RESULT, "the function at offset %d gave a wrong result", offset);
        }
    say("calls=%ld", calls);
    say("traps=%ld", (long)traps);
}

static void overwrite(int byte)
{
    const int with_operand = VALUE + 1;
    if (byte == 'o')
        memcpy(at, other_code, end_of_code - other_code);
    else if (byte == 'k')
        memset(at, 0xcc, PAGE);
    else if (byte == 'b')
        memcpy(at, code, other_code - code);
    else
        *(volatile unsigned char *)(at + with_operand) = operand = 5;
    say("done");
}

int main(int argc, char **argv)
{
    const char *file = argc > 1 ? argv[1] : NULL, *other = argc > 2 ? argv[2] : NULL;
    limit_life();
    must(signal(SIGTRAP, on_trap) != SIG_ERR, "signal");
    say("ready");
    for (int byte; (byte = await_byte()) != 'q';) {
        switch (byte) {
        case 'a': map(NULL, PROT_READ | PROT_WRITE | PROT_EXEC, NULL); break;
        case 'F': fill_file(file, code, other_code - code, 0x90); say("done"); break;
        case 'C': fill_file(other, code, 0, 0xcc); say("done"); break;
        case 'f': map(file, PROT_READ | PROT_EXEC, NULL); break;
        case 'c': map(other, PROT_READ | PROT_EXEC, at); break;
        case 'l': map_huge(); break;
        case 'u': must(munmap(at, size) == 0, "munmap"); say("done"); break;
        case 'n': protect(PROT_NONE); break;
        case 'x': protect(PROT_READ | PROT_EXEC); break;
        case 'w': protect(PROT_READ | PROT_WRITE | PROT_EXEC); break;
        case 'd': must(madvise(at, size, MADV_DONTNEED) == 0, "madvise"); say("done"); break;
        case 'm': move(); break;
        case 't': must(truncate(file, 0) == 0, "truncate"); say("done"); break;
        case 'g': call_all(); break;
        case 'r': say("first=%d", *(volatile unsigned char *)at); break;
        default: overwrite(byte);
        }
    }
    return 0;
}
