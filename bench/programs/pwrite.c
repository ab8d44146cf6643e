/* The yardstick of arming: one pwrite of the trap's byte for each place, and nothing else.
 *
 * pwrite PID: reads addresses from standard input, one a line. Prints "COUNT ARM DISARM": how many, the nanoseconds for
 * writing all traps, and for writing all original bytes. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

enum { MOST = 1 << 20 };
static off_t places[MOST];
static unsigned char originals[MOST];

static long nanoseconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000L + now.tv_nsec;
}

static void write_byte(int memory, off_t address, unsigned char byte)
{
    if (pwrite(memory, &byte, 1, address) != 1) {
        perror("pwrite");
        exit(1);
    }
}

int main(int argc, char **argv)
{
    char path[64];
    unsigned long address;
    long count = 0;
    if (argc != 2)
        return 2;
    snprintf(path, sizeof path, "/proc/%s/mem", argv[1]);
    int memory = open(path, O_RDWR | O_CLOEXEC);
    while (count < MOST && scanf("%lx", &address) == 1) {
        places[count] = (off_t)address;
        if (pread(memory, &originals[count], 1, places[count]) != 1) {
            perror(path);
            return 1;
        }
        count++;
    }
    long began = nanoseconds();
    for (long i = 0; i < count; i++)
        write_byte(memory, places[i], 0xcc);
    long armed = nanoseconds();
    for (long i = 0; i < count; i++)
        write_byte(memory, places[i], originals[i]);
    printf("%ld %ld %ld\n", count, armed - began, nanoseconds() - armed);
    return 0;
}
