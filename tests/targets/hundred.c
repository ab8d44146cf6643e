/* hundred [hot]: 100 threads under load; some call a probed function without pause, the others wait
 * in system calls whose results are checked. Bytes: 'p' prints "progress=N" (one counter per
 * kind of thread, the least of them), 'q' ends with exit 0. Exit 3: an unexpected errno.
 * hot: all but the leader call the probed functions. */
#include "common.h"
#include <linux/futex.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <time.h>

enum { THREADS = 100, CALLERS = 12, KINDS = 6 };
enum kind { CALL, SLEEP, FUTEX, EPOLL, READ, WRITE };

FUNCTION(hot, "lea 1(%rdi), %rax\n ret");
FUNCTION(warm, "push %rbp\n mov %rsp, %rbp\n lea 2(%rdi), %rax\n pop %rbp\n ret");
long hot(long), warm(long);

static atomic_bool over;
static bool all_call;
static atomic_ulong progress[KINDS];
static int pipe_of[2];

static void check(bool right, const char *what, long result)
{
    if (!right)
        give_up(BAD_SYSCALL, "%s returned %ld: %s", what, result, strerror(errno));
}

static void call(long i)
{
    for (int n = 0; n < 100; n++, i++)
        if (hot(i) != i + 1 || warm(i) != i + 2)
            give_up(BAD_RESULT, "a call gave a wrong result");
}

static void wait_on_futex(void)
{
    int word = 1;
    struct timespec two_ms = {.tv_nsec = 2000000};
    long result = syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 1, &two_ms, NULL, 0);
    check(result == -1 && errno == ETIMEDOUT, "futex", result);
}

static void one_turn(enum kind kind, long turn, int events)
{
    struct timespec one_ms = {.tv_nsec = 1000000};
    struct epoll_event event;
    char byte = 'x';
    switch (kind) {
    case CALL:
        call(turn);
        if (all_call) /* on few processors nobody else would have a turn */
            check(nanosleep(&one_ms, NULL) == 0, "nanosleep", -1);
        break;
    case SLEEP:
        check(nanosleep(&one_ms, NULL) == 0, "nanosleep", -1);
        break;
    case FUTEX:
        wait_on_futex();
        break;
    case EPOLL: {
        int result = epoll_wait(events, &event, 1, 3);
        check(result == 0, "epoll_wait", result);
        break;
    }
    case READ: {
        long result = read(pipe_of[0], &byte, 1);
        check(result == 1 && byte == 'x', "read", result);
        break;
    }
    case WRITE: {
        for (int i = 0; i < 8; i++) {
            long result = write(pipe_of[1], &byte, 1);
            check(result == 1, "write", result);
        }
        check(nanosleep(&one_ms, NULL) == 0, "nanosleep", -1);
        break;
    }
    }
}

static enum kind kind_of(long index)
{
    if (all_call || index < CALLERS)
        return CALL;
    return index == CALLERS ? WRITE : SLEEP + index % 4;
}

static void *work(void *index)
{
    enum kind kind = kind_of((long)index);
    int events = epoll_create1(EPOLL_CLOEXEC);
    check(events >= 0, "epoll_create1", events);
    for (long turn = 0; !over; turn++) {
        one_turn(kind, turn, events);
        progress[kind]++;
    }
    return NULL;
}

int main(int argc, char **argv)
{
    limit_life();
    all_call = argc == 2 && strcmp(argv[1], "hot") == 0;
    if (pipe(pipe_of))
        give_up(BAD_SYSCALL, "pipe");
    static pthread_t thread[THREADS];
    for (long i = 0; i < THREADS - 1; i++)
        start_thread(&thread[i], work, (void *)i);
    struct timespec pause = {.tv_nsec = 20000000};
    nanosleep(&pause, NULL);
    say("ready");
    for (int order; (order = await_byte()) != 'q';) {
        unsigned long least = progress[0];
        for (int kind = 1; kind < KINDS && !all_call; kind++)
            least = progress[kind] < least ? progress[kind] : least;
        if (order == 'p')
            say("progress=%lu", least);
    }
    over = true;
    for (long i = 0; i < 4 * THREADS; i++)
        check(all_call || write(pipe_of[1], "x", 1) == 1, "last write", 0);
    for (long i = 0; i < THREADS - 1; i++)
        pthread_join(thread[i], NULL);
    say("done");
    return 0;
}
