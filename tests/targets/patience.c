/* patience MILLISECONDS SECONDS [KIND...]: a thread for each kind of waiting (all of them, if none is named) waits in that
 * system call again and again, with a time-out of MILLISECONDS if the call takes one, else until the end. None may see
 * EINTR, end early, or end without what it waited for. It lives for SECONDS at most.
 * Each thread has its kind's name. Protocol: "ready" when all wait; 'p' prints "kinds=N" and for each kind
 * "NAME=TURNS DISTURBED LATE" (waits that have ended since the last 'p', in how many of them the thread slept more than
 * once, by how many microseconds the latest of them was late); 'i' sends two signals that the program ignores to each
 * thread, and prints "sent=N"; any other byte ends it: exit 0. */
#include "common.h"
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <linux/futex.h>
#include <mqueue.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/resource.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>

enum { THOUSAND = 1000, MILLION = 1000000 };
#ifdef __i386__
struct spec32 {
    long seconds, nanoseconds;
};
#endif

static long limit_ms;
static int silent[2]; /* a pipe in which nothing ever comes */
static int gate[2];   /* a pipe in which nothing comes until the end */
static int full[2];   /* a pipe that is full until the end */
static int semaphores, messages;
static pid_t child;
static atomic_bool over;

/* The calls. Each is made by one thread alone and gives 0 if it ended as it should: by its time-out if it has one. */

static struct timespec span(void)
{
    return (struct timespec){.tv_sec = limit_ms / THOUSAND, .tv_nsec = limit_ms % THOUSAND * MILLION};
}

static struct timespec from_now(clockid_t clock)
{
    struct timespec now, limit = span();
    clock_gettime(clock, &now);
    long nanoseconds = now.tv_nsec + limit.tv_nsec;
    return (struct timespec){
        .tv_sec = now.tv_sec + limit.tv_sec + nanoseconds / (THOUSAND * MILLION),
        .tv_nsec = nanoseconds % (THOUSAND * MILLION),
    };
}

static bool fails(long result, int error)
{
    return result == -1 && errno == error;
}

static int epoll_of(int descriptor)
{
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN};
    if (epoll < 0 || epoll_ctl(epoll, EPOLL_CTL_ADD, descriptor, &event))
        give_up(BAD_SYSCALL, "epoll: %s", strerror(errno));
    return epoll;
}

static bool by_epoll_wait(void)
{
    static int epoll;
    struct epoll_event event;
    epoll = epoll ? epoll : epoll_of(silent[0]);
    return epoll_wait(epoll, &event, 1, (int)limit_ms) == 0;
}

static bool by_epoll_pwait2(void)
{
    static int epoll;
    struct epoll_event event;
    struct timespec limit = span();
    epoll = epoll ? epoll : epoll_of(silent[0]);
    return epoll_pwait2(epoll, &event, 1, &limit, NULL) == 0;
}

static bool by_poll(void)
{
    struct pollfd polled = {.fd = silent[0], .events = POLLIN};
    return poll(&polled, 1, (int)limit_ms) == 0;
}

static bool by_ppoll(void)
{
    struct pollfd polled = {.fd = silent[0], .events = POLLIN};
    struct timespec limit = span();
    return ppoll(&polled, 1, &limit, NULL) == 0;
}

static bool by_select(void)
{
    fd_set set;
    FD_ZERO(&set);
    FD_SET(silent[0], &set);
    struct timeval limit = {.tv_sec = limit_ms / THOUSAND, .tv_usec = limit_ms % THOUSAND * THOUSAND};
    return select(silent[0] + 1, &set, NULL, NULL, &limit) == 0;
}

static bool by_pselect(void)
{
    fd_set set;
    FD_ZERO(&set);
    FD_SET(silent[0], &set);
    struct timespec limit = span();
    return pselect(silent[0] + 1, &set, NULL, NULL, &limit, NULL) == 0;
}

static bool by_nanosleep(void)
{
    struct timespec limit = span();
    return nanosleep(&limit, NULL) == 0;
}

static bool by_clock_nanosleep(void)
{
    struct timespec limit = span();
    return (errno = clock_nanosleep(CLOCK_MONOTONIC, 0, &limit, NULL)) == 0;
}

