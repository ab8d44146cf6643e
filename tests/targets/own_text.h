/* Which addresses belong to the program: what was executable and mapped from files (or the
 * vdso) when the program started. A tracer's slots do not. */
#ifndef UBPX_TARGETS_OWN_TEXT_H
#define UBPX_TARGETS_OWN_TEXT_H

#include "common.h"

enum { RANGES = 32 };
static struct { unsigned long start, end; } own_text[RANGES];
static int own_ranges;

static inline void read_own_text(void)
{
    FILE *maps = fopen("/proc/self/maps", "re");
    char line[512];
    if (!maps)
        give_up(BAD_SYSCALL, "cannot open maps");
    while (fgets(line, sizeof line, maps)) {
        unsigned long start, end, inode;
        char permissions[8];
        if (sscanf(line, "%lx-%lx %7s %*x %*s %lu", &start, &end, permissions, &inode) != 4)
            give_up(BAD_RESULT, "cannot read maps");
        if (permissions[2] != 'x' || (inode == 0 && !strstr(line, "[v")) || own_ranges == RANGES)
            continue;
        own_text[own_ranges].start = start;
        own_text[own_ranges++].end = end;
    }
    fclose(maps);
}

static inline bool is_own_text(unsigned long address)
{
    for (int i = 0; i < own_ranges; i++)
        if (own_text[i].start <= address && address < own_text[i].end)
            return true;
    return false;
}

#endif
