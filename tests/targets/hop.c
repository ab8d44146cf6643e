/* hop COUNT SELF OTHER: calls landing(COUNT), starts OTHER with count 0 by fork, by vfork and by posix_spawn, and
 * waits for each; then execs OTHER with COUNT - 1, its own other being SELF; with COUNT 0 it just exits with 0.
 * SELF and OTHER may be this program for two word sizes. No protocol but the exit status. */
#include "common.h"
#include <spawn.h>

int __attribute__((noipa)) landing(int count)
{
    return count + 1;
}

static void start_leaf(char *other, pid_t child, const char *how)
{
    char *const arguments[] = {other, "0", other, other, NULL};
    if (child == 0) {
        execv(other, arguments);
        _exit(BAD_SYSCALL);
    }
    reap(child, 0, how);
}

int main(int argc, char **argv)
{
    if (argc != 4)
        give_up(2, "usage: hop COUNT SELF OTHER");
    long count = number(argv[1]);
    limit_life();
    if (landing(count) != count + 1)
        give_up(BAD_RESULT, "landing");
    if (count == 0)
        return 0;
    start_leaf(argv[3], fork(), "fork");
    start_leaf(argv[3], vfork(), "vfork");
    pid_t child;
    if (posix_spawn(&child, argv[3], NULL, NULL, (char *const[]){argv[3], "0", argv[3], argv[3], NULL}, NULL))
        give_up(BAD_SYSCALL, "posix_spawn");
    reap(child, 0, "posix_spawn");
    char rest[24];
    snprintf(rest, sizeof rest, "%ld", count - 1);
    execl(argv[3], argv[3], rest, argv[3], argv[2], NULL);
    give_up(BAD_SYSCALL, "exec of %s: %s", argv[3], strerror(errno));
}
