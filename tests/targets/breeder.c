/* breeder: three threads make and join short threads until the program is told to end.
 * Protocol: "ready", byte, "made=N", exit 0. */
#include "common.h"

static atomic_bool over;
static atomic_long made;

static void *nothing(void *argument)
{
    return argument;
}

static void *breed(void *unused)
{
    while (!over) {
        pthread_t thread;
        start_thread(&thread, nothing, NULL);
        pthread_join(thread, NULL);
        made++;
    }
    return unused;
}

int main(void)
{
    pthread_t breeders[3];
    limit_life();
    for (int i = 0; i < 3; i++)
        start_thread(&breeders[i], breed, NULL);
    say("ready");
    await_byte();
    over = true;
    for (int i = 0; i < 3; i++)
        pthread_join(breeders[i], NULL);
    say("made=%ld", made);
    return 0;
}
