/* huge: runs a function in a huge page of anonymous memory. Prints "ready", "function=ADDRESS" (decimal) and, for each
 * byte of its standard input, "answer=N" of answer(1); "q": exit 0. */
#include "common.h"
#include <stdint.h>
#include <sys/mman.h>

enum { HUGE = 2 << 20 };
ADD_ONE(answer);
long answer(long);

int main(void)
{
    limit_life();
    char *room = mmap(NULL, 2 * HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (room == MAP_FAILED)
        give_up(BAD_SYSCALL, "mmap: %s", strerror(errno));
    char *page = (char *)(((uintptr_t)room + HUGE - 1) & -(uintptr_t)HUGE);
    madvise(page, HUGE, MADV_HUGEPAGE);
    memset(page, 0x90, HUGE);
    memcpy(page + 4096, (void *)answer, 16);
    if (mprotect(page, HUGE, PROT_READ | PROT_EXEC))
        give_up(BAD_SYSCALL, "mprotect: %s", strerror(errno));
    long (*copy)(long) = (long (*)(long))(uintptr_t)(page + 4096);
    say("ready");
    say("function=%lu", (unsigned long)(uintptr_t)copy);
    while (await_byte() != 'q')
        say("answer=%ld", copy(1));
    return 0;
}
