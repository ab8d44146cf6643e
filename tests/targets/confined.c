/* confined: a seccomp filter kills it if it maps, unmaps or protects memory. Calls answer(1), which is 2, for each byte
 * of its standard input and prints "answer=N"; "q": exit 0. */
#include "common.h"
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

ADD_ONE(answer);
long answer(long);

#define KILLS(number) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 1), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS)

static void confine(void)
{
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        KILLS(SYS_mmap), KILLS(SYS_munmap), KILLS(SYS_mprotect),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof filter / sizeof *filter, filter};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program))
        give_up(BAD_SYSCALL, "prctl: %s", strerror(errno));
}

int main(void)
{
    limit_life();
    confine();
    say("ready");
    while (await_byte() != 'q')
        say("answer=%ld", answer(1));
    return 0;
}
