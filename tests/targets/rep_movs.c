/* rep_movs CALLS: repeated string instructions as probed symbols; one arrival is one hit,
 * whatever rcx is. Protocol: "ready", byte, "calls=N" (of each), byte, exit 0. */
#include "common.h"

enum { SIZE = 300 };

FUNCTION(probed_rep_movs, "rep movsb\n mov %rcx, %rax\n ret");
FUNCTION(rep_stos_entry, "mov %rsi, %rax");
CONTINUATION(probed_rep_stos, "rep stosb\n mov %rcx, %rax\n ret");
FUNCTION(probed_rep_cmps, "repe cmpsb\n mov %rcx, %rax\n ret");

/* rdi, rsi, (rdx), rcx */
long probed_rep_movs(void *to, const void *from, long unused, long size);
long rep_stos_entry(void *to, long byte, long unused, long size);
long probed_rep_cmps(const void *left, const void *right, long unused, long size);

static unsigned char from[SIZE], to[SIZE];

static void check(bool right, const char *what, long size)
{
    if (!right)
        give_up(BAD_RESULT, "%s of %ld bytes went wrong", what, size);
}

static void one_round(long size)
{
    memset(to, 0xee, SIZE);
    check(probed_rep_movs(to, from, 0, size) == 0, "movs", size);
    check(memcmp(to, from, size) == 0 && (size == SIZE || to[size] == 0xee), "movs", size);
    long same = size / 2;
    to[same] ^= 0xff;
    long left = probed_rep_cmps(to, from, 0, size);
    check(left == (size == 0 ? 0 : size - same - 1), "cmps", size);
    check(rep_stos_entry(to, 0x5a, 0, size) == 0, "stos", size);
    for (long i = 0; i < size; i++)
        check(to[i] == 0x5a, "stos", size);
}

int main(int argc, char **argv)
{
    if (argc != 2)
        give_up(2, "usage: rep_movs CALLS");
    limit_life();
    long calls = number(argv[1]);
    for (int i = 0; i < SIZE; i++)
        from[i] = (unsigned char)(7 * i + 1);
    say("ready");
    await_byte();
    for (long i = 0; i < calls; i++)
        one_round(i * 37 % SIZE);
    say("calls=%ld", calls);
    await_byte();
    return 0;
}
