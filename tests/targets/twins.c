/* twins: two static functions of one name, in two files; waits for a byte. */
#include "common.h"

long other_twin(long);

static __attribute__((noinline, used)) long twin(long n)
{
    return n * 3 + 1;
}

int main(void)
{
    limit_life();
    say("ready");
    await_byte();
    say("sum=%ld", twin(1) + other_twin(1));
    return 0;
}
