/* block_sigtrap SORT THREADS CALLS: threads call a probed function while SIGTRAP is blocked
 * with all other signals ("blocked") or alone ("alone"), or ignored ("ignored"). Masks and dispositions must be
 * what they were in the end; a handler of the program's own works all the time.
 * Protocol: "ready", byte, "calls=N", byte, exit 0. */
#include "hot_functions.h"
#include <signal.h>

static const struct probed *probed;
static long calls_each;
static bool blocks, alone;
static atomic_ulong calls;
static pthread_barrier_t gate;
static volatile sig_atomic_t own_traps;

static void on_trap(int signal, siginfo_t *info, void *context)
{
    (void)signal, (void)context;
    if (info->si_code != SI_TKILL)
        give_up(BAD_RESULT, "a SIGTRAP with code %d is not ours", info->si_code);
    own_traps++;
}

static void check_mask(const sigset_t *expected)
{
    sigset_t mask;
    pthread_sigmask(SIG_BLOCK, NULL, &mask);
    for (int signal = 1; signal < 32; signal++)
        if (sigismember(&mask, signal) != sigismember(expected, signal))
            give_up(BAD_RESULT, "signal %d is no longer masked as it was", signal);
}

static void *caller(void *index)
{
    sigset_t own;
    if (blocks) {
        sigset_t wanted;
        (alone ? sigemptyset : sigfillset)(&wanted);
        sigaddset(&wanted, SIGTRAP);
        pthread_sigmask(SIG_SETMASK, &wanted, NULL);
    }
    pthread_sigmask(SIG_BLOCK, NULL, &own);
    pthread_barrier_wait(&gate);
    for (long i = 0; i < calls_each; i++) {
        call_and_check(probed, (long)index * calls_each + i);
        if (i % 64 == 0)
            check_mask(&own);
    }
    check_mask(&own);
    calls += calls_each;
    return NULL;
}

/* Whether it works; and, once nobody traces us, whether it is ours: until then it leads to ours by way of a guard. */
static void check_disposition(const struct sigaction *installed, bool untraced)
{
    struct sigaction action;
    sigaction(SIGTRAP, NULL, &action);
    if (!untraced)
        action = *installed;
    if (action.sa_sigaction != installed->sa_sigaction || action.sa_flags != installed->sa_flags)
        give_up(BAD_RESULT, "SIGTRAP's disposition is no longer the program's");
    if (!sigismember(&action.sa_mask, SIGUSR2) != !blocks || sigismember(&action.sa_mask, SIGUSR1))
        give_up(BAD_RESULT, "the mask of SIGTRAP's handler has changed");
    int before = own_traps;
    raise(SIGTRAP);
    if (own_traps != before + blocks)
        give_up(BAD_RESULT, "the program's handler ran %d times", own_traps);
}

int main(int argc, char **argv)
{
    if (argc != 4)
        give_up(2, "usage: block_sigtrap blocked|alone|ignored THREADS CALLS");
    limit_life();
    probed = find_probed("probed_lea");
    alone = strcmp(argv[1], "alone") == 0;
    blocks = alone || strcmp(argv[1], "blocked") == 0;
    long threads = number(argv[2]);
    calls_each = number(argv[3]);
    struct sigaction installed = {.sa_sigaction = on_trap, .sa_flags = SA_SIGINFO | SA_RESTART};
    sigaddset(&installed.sa_mask, SIGUSR2);
    if (!blocks)
        installed = (struct sigaction){.sa_handler = SIG_IGN};
    sigaction(SIGTRAP, &installed, NULL);
    sigaction(SIGTRAP, NULL, &installed);
    pthread_t thread[threads];
    pthread_barrier_init(&gate, NULL, threads + 1);
    for (long i = 0; i < threads; i++)
        start_thread(&thread[i], caller, (void *)i);
    say("ready");
    await_byte();
    pthread_barrier_wait(&gate);
    for (long i = 0; i < threads; i++)
        pthread_join(thread[i], NULL);
    check_disposition(&installed, false);
    say("calls=%lu", calls);
    await_byte();
    check_disposition(&installed, true);
    return 0;
}
