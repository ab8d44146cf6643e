/* followed SORT COUNT CALLS: a family whose every member calls the probed function CALLS times and counts that itself,
 * in memory that all of them share. SORT says how it is made:
 *   tree     each process forks COUNT children, three generations
 *   threads  COUNT threads fork ten children each, one after the other, and call the function meanwhile
 *   daemon   COUNT daemons, by a double fork; nobody waits for them but by the counter
 *   exec     COUNT forked children that call, exec this program and call again ("leaf")
 *   hop      as exec, and the leaf execs itself once more
 *   vfork    COUNT children of vfork that call (which counts for nobody) and exec this program
 *   spawn    COUNT children of posix_spawn, which exec this program
 *   chain    each of COUNT processes forks the next and execs this program at once, without a wait
 *   killed   COUNT forked children that are killed as soon as they exist
 * Protocol: "ready", byte, "calls=N", "processes=M" (this one among both), byte, exit 0. */
#include "common.h"
#include <signal.h>
#include <spawn.h>
#include <sys/mman.h>

enum { CHILDREN_OF_THREAD = 10, GENERATIONS = 3, LEAF = 24 };

ADD_ONE(probed_family);
ADD_ONE(unprobed_by_parent);
long probed_family(long);
long unprobed_by_parent(long);

extern char **environ;

static struct counters {
    atomic_long calls, processes, daemons;
} *counters;
static int shared;
static long count, calls_each;

static void share(int descriptor)
{
    shared = descriptor;
    counters = mmap(NULL, sizeof *counters, PROT_READ | PROT_WRITE, MAP_SHARED, shared, 0);
    if (counters == MAP_FAILED)
        give_up(BAD_SYSCALL, "mmap: %s", strerror(errno));
}

static void call(void)
{
    for (long i = 0; i < calls_each; i++)
        if (probed_family(i) != i + 1)
            give_up(BAD_RESULT, "a call gave a wrong result");
    counters->calls += calls_each;
}

static pid_t child(void)
{
    pid_t made = fork();
    if (made < 0)
        give_up(BAD_SYSCALL, "fork: %s", strerror(errno));
    if (made == 0) {
        limit_life();
        counters->processes++;
    }
    return made;
}

static char **leaf_arguments(const char *sort)
{
    static char descriptor[16], calls[16];
    static char *arguments[] = {"followed", NULL, descriptor, calls, NULL};
    snprintf(descriptor, sizeof descriptor, "%d", shared);
    snprintf(calls, sizeof calls, "%ld", calls_each);
    arguments[1] = (char *)sort;
    return arguments;
}

static void grow(int generation)
{
    call();
    for (long i = 0; generation > 0 && i < count; i++) {
        pid_t made = child();
        if (made == 0) {
            grow(generation - 1);
            _exit(generation);
        }
        reap(made, generation << 8, "fork");
    }
}

static void *forking(void *unused)
{
    (void)unused;
    for (int i = 0; i < CHILDREN_OF_THREAD; i++) {
        pid_t made = child();
        call();
        if (made == 0)
            _exit(7);
        reap(made, 7 << 8, "fork");
    }
    return NULL;
}

static void fork_in_threads(void)
{
    pthread_t thread[count];
    for (long i = 0; i < count; i++)
        start_thread(&thread[i], forking, NULL);
    for (long i = 0; i < count; i++)
        pthread_join(thread[i], NULL);
}

static void daemonize(void)
{
    pid_t between = fork();
    if (between == 0) {
        counters->processes++;
        setsid();
        call();
        (void)unprobed_by_parent(unprobed_by_parent(1));
        if (child() == 0) {
            call();
            (void)unprobed_by_parent(unprobed_by_parent(1));
            counters->daemons++;
        }
        _exit(0);
    }
    reap(between, 0, "the first fork");
}

static void fork_and_exec(const char *sort)
{
    pid_t made = child();
    if (made == 0) {
        call();
        execv("/proc/self/exe", leaf_arguments(sort));
        _exit(BAD_SYSCALL);
    }
    reap(made, LEAF << 8, "fork and exec");
}

static void vfork_and_exec(void)
{
    char **arguments = leaf_arguments("leaf");
    counters->processes++;
    pid_t made = vfork();
    if (made == 0) {
        if (probed_family(1) == 2)
            execv("/proc/self/exe", arguments);
        _exit(BAD_SYSCALL);
    }
    reap(made, LEAF << 8, "vfork and exec");
}

static void spawn(void)
{
    pid_t made;
    counters->processes++;
    int error = posix_spawn(&made, "/proc/self/exe", NULL, NULL, leaf_arguments("leaf"), environ);
    if (error)
        give_up(BAD_SYSCALL, "posix_spawn: %s", strerror(error));
    reap(made, LEAF << 8, "posix_spawn");
}

/* The child calls while, and after, its parent is replaced. */
static void chain(void)
{
    pid_t first = child();
    if (first != 0)
        return;
    for (long i = 1; i < count; i++) {
        if (child() != 0)
            execv("/proc/self/exe", leaf_arguments("leaf-of-a-chain"));
        call();
    }
    counters->daemons += 1;
    _exit(0);
}

static void kill_at_once(void)
{
    pid_t made = fork();
    if (made == 0)
        for (;;)
            probed_family(1);
    kill(made, SIGKILL);
    reap(made, SIGKILL, "a killed child");
}

static void await_daemons(long expected)
{
    while (counters->daemons < expected)
        usleep(1000);
}

static int leaf(char **argv)
{
    limit_life();
    calls_each = number(argv[3]);
    share((int)number(argv[2]));
    call();
    if (strcmp(argv[1], "leaf-that-hops") == 0)
        execv("/proc/self/exe", leaf_arguments("leaf"));
    if (strcmp(argv[1], "leaf-of-a-chain") == 0)
        counters->daemons++;
    return LEAF;
}

static void live(const char *sort)
{
    if (strcmp(sort, "tree") == 0) {
        grow(GENERATIONS);
        return;
    }
    call();
    if (strcmp(sort, "threads") == 0)
        fork_in_threads();
    else if (strcmp(sort, "chain") == 0) {
        chain();
        await_daemons(count);
    }
    for (long i = 0; i < count; i++) {
        if (strcmp(sort, "daemon") == 0)
            daemonize();
        else if (strcmp(sort, "exec") == 0)
            fork_and_exec("leaf");
        else if (strcmp(sort, "hop") == 0)
            fork_and_exec("leaf-that-hops");
        else if (strcmp(sort, "vfork") == 0)
            vfork_and_exec();
        else if (strcmp(sort, "spawn") == 0)
            spawn();
        else if (strcmp(sort, "killed") == 0)
            kill_at_once();
    }
    if (strcmp(sort, "daemon") == 0)
        await_daemons(count);
}

int main(int argc, char **argv)
{
    if (argc != 4)
        give_up(2, "usage: followed SORT COUNT CALLS");
    if (strncmp(argv[1], "leaf", 4) == 0)
        return leaf(argv);
    limit_life();
    count = number(argv[2]);
    calls_each = number(argv[3]);
    share(memfd_create("counters", 0));
    if (ftruncate(shared, sizeof *counters))
        give_up(BAD_SYSCALL, "ftruncate: %s", strerror(errno));
    counters->processes = 1;
    say("ready");
    await_byte();
    live(argv[1]);
    say("calls=%ld", counters->calls);
    say("processes=%ld", counters->processes);
    await_byte();
    return 0;
}
