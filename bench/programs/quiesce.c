/* The yardstick of quiescing: stop every thread of a process, let them all go, and nothing else.
 *
 * quiesce PID ROUNDS: prints "STOPPED WENT" in nanoseconds for each round: until all have stopped, and until all have been
 * let go, both from the round's beginning. Between two rounds it waits until the threads sleep again. */
#define _GNU_SOURCE
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { MOST = 1 << 15, REST_US = 50000 };
static pid_t threads[MOST];

static long nanoseconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000L + now.tv_nsec;
}

static void check(long result, const char *what)
{
    if (result >= 0)
        return;
    perror(what);
    exit(1);
}

static int seize(const char *pid)
{
    char path[64];
    struct dirent *entry;
    int count = 0;
    snprintf(path, sizeof path, "/proc/%s/task", pid);
    DIR *tasks = opendir(path);
    check(tasks ? 0 : -1, path);
    while ((entry = readdir(tasks)) && count < MOST) {
        if (entry->d_name[0] == '.')
            continue;
        threads[count] = atoi(entry->d_name);
        check(ptrace(PTRACE_SEIZE, threads[count], NULL, NULL), "SEIZE");
        count++;
    }
    closedir(tasks);
    return count;
}

static void stop(int count)
{
    int status;
    for (int i = 0; i < count; i++)
        check(ptrace(PTRACE_INTERRUPT, threads[i], NULL, NULL), "INTERRUPT");
    for (int i = 0; i < count; i++)
        check(waitpid(threads[i], &status, __WALL), "waitpid");
}

int main(int argc, char **argv)
{
    if (argc != 3)
        return 2;
    int count = seize(argv[1]);
    for (int round = atoi(argv[2]); round > 0; round--) {
        long began = nanoseconds();
        stop(count);
        long stopped = nanoseconds();
        for (int i = 0; i < count; i++)
            check(ptrace(PTRACE_CONT, threads[i], NULL, NULL), "CONT");
        printf("%ld %ld\n", stopped - began, nanoseconds() - began);
        usleep(REST_US);
    }
    stop(count);
    for (int i = 0; i < count; i++)
        check(ptrace(PTRACE_DETACH, threads[i], NULL, NULL), "DETACH");
    return 0;
}
