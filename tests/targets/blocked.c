/* blocked: waits for each byte of its standard input in a read by the probed system call, and prints "read=N", its
 * value; "q": exit 0. */
#include "common.h"

FUNCTION(read_by_syscall, "xor %eax, %eax");
CONTINUATION(probed_syscall, "syscall\n ret");
long read_by_syscall(int, char *, unsigned long);

int main(void)
{
    limit_life();
    say("ready");
    for (char byte = 0; byte != 'q';) {
        long got = read_by_syscall(0, &byte, 1);
        if (got != 1)
            give_up(BAD_SYSCALL, "read gave %ld", got);
        if (byte != 'q')
            say("read=%d", byte);
    }
    return 0;
}
