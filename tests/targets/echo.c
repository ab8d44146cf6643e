/* echo [THREADS]: for each line "N" on standard input calls answer(N), which gives N + 1, and prints
 * "answer=..."; THREADS more threads call busy() all the time, a millisecond apart. "q": exit 0;
 * "x N": exit N. Also a place for probes that must be refused. */
#include "common.h"

ADD_ONE(answer);
ADD_ONE(busy);
FUNCTION(has_syscall, "mov $186, %eax");
CONTINUATION(probed_syscall, "syscall\n ret");
FUNCTION(refused_int3, "int3\n ret");
FUNCTION(refused_hlt, "hlt\n ret");
#ifdef __x86_64__
FUNCTION(long_insn, "movabs $0x1122334455667788, %rax\n ret");
#endif
long answer(long), busy(long);
long some_data = 42;

static atomic_bool over;

static void *keep_busy(void *unused)
{
    for (long i = 0; !over; i++) {
        if (busy(i) != i + 1)
            give_up(BAD_RESULT, "a call gave a wrong result");
        usleep(1000);
    }
    return unused;
}

static void read_line(char *line, size_t size)
{
    size_t used = 0;
    for (int byte; (byte = await_byte()) != '\n';)
        if (used + 1 < size)
            line[used++] = (char)byte;
    line[used] = 0;
}

int main(int argc, char **argv)
{
    char line[64];
    limit_life();
    long threads = argc > 1 ? number(argv[1]) : 0;
    pthread_t thread[threads + 1];
    for (long i = 0; i < threads; i++)
        start_thread(&thread[i], keep_busy, NULL);
    say("ready");
    int status = 0;
    for (;;) {
        read_line(line, sizeof line);
        if (line[0] == 'q')
            break;
        if (line[0] == 'x') {
            status = (int)number(line + 2);
            break;
        }
        say("answer=%ld", answer(number(line)));
    }
    over = true;
    for (long i = 0; i < threads; i++)
        pthread_join(thread[i], NULL);
    return status;
}