static bool by_clock_nanosleep_until(void)
{
    struct timespec limit = from_now(CLOCK_MONOTONIC);
    return (errno = clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &limit, NULL)) == 0;
}

static bool by_futex(void)
{
    static int word;
#ifdef __i386__
    struct spec32 limit = {limit_ms / THOUSAND, limit_ms % THOUSAND * MILLION};
#else
    struct timespec limit = span();
#endif
    return fails(syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, &limit, NULL, 0), ETIMEDOUT);
}

static bool by_condition(void)
{
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    static pthread_cond_t condition = PTHREAD_COND_INITIALIZER;
    struct timespec limit = from_now(CLOCK_REALTIME);
    pthread_mutex_lock(&lock);
    errno = pthread_cond_timedwait(&condition, &lock, &limit);
    pthread_mutex_unlock(&lock);
    return errno == ETIMEDOUT;
}

static bool by_sigtimedwait(void)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGRTMAX);
    struct timespec limit = span();
    return fails(sigtimedwait(&set, NULL, &limit), EAGAIN);
}

static bool by_semtimedop(void)
{
    struct sembuf down = {.sem_num = 0, .sem_op = -1};
    struct timespec limit = span();
    return fails(semtimedop(semaphores, &down, 1, &limit), EAGAIN);
}

static void give_time_out(int socket, int option)
{
    struct timeval limit = {.tv_sec = limit_ms / THOUSAND, .tv_usec = limit_ms % THOUSAND * THOUSAND};
    if (socket < 0 || setsockopt(socket, SOL_SOCKET, option, &limit, sizeof limit))
        give_up(BAD_SYSCALL, "a socket's time-out: %s", strerror(errno));
}

static bool by_recv(void)
{
    static int pair[2];
    char byte;
    if (!pair[1]) {
        if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair))
            give_up(BAD_SYSCALL, "socketpair: %s", strerror(errno));
        give_time_out(pair[0], SO_RCVTIMEO);
    }
    return fails(recv(pair[0], &byte, 1, 0), EAGAIN);
}

static bool by_send(void)
{
    static int pair[2];
    static const char bytes[4096];
    if (!pair[1]) {
        if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair))
            give_up(BAD_SYSCALL, "socketpair: %s", strerror(errno));
        while (send(pair[0], bytes, sizeof bytes, MSG_DONTWAIT) > 0)
            ;
        give_time_out(pair[0], SO_SNDTIMEO);
    }
    return fails(send(pair[0], bytes, 1, 0), EAGAIN);
}

static int listener(void)
{
    int socket_of = socket(AF_UNIX, SOCK_STREAM, 0);
    struct sockaddr name = {.sa_family = AF_UNIX}; /* the kernel chooses one */
    if (socket_of < 0 || bind(socket_of, &name, sizeof name.sa_family) || listen(socket_of, 1))
        give_up(BAD_SYSCALL, "a socket that listens: %s", strerror(errno));
    return socket_of;
}

static bool by_accept(void)
{
    static int socket_of;
    if (!socket_of)
        give_time_out(socket_of = listener(), SO_RCVTIMEO);
    return fails(accept(socket_of, NULL, NULL), EAGAIN);
}

static bool by_io_getevents(void)
{
    static aio_context_t context;
    struct io_event event;
#ifdef __i386__
    struct spec32 limit = {limit_ms / THOUSAND, limit_ms % THOUSAND * MILLION};
#else
    struct timespec limit = span();
#endif
    if (!context && syscall(SYS_io_setup, 4, &context))
        give_up(BAD_SYSCALL, "io_setup: %s", strerror(errno));
    return syscall(SYS_io_getevents, context, 1, 1, &event, &limit) == 0;
}

