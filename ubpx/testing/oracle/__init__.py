"""The processor itself as an oracle: a tiny traced program that runs one instruction at a time.

``processor`` has the program and moves it, ``layout`` says what is mapped in it, ``routes`` runs one
instruction in place and by every strategy, ``forms`` lists what instructions there are, and ``cases``
gives them operands. Linux on x86_64 only; no compiler, no plugin and no tracer of ours is used.
"""
