/* soak THREADS SECONDS: threads call a hundred functions of five sorts in turn, with short pauses, and one makes
 * threads that do so once. It lives for SECONDS at most.
 * Protocol: "ready", byte (begin), byte (end), "calls=N" (of each function), byte, exit 0. */
#include "common.h"

/* Twenty functions of one sort: soak_SORT_00 to soak_SORT_43. Each takes a long and returns the next. */
#define EACH_OF_FOUR(make, sort, tens) make(sort, tens##0) make(sort, tens##1) make(sort, tens##2) make(sort, tens##3)
#define EACH_OF_TWENTY(make, sort)                                                                               \
    EACH_OF_FOUR(make, sort, 0) EACH_OF_FOUR(make, sort, 1) EACH_OF_FOUR(make, sort, 2) EACH_OF_FOUR(make, sort, 3) \
    EACH_OF_FOUR(make, sort, 4)
#define EACH(make)                                                                                               \
    EACH_OF_TWENTY(make, lea) EACH_OF_TWENTY(make, push) EACH_OF_TWENTY(make, nop) EACH_OF_TWENTY(make, mov)     \
    EACH_OF_TWENTY(make, jmp)

#define lea_BODY "lea 1(%rdi), %rax\n ret"
#define push_BODY "push %rbp\n lea 1(%rdi), %rax\n pop %rbp\n ret"
#define nop_BODY "nopl 0(%rax,%rax,1)\n lea 1(%rdi), %rax\n ret"
#define mov_BODY "mov %rdi, %rax\n inc %rax\n ret"
#define jmp_BODY "jmp 1f\n ud2\n1: lea 1(%rdi), %rax\n ret"
#define DEFINE(sort, number) FUNCTION(soak_##sort##_##number, sort##_BODY);
#define DECLARE(sort, number) long soak_##sort##_##number(long);
#define NAME(sort, number) soak_##sort##_##number,

EACH(DEFINE)
EACH(DECLARE)
static long (*const places[])(long) = {EACH(NAME)};
enum { PLACES = sizeof places / sizeof *places };

static atomic_bool started, over;
static atomic_ulong calls;

static void *call_all(void *unused)
{
    for (long i = 0; i < PLACES; i++)
        if (places[i](i) != i + 1)
            give_up(BAD_RESULT, "call %ld gave a wrong result", i);
    calls++;
    return unused;
}

static void *call_often(void *unused)
{
    while (!over) {
        if (started)
            call_all(NULL);
        usleep(20000);
    }
    return unused;
}

static void *make_threads(void *unused)
{
    while (!over) {
        pthread_t thread;
        if (started) {
            start_thread(&thread, call_all, NULL);
            pthread_join(thread, NULL);
        }
        usleep(100000);
    }
    return unused;
}

int main(int argc, char **argv)
{
    if (argc != 3)
        give_up(2, "usage: soak THREADS SECONDS");
    alarm((unsigned)number(argv[2]));
    long threads = number(argv[1]);
    pthread_t thread[threads + 1];
    for (long i = 0; i <= threads; i++)
        start_thread(&thread[i], i < threads ? call_often : make_threads, NULL);
    say("ready");
    await_byte();
    started = true;
    await_byte();
    over = true;
    for (long i = 0; i <= threads; i++)
        pthread_join(thread[i], NULL);
    say("calls=%lu", calls);
    await_byte();
    return 0;
}
