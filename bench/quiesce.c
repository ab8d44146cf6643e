/* The yardstick for stopping all threads of a program: quiesce PID ROUNDS. It seizes each thread, then stops all of
 * them and lets them go again, ROUNDS times; for each it prints the nanoseconds that stopping them took: INTERRUPT of
 * each, then for each waitpid by its tid, and GETREGS, without which nobody knows whether a system call was interrupted
 * that has to begin again. */
#define _GNU_SOURCE
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ptrace.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { MOST = 8192 };

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static long nanoseconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000L + now.tv_nsec;
}

static int seize_all(const char *pid, pid_t *tids)
{
    char path[64];
    int count = 0;
    snprintf(path, sizeof path, "/proc/%s/task", pid);
    DIR *directory = opendir(path);
    if (!directory)
        fail(path);
    for (struct dirent *entry; count < MOST && (entry = readdir(directory));)
        if (entry->d_name[0] != '.')
            tids[count++] = atoi(entry->d_name);
    closedir(directory);
    for (int i = 0; i < count; i++)
        if (ptrace(PTRACE_SEIZE, tids[i], NULL, NULL))
            fail("SEIZE");
    return count;
}

int main(int argc, char **argv)
{
    static pid_t tids[MOST];
    struct user_regs_struct regs;
    int status;
    if (argc != 3)
        return 2;
    alarm(600);
    int count = seize_all(argv[1], tids);
    for (int round = atoi(argv[2]); round > 0; round--) {
        long began = nanoseconds();
        for (int i = 0; i < count; i++)
            if (ptrace(PTRACE_INTERRUPT, tids[i], NULL, NULL))
                fail("INTERRUPT");
        for (int i = 0; i < count; i++)
            if (waitpid(tids[i], &status, __WALL) != tids[i] || ptrace(PTRACE_GETREGS, tids[i], NULL, &regs))
                fail("a thread");
        printf("%ld\n", nanoseconds() - began);
        for (int i = 0; i < count; i++)
            if (ptrace(round > 1 ? PTRACE_CONT : PTRACE_DETACH, tids[i], NULL, NULL))
                fail("CONT");
        usleep(20000);
    }
    return 0;
}
