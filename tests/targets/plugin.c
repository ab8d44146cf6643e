/* A library that loader opens; its constructor calls its function once before dlopen returns. Nobody calls its
 * restartable sequence. */
#include "common.h"
#include "sequences.h"

ADD_ONE(plugin_function);
#ifdef __x86_64__
FUNCTION(plugin_sequence, "lea plugin_sequence_descriptor(%rip), %rax\n mov %rax, %fs:8(%rsi)\n"
                          "plugin_sequence_start: incq (%rdi)\nplugin_sequence_post: ret\n"
                          ABORT(plugin_sequence, "nop") SEQUENCE(plugin_sequence));
#endif
long plugin_function(long);

__attribute__((constructor)) static void initialise(void)
{
    if (plugin_function(0) != 1)
        give_up(BAD_RESULT, "the constructor's call gave a wrong result");
}
