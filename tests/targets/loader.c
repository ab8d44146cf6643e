/* loader LIBRARY: "o" opens LIBRARY, "c" closes it, "g" calls its plugin_function(N) ten times while it is open.
 * Protocol: "ready", then "opened", "closed" or "calls=N" (all calls so far), "q": exit 0. */
#include "common.h"
#include <dlfcn.h>

int main(int argc, char **argv)
{
    if (argc != 2)
        give_up(2, "usage: loader LIBRARY");
    limit_life();
    say("ready");
    void *library = NULL;
    long (*function)(long) = NULL;
    long calls = 0;
    for (int byte; (byte = await_byte()) != 'q';) {
        if (byte == 'o') {
            library = dlopen(argv[1], RTLD_NOW);
            if (!library)
                give_up(BAD_SYSCALL, "dlopen: %s", dlerror());
            function = (long (*)(long))dlsym(library, "plugin_function");
            say("opened");
        } else if (byte == 'c') {
            dlclose(library);
            function = NULL;
            say("closed");
        } else if (byte == 'g') {
            for (long i = 0; i < 10; i++, calls++)
                if (function(i) != i + 1)
                    give_up(BAD_RESULT, "a call gave a wrong result");
            say("calls=%ld", calls);
        }
    }
    return 0;
}
