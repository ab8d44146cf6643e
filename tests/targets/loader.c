/* loader LIBRARY: "o" opens LIBRARY, "c" closes it, "g" calls its plugin_function(N) ten times while it is open;
 * "O", "C" and "G" do the same with one in a namespace of its own (dlmopen).
 * Protocol: "ready", then "opened", "closed" or "calls=N" (all calls so far), "q": exit 0. */
#include "common.h"
#include <dlfcn.h>

int main(int argc, char **argv)
{
    if (argc != 2)
        give_up(2, "usage: loader LIBRARY");
    limit_life();
    say("ready");
    void *libraries[2] = {NULL, NULL};
    long (*functions[2])(long) = {NULL, NULL};
    long calls = 0;
    for (int byte; (byte = await_byte()) != 'q';) {
        int which = byte >= 'A' && byte <= 'Z';
        if (byte == 'o' || byte == 'O') {
            libraries[which] = which ? dlmopen(LM_ID_NEWLM, argv[1], RTLD_NOW) : dlopen(argv[1], RTLD_NOW);
            if (!libraries[which])
                give_up(BAD_SYSCALL, "dlopen: %s", dlerror());
            functions[which] = (long (*)(long))dlsym(libraries[which], "plugin_function");
            say("opened");
        } else if (byte == 'c' || byte == 'C') {
            dlclose(libraries[which]);
            functions[which] = NULL;
            say("closed");
        } else if (byte == 'g' || byte == 'G') {
            for (long i = 0; i < 10; i++, calls++)
                if (functions[which](i) != i + 1)
                    give_up(BAD_RESULT, "a call gave a wrong result");
            say("calls=%ld", calls);
        }
    }
    return 0;
}
