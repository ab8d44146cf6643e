/* mayflies CALLERS SECONDS: CALLERS threads call two probed functions all the time, and two more make threads that live for
 * two calls of them. It lives for SECONDS at most.
 * Protocol: "ready"; 'p' prints "progress=N" (of the caller that has done least); any other byte ends it:
 * "made=N" (short threads), exit 0. */
#include "common.h"

enum { MOST_CALLERS = 64, MAKERS = 2 };

FUNCTION(mayfly_lea, "lea 1(%rdi), %rax\n ret");
FUNCTION(mayfly_push, "push %rbp\n mov %rsp, %rbp\n lea 2(%rdi), %rax\n pop %rbp\n ret");
long mayfly_lea(long), mayfly_push(long);

static atomic_bool over;
static atomic_ulong made, progress[MOST_CALLERS];

static void call_both(long i)
{
    if (mayfly_lea(i) != i + 1 || mayfly_push(i) != i + 2)
        give_up(BAD_RESULT, "a call gave a wrong result");
}

static void *live_briefly(void *number)
{
    call_both((long)number);
    return number;
}

static void *make(void *unused)
{
    for (long number = 0; !over; number++) {
        pthread_t thread;
        void *result;
        start_thread(&thread, live_briefly, (void *)number);
        if (pthread_join(thread, &result) || result != (void *)number)
            give_up(BAD_RESULT, "a short thread did not end well");
        made++;
    }
    return unused;
}

static void *call(void *index)
{
    for (long i = 0; !over; i++) {
        call_both(i);
        progress[(long)index]++;
    }
    return NULL;
}

int main(int argc, char **argv)
{
    if (argc != 3)
        give_up(2, "usage: mayflies CALLERS SECONDS");
    long callers = number(argv[1]);
    alarm((unsigned)number(argv[2]));
    if (callers > MOST_CALLERS)
        give_up(2, "at most %d callers", MOST_CALLERS);
    pthread_t thread[MOST_CALLERS + MAKERS];
    for (long i = 0; i < callers + MAKERS; i++)
        start_thread(&thread[i], i < callers ? call : make, (void *)i);
    say("ready");
    while (await_byte() == 'p') {
        unsigned long least = progress[0];
        for (long i = 1; i < callers; i++)
            least = progress[i] < least ? progress[i] : least;
        say("progress=%lu", least);
    }
    over = true;
    for (long i = 0; i < callers + MAKERS; i++)
        pthread_join(thread[i], NULL);
    say("made=%lu", made);
    return 0;
}
