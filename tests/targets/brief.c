/* brief MICROSECONDS STATUS: lives so long, then exits so. */
#include "common.h"

int main(int argc, char **argv)
{
    if (argc != 3)
        give_up(2, "usage: brief MICROSECONDS STATUS");
    limit_life();
    usleep((useconds_t)number(argv[1]));
    return (int)number(argv[2]);
}
