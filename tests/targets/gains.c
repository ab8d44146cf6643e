/* gains [again]: calls answer() for lines on standard input as echo does; at "e PATH" it execs PATH, which is a
 * copy of it that may be set-uid: that says "again=EFFECTIVE_UID", and answers on. "m" prints whether canary, which
 * is never written here, is as it was ("kept=1"); "w PATH": another thread execs PATH once PATH.go is there;
 * "t PATH": the same, and this one pushes a word with its stack in canary meanwhile; "q": exit 0; "x N": exit N.
 * "f PATH": forks a child that calls answer(40), says it, and execs PATH; "child=gone" when that has exited with 0.
 * Built with -no-pie, answer and canary have the same addresses in all copies. */
#include "common.h"

FUNCTION(answer, "lea 1(%rdi), %rax\n ret");
long answer(long);

enum { WORDS = 512, PATTERN = 0x5a };
/* A page and more, written by nobody. */
volatile unsigned char canary[WORDS * 8] __attribute__((aligned(4096))) = {[0 ... WORDS * 8 - 1] = PATTERN};

/* Where a thread of the program is sent that somebody else has written the registers of: exit status 77 as root. */
FUNCTION(hijacked, "mov $107, %eax\n syscall\n cmp $1, %eax\n mov $76, %edi\n adc $0, %edi\n mov $231, %eax\n syscall");
FUNCTION(pivot, "mov %rsp, %rax\n lea canary+2048(%rip), %rsp\n jmp probed_pivot");
FUNCTION(probed_pivot, "push %rbp\n pop %rbp\n mov %rax, %rsp\n ret");
void pivot(void);

static void *replace_when_told(void *path)
{
    char told[512];
    snprintf(told, sizeof told, "%s.go", (char *)path);
    while (access(told, F_OK) != 0)
        usleep(50);
    execl(path, "gains", "again", NULL);
    give_up(BAD_SYSCALL, "exec: %s", strerror(errno));
    return path;
}

static void read_line(char *line, size_t size)
{
    size_t used = 0;
    for (int byte; (byte = await_byte()) != '\n';)
        if (used + 1 < size)
            line[used++] = (char)byte;
    line[used] = 0;
}

static int canary_is_kept(void)
{
    for (size_t i = 0; i < sizeof canary; i++)
        if (canary[i] != PATTERN)
            return 0;
    return 1;
}

int main(int argc, char **argv)
{
    char line[400], path[400];
    pthread_t thread;
    pid_t child;
    limit_life();
    if (argc > 1)
        say("again=%d", (int)geteuid());
    else
        say("ready");
    for (;;) {
        read_line(line, sizeof line);
        switch (line[0]) {
        case 'q':
            return 0;
        case 'x':
            return (int)number(line + 2);
        case 'm':
            say("kept=%d", canary_is_kept());
            break;
        case 't':
            start_thread(&thread, replace_when_told, line + 2);
            pivot();
            pthread_join(thread, NULL);
            break;
        case 'w':
            strcpy(path, line + 2);
            start_thread(&thread, replace_when_told, path);
            say("waits");
            break;
        case 'f':
            child = fork();
            if (child != 0) {
                reap(child, 0, "a child that execs");
                say("child=gone");
                break;
            }
            limit_life();
            say("answer=%ld", answer(40));
            /* fall through */
        case 'e':
            execl(line + 2, argv[0], "again", NULL);
            give_up(BAD_SYSCALL, "exec: %s", strerror(errno));
            break;
        default:
            say("answer=%ld", answer(number(line)));
        }
    }
}
