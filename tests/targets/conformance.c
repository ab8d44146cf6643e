/* conformance: says where its site is, then obeys single bytes: "c" runs through the site and says
 * "called", "x" exits with 7. Says "signal=N" for SIGUSR1 and SIGUSR2. */
#include "common.h"
#include <signal.h>

#ifdef __i386__
FUNCTION(site, "nopl 0(%eax)");
#else
FUNCTION(site, "nopl 0(%rax)");
#endif
CONTINUATION(behind, "ret");
void site(void), behind(void);
char writable[16];

static void on_signal(int number)
{
    say("signal=%d", number);
}

int main(void)
{
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    limit_life();
    if (sigaction(SIGUSR1, &action, NULL) || sigaction(SIGUSR2, &action, NULL))
        give_up(BAD_SYSCALL, "sigaction: %s", strerror(errno));
    say("ready");
    say("site=%lu", (unsigned long)site);
    say("behind=%lu", (unsigned long)behind);
    say("writable=%lu", (unsigned long)writable);
    for (;;) {
        if (await_byte() == 'x')
            return 7;
        site();
        say("called");
    }
}
