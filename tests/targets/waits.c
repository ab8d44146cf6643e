/* waits: threads wait in calls of the kernel's that it restarts in different ways, and in some that it does not
 * restart itself after a signal; none may end before "q" comes, and none with EINTR.
 * Protocol: "ready" when all wait, byte, "waited=N" (calls that ended well), exit 0. */
#include "common.h"
#include <poll.h>
#include <semaphore.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <time.h>

enum { LONG_S = 60, SHORT_MS = 300 };
static int gate[2]; /* a pipe, written to at the end */
static sem_t passed, end;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void by_read(void)
{
    char byte;
    if (read(gate[0], &byte, 1) != 1)
        give_up(BAD_RESULT, "read: %s", strerror(errno));
}

static void by_poll(void)
{
    struct pollfd polled = {.fd = gate[0], .events = POLLIN};
    int found = poll(&polled, 1, LONG_S * 1000);
    if (found != 1)
        give_up(BAD_RESULT, "poll: %d, %s", found, strerror(errno));
}

static void by_epoll(void)
{
    int epoll = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN};
    if (epoll < 0 || epoll_ctl(epoll, EPOLL_CTL_ADD, gate[0], &event))
        give_up(BAD_SYSCALL, "epoll: %s", strerror(errno));
    int found = epoll_wait(epoll, &event, 1, LONG_S * 1000);
    if (found != 1)
        give_up(BAD_RESULT, "epoll_wait: %d, %s", found, strerror(errno));
}

static void by_select(void)
{
    fd_set set;
    FD_ZERO(&set);
    FD_SET(gate[0], &set);
    struct timeval limit = {.tv_sec = LONG_S};
    int found = select(gate[0] + 1, &set, NULL, NULL, &limit);
    if (found != 1)
        give_up(BAD_RESULT, "select: %d, %s", found, strerror(errno));
}

static void by_futex(void)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += LONG_S;
    if (sem_timedwait(&end, &until))
        give_up(BAD_RESULT, "sem_timedwait: %s", strerror(errno));
}

static void by_mutex(void)
{
    if (pthread_mutex_lock(&lock) || pthread_mutex_unlock(&lock))
        give_up(BAD_RESULT, "mutex: %s", strerror(errno));
}

static void by_sigtimedwait(void)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    int found = sigtimedwait(&set, NULL, &(struct timespec){.tv_sec = LONG_S});
    if (found != SIGUSR1)
        give_up(BAD_RESULT, "sigtimedwait: %d, %s", found, strerror(errno));
}

/* Again and again, so that a restart that waits anew, or not at all, is seen. */
static void by_sleep(void)
{
    for (int i = 0; i < 4; i++) {
        struct timespec from, to, left = {0, 0};
        clock_gettime(CLOCK_MONOTONIC, &from);
        if (nanosleep(&(struct timespec){.tv_nsec = SHORT_MS * 1000000L}, &left))
            give_up(BAD_RESULT, "nanosleep: %s", strerror(errno));
        clock_gettime(CLOCK_MONOTONIC, &to);
        long slept = (to.tv_sec - from.tv_sec) * 1000 + (to.tv_nsec - from.tv_nsec) / 1000000;
        if (slept < SHORT_MS - 1)
            give_up(BAD_RESULT, "nanosleep took %ld ms", slept);
    }
}

static void (*const sorts[])(void) = {
    by_read, by_poll, by_epoll, by_select, by_futex, by_mutex, by_sigtimedwait, by_sleep,
};
enum { SORTS = sizeof sorts / sizeof *sorts };

static void *wait_by(void *index)
{
    sem_post(&passed);
    sorts[(long)index]();
    return NULL;
}

int main(void)
{
    pthread_t ids[SORTS];
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    limit_life();
    if (pipe(gate) || sem_init(&passed, 0, 0) || sem_init(&end, 0, 0) || pthread_sigmask(SIG_BLOCK, &set, NULL))
        give_up(BAD_SYSCALL, "setting up: %s", strerror(errno));
    pthread_mutex_lock(&lock);
    for (long i = 0; i < SORTS; i++)
        start_thread(&ids[i], wait_by, (void *)i);
    for (long i = 0; i < SORTS; i++)
        sem_wait(&passed);
    say("ready");
    await_byte();
    /* One byte is taken; for the others to see there are enough. */
    if (write(gate[1], "12345678", 8) != 8 || sem_post(&end) || kill(getpid(), SIGUSR1))
        give_up(BAD_SYSCALL, "opening the gate: %s", strerror(errno));
    pthread_mutex_unlock(&lock);
    for (long i = 0; i < SORTS; i++)
        pthread_join(ids[i], NULL);
    say("waited=%d", SORTS);
    return 0;
}
