/* Restartable sequences (rseq) as the kernel wants them, between labels NAME_start and NAME_post of a function NAME. */
#ifndef UBPX_TARGETS_SEQUENCES_H
#define UBPX_TARGETS_SEQUENCES_H

/* struct rseq_cs: version, flags, start, length, abort handler. */
#define SEQUENCE(name)                                                                     \
    ".pushsection __rseq_cs, \"aw\"\n.balign 32\n" #name "_descriptor: .long 0, 0\n"       \
    ".quad " #name "_start, " #name "_post - " #name "_start, " #name "_abort\n.popsection\n" \
    ".pushsection __rseq_cs_ptr_array, \"aw\"\n.quad " #name "_descriptor\n.popsection\n"
/* The kernel wants the signature in front of an abort handler: an ud1 whose operand it is. */
#define ABORT(name, body)                                                                       \
    ".byte 0x0f, 0xb9, 0x3d\n.long 0x53053053\n" #name "_abort: " body "\n jmp " #name "\n"

#endif
