/* alone TIMES: one thread that calls six probed functions in turn, TIMES each, again and again.
 * Protocol: "ready"; byte "g": "calls=N", all calls up to now; byte "q": exit 0. */
#include "common.h"

FUNCTION(probed_a, "lea 1(%rdi), %rax\n ret");
FUNCTION(probed_b, "lea 1(%rdi), %rax\n ret");
FUNCTION(probed_c, "lea 1(%rdi), %rax\n ret");
FUNCTION(probed_d, "lea 1(%rdi), %rax\n ret");
FUNCTION(probed_e, "nopl 8(%rax)\n lea 1(%rdi), %rax\n ret");
FUNCTION(probed_f, "push %rbp\n lea 1(%rdi), %rax\n pop %rbp\n ret");
long probed_a(long), probed_b(long), probed_c(long), probed_d(long), probed_e(long), probed_f(long);

static long (*const function[])(long) = {probed_a, probed_b, probed_c, probed_d, probed_e, probed_f};
enum { FUNCTIONS = sizeof function / sizeof *function };

int main(int argc, char **argv)
{
    if (argc != 2)
        give_up(2, "usage: alone TIMES");
    limit_life();
    long times = number(argv[1]), calls = 0;
    say("ready");
    while (await_byte() == 'g') {
        for (long i = 0; i < times; i++)
            for (int f = 0; f < FUNCTIONS; f++, calls++)
                if (function[f](calls) != calls + 1)
                    give_up(BAD_RESULT, "function %d gave a wrong result", f);
        say("calls=%ld", calls);
    }
    return 0;
}
