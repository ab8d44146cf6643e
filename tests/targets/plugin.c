/* A library that loader opens; its constructor calls its function once before dlopen returns. */
#include "common.h"

FUNCTION(plugin_function, "lea 1(%rdi), %rax\n ret");
long plugin_function(long);

__attribute__((constructor)) static void initialise(void)
{
    if (plugin_function(0) != 1)
        give_up(BAD_RESULT, "the constructor's call gave a wrong result");
}
