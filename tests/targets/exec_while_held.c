/* exec_while_held: the leader calls a probed function once; a second thread execs the program itself.
 * Protocol: "ready", byte: the leader calls; byte: the other thread execs; "again"; byte: exit 5. */
#include "common.h"

FUNCTION(probed_leader, "lea 1(%rdi), %rax\n ret");
long probed_leader(long);

static pthread_barrier_t gate;

static void *exec_again(void *unused)
{
    (void)unused;
    pthread_barrier_wait(&gate);
    await_byte();
    execl("/proc/self/exe", "exec_while_held", "again", NULL);
    give_up(BAD_SYSCALL, "exec: %s", strerror(errno));
    return NULL;
}

int main(int argc, char **argv)
{
    (void)argv;
    limit_life();
    if (argc > 1) {
        say("again");
        await_byte();
        return 5;
    }
    pthread_t thread;
    pthread_barrier_init(&gate, NULL, 2);
    start_thread(&thread, exec_again, NULL);
    say("ready");
    await_byte();
    pthread_barrier_wait(&gate);
    probed_leader(1);
    for (;;)
        pause();
}