static bool by_mq_receive(void)
{
    static mqd_t queue;
    char text[64], name[32];
    struct mq_attr attributes = {.mq_maxmsg = 1, .mq_msgsize = sizeof text};
    if (!queue) {
        snprintf(name, sizeof name, "/patience-%d", getpid());
        queue = mq_open(name, O_CREAT | O_EXCL | O_RDWR, 0600, &attributes);
        if (queue < 0 || mq_unlink(name))
            give_up(BAD_SYSCALL, "mq_open: %s", strerror(errno));
    }
    struct timespec limit = from_now(CLOCK_REALTIME);
    return fails(mq_timedreceive(queue, text, sizeof text, NULL, &limit), ETIMEDOUT);
}

/* These wait until the end. */

static bool by_read(void)
{
    char byte;
    return read(gate[0], &byte, 1) == 1;
}

static bool by_write(void)
{
    return write(full[1], "x", 1) == 1;
}

static bool by_msgrcv(void)
{
    struct {
        long type;
        char text[1];
    } message;
    return msgrcv(messages, &message, 1, 0, 0) == 1;
}

static bool by_semop(void)
{
    struct sembuf down = {.sem_num = 1, .sem_op = -1};
    return semop(semaphores, &down, 1) == 0;
}

static bool by_sigwaitinfo(void)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    return sigwaitinfo(&set, NULL) == SIGUSR1;
}

static bool by_waitpid(void)
{
    return waitpid(child, NULL, 0) == child;
}

static bool by_epoll_for_ever(void)
{
    struct epoll_event event;
    return epoll_wait(epoll_of(gate[0]), &event, 1, -1) == 1;
}

static const struct {
    const char *name;
    bool (*wait)(void);
    bool timed;
} sorts[] = {
    {"epoll_wait", by_epoll_wait, true},
    {"epoll_pwait2", by_epoll_pwait2, true},
    {"poll", by_poll, true},
    {"ppoll", by_ppoll, true},
    {"select", by_select, true},
    {"pselect", by_pselect, true},
    {"nanosleep", by_nanosleep, true},
    {"clock_nanosleep", by_clock_nanosleep, true},
    {"clock_nanosleep_until", by_clock_nanosleep_until, true},
    {"futex", by_futex, true},
    {"condition", by_condition, true},
    {"sigtimedwait", by_sigtimedwait, true},
    {"semtimedop", by_semtimedop, true},
    {"recv", by_recv, true},
    {"send", by_send, true},
    {"accept", by_accept, true},
    {"io_getevents", by_io_getevents, true},
    {"mq_receive", by_mq_receive, true},
    {"read", by_read, false},
    {"write", by_write, false},
    {"msgrcv", by_msgrcv, false},
    {"semop", by_semop, false},
    {"sigwaitinfo", by_sigwaitinfo, false},
    {"waitpid", by_waitpid, false},
    {"epoll_for_ever", by_epoll_for_ever, false},
};
enum { SORTS = sizeof sorts / sizeof *sorts };

static struct {
    pthread_t thread;
    int sort;
    pid_t tid;
    atomic_long turns, disturbed, late;
} waiters[SORTS];
static int amount;

static long microseconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * MILLION + now.tv_nsec / THOUSAND;
}

static long sleeps(void)
{
    struct rusage usage;
    getrusage(RUSAGE_THREAD, &usage);
    return usage.ru_nvcsw;
}

static void *wait_often(void *index)
{
    typeof(&waiters[0]) its = &waiters[(long)index];
    typeof(&sorts[0]) sort = &sorts[its->sort];
    char name[16];
    snprintf(name, sizeof name, "%.15s", sort->name);
    pthread_setname_np(pthread_self(), name);
    its->tid = (pid_t)syscall(SYS_gettid);
    do {
        long slept = sleeps(), began = microseconds();
        bool right = sort->wait();
        long late = microseconds() - began - limit_ms * THOUSAND;
        if (!right)
            give_up(BAD_SYSCALL, "%s: %s", sort->name, strerror(errno));
        if (sort->timed && late < -THOUSAND) /* a millisecond of the kernel's clocks' is not ours */
            give_up(BAD_RESULT, "%s ended %ld us early", sort->name, -late);
        its->disturbed += sleeps() - slept > 1;
        its->late = late > its->late ? late : its->late;
        its->turns++;
    } while (sort->timed && !over);
    return NULL;
}

