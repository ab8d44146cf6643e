/* What ubpx is measured against where it has to do with crowds: the same, done by C alone.
 *
 * crowd_peer write PID < ADDRESSES: writes a trap to each address (64-bit words), then the byte that was there, each by a
 * pwrite of its own, and prints "write=" and "restore=", nanoseconds each.
 * crowd_peer quiesce PID ROUNDS: stops all threads and lets them go on, and prints "quiesce=", the median of so many rounds:
 * INTERRUPT for each, then waitpid for each by its tid. */
#include "common.h"
#include <dirent.h>
#include <fcntl.h>
#include <sys/ptrace.h>
#include <time.h>

enum { MOST = 1 << 20 };
static unsigned long addresses[MOST];
static unsigned char bytes[MOST];
static pid_t tids[1 << 16];

static long now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000L + time.tv_nsec;
}

static void must(bool fine, const char *what)
{
    if (!fine)
        give_up(BAD_SYSCALL, "%s: %s", what, strerror(errno));
}

static void write_traps(const char *pid)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%s/mem", pid);
    int memory = open(path, O_RDWR);
    must(memory >= 0, path);
    long count = fread(addresses, sizeof *addresses, MOST, stdin);
    for (long i = 0; i < count; i++)
        must(pread(memory, &bytes[i], 1, addresses[i]) == 1, "pread");
    long start = now();
    for (long i = 0; i < count; i++)
        must(pwrite(memory, "\xcc", 1, addresses[i]) == 1, "pwrite");
    long middle = now();
    for (long i = 0; i < count; i++)
        must(pwrite(memory, &bytes[i], 1, addresses[i]) == 1, "pwrite");
    say("write=%ld", (middle - start) / count);
    say("restore=%ld", (now() - middle) / count);
}

static int by_value(const void *one, const void *other)
{
    long a = *(const long *)one, b = *(const long *)other;
    return (a > b) - (a < b);
}

static void quiesce(const char *pid, long rounds)
{
    char path[64];
    long count = 0, taken[rounds];
    snprintf(path, sizeof path, "/proc/%s/task", pid);
    DIR *tasks = opendir(path);
    must(tasks != NULL, path);
    for (struct dirent *entry; (entry = readdir(tasks)) != NULL;)
        if (entry->d_name[0] != '.')
            tids[count++] = atoi(entry->d_name);
    for (long i = 0; i < count; i++)
        must(ptrace(PTRACE_SEIZE, tids[i], 0, 0) == 0, "SEIZE");
    for (long round = 0; round < rounds; round++) {
        int status;
        long start = now();
        for (long i = 0; i < count; i++)
            must(ptrace(PTRACE_INTERRUPT, tids[i], 0, 0) == 0, "INTERRUPT");
        for (long i = 0; i < count; i++)
            must(waitpid(tids[i], &status, __WALL) == tids[i], "waitpid");
        taken[round] = now() - start;
        for (long i = 0; i < count; i++)
            must(ptrace(PTRACE_CONT, tids[i], 0, 0) == 0, "CONT");
    }
    qsort(taken, rounds, sizeof *taken, by_value);
    say("quiesce=%ld", taken[rounds / 2]);
}

int main(int argc, char **argv)
{
    limit_life();
    if (argc == 3 && strcmp(argv[1], "write") == 0)
        write_traps(argv[2]);
    else if (argc == 4 && strcmp(argv[1], "quiesce") == 0)
        quiesce(argv[2], number(argv[3]));
    else
        give_up(2, "usage: crowd_peer write PID | quiesce PID ROUNDS");
    return 0;
}
