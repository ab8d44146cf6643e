/* squatter: harms all executable memory without a file that others have mapped in it.
 * "s" fills it with a jump to itself, "f" with ud2, "u" unmaps it, "o" unmaps it and maps data of its own there: "harmed=N" areas.
 * "g" calls probed_lea() ten times: "calls=N", if its data are as it wrote them; "q": exit 0. */
#include "common.h"
#include <fcntl.h>
#include <sys/mman.h>

enum { MOST = 16 };
ADD_ONE(probed_lea);
long probed_lea(long);

static struct area { unsigned char *start; size_t size; } areas[MOST];
static int owned;

static int find_areas(void)
{
    static char text[1 << 16];
    int file = open("/proc/self/maps", O_RDONLY), count = 0;
    ssize_t size = 0, got;
    while ((got = read(file, text + size, sizeof text - 1 - size)) > 0)
        size += got;
    close(file);
    text[size] = 0;
    for (char *line = text; *line && count < MOST; line = strchr(line, '\n') + 1) {
        unsigned long start, end, inode;
        char permissions[5];
        int length = 0;
        sscanf(line, "%lx-%lx %4s %*x %*x:%*x %lu%n", &start, &end, permissions, &inode, &length);
        if (permissions[2] == 'x' && inode == 0 && line[length + strspn(line + length, " ")] == '\n')
            areas[count++] = (struct area){(unsigned char *)start, end - start};
    }
    return count;
}

static void fill(struct area *area, const char *two_bytes)
{
    if (mprotect(area->start, area->size, PROT_READ | PROT_WRITE | PROT_EXEC))
        give_up(BAD_SYSCALL, "mprotect: %s", strerror(errno));
    for (size_t i = 0; i < area->size; i++)
        area->start[i] = two_bytes[i % 2];
}

static void harm(struct area *area, int how)
{
    if (how == 's' || how == 'f') {
        fill(area, how == 's' ? "\xeb\xfe" : "\x0f\x0b");
        return;
    }
    if (munmap(area->start, area->size))
        give_up(BAD_SYSCALL, "munmap: %s", strerror(errno));
    if (how == 'u')
        return;
    void *data = mmap(area->start, area->size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    if (data != area->start)
        give_up(BAD_SYSCALL, "mmap: %s", strerror(errno));
    memset(data, 0x5a, area->size);
    owned++;
}

int main(void)
{
    long calls = 0;
    limit_life();
    say("ready");
    for (int byte; (byte = await_byte()) != 'q';) {
        if (byte == 'g') {
            for (long i = 0; i < 10; i++, calls++)
                if (probed_lea(i) != i + 1)
                    give_up(BAD_RESULT, "a call gave a wrong result");
            for (int at = 0; at < owned; at++)
                for (size_t i = 0; i < areas[at].size; i++)
                    if (areas[at].start[i] != 0x5a)
                        give_up(BAD_RESULT, "byte %zu of our data is another", i);
            say("calls=%ld", calls);
            continue;
        }
        int count = find_areas();
        for (int at = 0; at < count; at++)
            harm(&areas[at], byte);
        say("harmed=%d", count);
    }
    return 0;
}