static void open_all(void)
{
    signal(SIGUSR2, SIG_IGN);
    if (unshare(CLONE_NEWIPC))
        errno = 0; /* not allowed: what is killed leaves its semaphores and messages then */
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigaddset(&set, SIGRTMAX);
    semaphores = semget(IPC_PRIVATE, 2, 0600);
    messages = msgget(IPC_PRIVATE, 0600);
    if (pipe(silent) || pipe(gate) || pipe(full) || semaphores < 0 || messages < 0 ||
        pthread_sigmask(SIG_BLOCK, &set, NULL))
        give_up(BAD_SYSCALL, "setting up: %s", strerror(errno));
    fcntl(full[1], F_SETFL, O_NONBLOCK);
    while (write(full[1], "x", 1) == 1)
        ;
    fcntl(full[1], F_SETFL, 0);
    if ((child = fork()) == 0) {
        char byte;
        close(gate[1]);
        _exit((int)read(gate[0], &byte, 1) - 1);
    }
}

/* What each of those that wait for ever waits for. */
static void end_all(void)
{
    struct sembuf up = {.sem_num = 1, .sem_op = 1};
    struct {
        long type;
        char text[1];
    } message = {.type = 1};
    static char bytes[65536];
    over = true;
    if (write(gate[1], bytes, 4096) != 4096 || msgsnd(messages, &message, 1, 0) || semop(semaphores, &up, 1) ||
        kill(getpid(), SIGUSR1) || read(full[0], bytes, sizeof bytes) < 1)
        give_up(BAD_SYSCALL, "ending: %s", strerror(errno));
}

static void tell(void)
{
    say("kinds=%d", amount);
    for (int i = 0; i < amount; i++) {
        long turns = atomic_exchange(&waiters[i].turns, 0), disturbed = atomic_exchange(&waiters[i].disturbed, 0);
        say("%s=%ld %ld %ld", sorts[waiters[i].sort].name, turns, disturbed, atomic_exchange(&waiters[i].late, 0));
    }
}

static void send_ignored(void)
{
    for (int i = 0; i < amount; i++)
        if (syscall(SYS_tgkill, getpid(), waiters[i].tid, SIGWINCH) || syscall(SYS_tgkill, getpid(), waiters[i].tid, SIGUSR2))
            give_up(BAD_SYSCALL, "tgkill: %s", strerror(errno));
    say("sent=%d", 2 * amount);
}

static bool sleeps_now(pid_t tid)
{
    char path[64], text[512], *state;
    snprintf(path, sizeof path, "/proc/self/task/%d/stat", tid);
    FILE *file = fopen(path, "r");
    size_t got = file ? fread(text, 1, sizeof text - 1, file) : 0;
    text[got] = 0;
    if (file)
        fclose(file);
    return (state = strrchr(text, ')')) && state[2] == 'S';
}

static bool is_wanted(const char *name, int argc, char **argv)
{
    bool wanted = argc == 3;
    for (int i = 3; i < argc; i++)
        wanted |= strcmp(argv[i], name) == 0;
    return wanted;
}

int main(int argc, char **argv)
{
    if (argc < 3)
        give_up(2, "usage: patience MILLISECONDS SECONDS [KIND...]");
    limit_ms = number(argv[1]);
    alarm((unsigned)number(argv[2]));
    open_all();
    for (int sort = 0; sort < SORTS; sort++)
        if (is_wanted(sorts[sort].name, argc, argv)) {
            waiters[amount].sort = sort;
            start_thread(&waiters[amount].thread, wait_often, (void *)(long)amount);
            amount++;
        }
    for (int i = 0; i < amount; i++)
        while (!waiters[i].tid || !sleeps_now(waiters[i].tid))
            usleep(THOUSAND);
    say("ready");
    for (int order; (order = await_byte()) == 'p' || order == 'i';)
        order == 'p' ? tell() : send_ignored();
    end_all();
    for (int i = 0; i < amount; i++)
        pthread_join(waiters[i].thread, NULL);
    if (semctl(semaphores, 0, IPC_RMID) || msgctl(messages, IPC_RMID, NULL))
        give_up(BAD_SYSCALL, "removing: %s", strerror(errno));
    return 0;
}
