/* jobs SORT ROUNDS: a small shell with one job, which makes threads all the time and calls a probed function in them.
 * shell: the job is in a process group of its own; the shell stops and continues it by every signal that can, and
 * checks what it is told of it, and that no thread runs on. session: the job leads a session, so that only SIGSTOP can
 * stop it. orphan: the job is stopped when its group becomes orphaned, which ends it by SIGHUP.
 * Protocol: "job=PID", "ready", byte, "stops=N", "status=N" (of the job, minus its signal), byte, exit 0. */
#include "common.h"
#include <dirent.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>

enum { PATIENCE_MS = 20000, QUIET_MS = 20 };

ADD_ONE(probed_job);
long probed_job(long);

static atomic_long *progress;

static void call(void)
{
    if (probed_job(6) != 7)
        give_up(BAD_RESULT, "a call gave a wrong result");
    (*progress)++;
}

/* Calls until its maker says so: a newborn that runs on while its maker is stopped would never end. */
static void *spin(void *released)
{
    do
        call();
    while (!*(atomic_bool *)released);
    return NULL;
}

static void *breed(void *unused)
{
    for (;;) {
        atomic_bool released = false;
        pthread_t thread;
        start_thread(&thread, spin, &released);
        released = true;
        pthread_join(thread, NULL);
    }
    return unused;
}

static void work(void)
{
    pthread_t thread[2];
    prctl(PR_SET_PDEATHSIG, 0);
    limit_life();
    for (int i = 0; i < 2; i++)
        start_thread(&thread[i], breed, NULL);
    pthread_join(thread[0], NULL);
}

static void pause_ms(void)
{
    struct timespec one_ms = {.tv_nsec = 1000000};
    nanosleep(&one_ms, NULL);
}

/* Whether a thread of the job is in none of the stopped states. */
static bool one_runs(pid_t job)
{
    char path[64], text[256];
    bool found = false;
    snprintf(path, sizeof path, "/proc/%d/task", job);
    DIR *tasks = opendir(path);
    for (struct dirent *task; tasks && (task = readdir(tasks));) {
        snprintf(path, sizeof path, "/proc/%d/task/%.10s/stat", job, task->d_name);
        int file = open(path, O_RDONLY);
        long got = file < 0 ? 0 : read(file, text, sizeof text - 1);
        close(file);
        text[got > 0 ? got : 0] = 0;
        char *state = strrchr(text, ')');
        found |= state && state[2] != 'T' && state[2] != 't' && state[2] != 'Z' && state[2] != 'X';
    }
    closedir(tasks);
    return found;
}

static void await_progress(void)
{
    long before = *progress;
    for (int ms = 0; *progress < before + 3; ms++, pause_ms())
        if (ms > PATIENCE_MS)
            give_up(BAD_RESULT, "the job does not go on");
}

/* A tracer may still be at work for a moment; a thread that runs on never ends. */
static void await_standstill(pid_t job)
{
    long before = *progress;
    for (int ms = 0, quiet = 0; quiet < QUIET_MS; ms++, pause_ms()) {
        quiet = one_runs(job) || *progress != before ? 0 : quiet + 1;
        before = *progress;
        if (ms > PATIENCE_MS)
            give_up(BAD_RESULT, "a thread of the stopped job runs on");
    }
}

/* What the parent is told next of its job. */
static void expect_told(pid_t job, bool right(int), int signal, const char *what)
{
    int status;
    if (waitpid(job, &status, WUNTRACED | WCONTINUED) != job)
        give_up(BAD_SYSCALL, "waitpid: %s", strerror(errno));
    if (!right(status) || (WIFSTOPPED(status) && WSTOPSIG(status) != signal))
        give_up(BAD_RESULT, "told status %#x of a job that has %s by signal %d", status, what, signal);
}

static bool stopped(int status)
{
    return WIFSTOPPED(status);
}

static bool continued(int status)
{
    return WIFCONTINUED(status);
}

static void expect_silence(pid_t job)
{
    int status;
    if (waitpid(job, &status, WUNTRACED | WCONTINUED | WNOHANG) != 0)
        give_up(BAD_RESULT, "told status %#x of a job to which nothing has happened", status);
}

static void one_stop(pid_t job, int signal)
{
    await_progress();
    kill(job, signal);
    expect_told(job, stopped, signal, "stopped");
    await_standstill(job);
    expect_silence(job);
    kill(job, SIGCONT);
    expect_told(job, continued, SIGCONT, "continued");
    expect_silence(job);
}

static long control(pid_t job, bool in_own_session, long rounds)
{
    static const int signals[] = {SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU};
    long stops = 0;
    for (long round = 0; round < rounds; round++) {
        int signal = signals[round % 4];
        if (in_own_session && signal != SIGSTOP) {
            kill(job, signal); /* is ignored in an orphaned process group */
            await_progress();
            expect_silence(job);
        } else {
            one_stop(job, signal);
            stops++;
        }
    }
    await_progress();
    kill(job, SIGTERM);
    return stops;
}

static long orphan(pid_t job, int middle_leaves)
{
    await_progress();
    kill(job, SIGSTOP);
    await_standstill(job);
    if (write(middle_leaves, "x", 1) != 1)
        give_up(BAD_SYSCALL, "write");
    return 1;
}

int main(int argc, char **argv)
{
    int channel[2], to_middle[2], status;
    pid_t job;
    char byte;
    if (argc != 3)
        give_up(2, "usage: jobs shell|session|orphan ROUNDS");
    limit_life();
    long rounds = number(argv[2]);
    bool is_orphan = strcmp(argv[1], "orphan") == 0, in_own_session = strcmp(argv[1], "session") == 0;
    progress = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    if (pipe(channel) || pipe(to_middle))
        give_up(BAD_SYSCALL, "pipe");
    pid_t child = fork();
    if (child == 0 && is_orphan) {
        setsid();
        job = fork();
        if (job != 0) {
            if (write(channel[1], &job, sizeof job) != sizeof job || read(to_middle[0], &byte, 1) != 1)
                give_up(BAD_SYSCALL, "the middle has nobody to talk to");
            _exit(0);
        }
    }
    if (child == 0) {
        in_own_session ? (void)setsid() : (void)setpgid(0, 0);
        work();
    }
    job = child;
    if (is_orphan && read(channel[0], &job, sizeof job) != sizeof job)
        give_up(BAD_SYSCALL, "read");
    await_progress();
    say("job=%d", job);
    say("ready");
    await_byte();
    say("stops=%ld", is_orphan ? orphan(job, to_middle[1]) : control(job, in_own_session, rounds));
    while (waitpid(job, &status, 0) != job)
        if (errno == ECHILD && !is_orphan)
            give_up(BAD_SYSCALL, "waitpid: %s", strerror(errno));
        else
            pause_ms(); /* not ours yet */
    say("status=%d", WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status));
    await_byte();
    return 0;
}
