/* ways: what a program may do, each way once and with the same output in every run that has the same layout of
 * addresses: threads, children of each sort, signals, a fault, fresh memory, and an exec of itself.
 * Protocol: none; reads nothing, prints results and addresses; exit 7 from the program that it has become. */
#include "common.h"
#include <setjmp.h>
#include <signal.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/wait.h>

extern char **environ;
static atomic_long sum;
static sigjmp_buf back;
static volatile sig_atomic_t caught;
static volatile int *volatile nowhere = (volatile int *)16;

static void *worker(void *argument)
{
    for (long i = 0; i < 100; i++)
        sum += i * (long)argument;
    return NULL;
}

static void on_signal(int number, siginfo_t *info, void *context)
{
    (void)context;
    if (number == SIGSEGV) {
        say("fault=%p", info->si_addr);
        siglongjmp(back, 1);
    }
    caught++;
}

static void addresses(void)
{
    int local;
    say("code=%p data=%p stack=%p", (void *)worker, (void *)&sum, (void *)&local);
    for (int i = 0; i < 4; i++) {
        void *mapped = mmap(NULL, 4096UL << (i * 4), PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        say("mapped=%p allocated=%p break=%p", mapped, malloc(100UL << (i * 5)), sbrk(0));
    }
}

static void signals(void)
{
    struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO};
    sigaction(SIGUSR1, &action, NULL);
    sigaction(SIGSEGV, &action, NULL);
    for (int i = 0; i < 5; i++)
        raise(SIGUSR1);
    if (!sigsetjmp(back, 1))
        *nowhere = 1;
    say("caught=%d", caught);
}

static void children(void)
{
    pid_t child = fork();
    if (child == 0)
        _exit(11);
    reap(child, 11 << 8, "fork");
    child = vfork();
    if (child == 0)
        _exit(12);
    reap(child, 12 << 8, "vfork");
    child = vfork();
    if (child == 0) {
        execl("/bin/sh", "sh", "-c", "echo from a shell; exit 13", NULL);
        _exit(1);
    }
    reap(child, 13 << 8, "vfork and exec");
    char *arguments[] = {"sh", "-c", "exit 14", NULL};
    if (posix_spawn(&child, "/bin/sh", NULL, NULL, arguments, environ) != 0)
        give_up(BAD_SYSCALL, "posix_spawn");
    reap(child, 14 << 8, "spawn");
    child = fork();
    if (child == 0)
        raise(SIGKILL);
    reap(child, SIGKILL, "killed");
}

int main(int argc, char **argv)
{
    addresses();
    if (argc > 1) {
        say("again");
        return 7;
    }
    pthread_t threads[4];
    for (long i = 0; i < 4; i++)
        start_thread(&threads[i], worker, (void *)i);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    say("sum=%ld", sum);
    signals();
    children();
    fprintf(stderr, "to standard error\n");
    execv(argv[0], (char *[]){argv[0], "again", NULL});
    give_up(BAD_SYSCALL, "exec");
}
