"""The program that ``ubpx bench`` probes. It knows nothing of ubpx, and runs as a script.

It has libc's ``lfind`` call libc's ``toascii`` so many times: a loop in machine code, of calls of a function that has a
symbol; no compiler is needed. ``toascii`` never says "found" here, so each ``lfind`` makes as many calls as it is told.

It talks by lines. It says ``ready``, or ``missing NAME`` where this C library has not what is needed; for ``run N`` it
makes N calls and says how many nanoseconds they took; for ``echo`` it says ``echo``. Upon the end of its input it ends.
"""

import ctypes
import sys
import time
from collections.abc import Callable

KEY = 0x41
"""What is looked for, in a list that has nothing else: toascii gives it back, which is not nought."""


def find_loop() -> Callable[[int], int]:
    """Makes so many calls; how many nanoseconds that took. Raises AttributeError where there is no such function."""
    libc = ctypes.CDLL(None)
    lfind, function = libc.lfind, ctypes.cast(libc.toascii, ctypes.c_void_p)
    lfind.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
    lfind.restype = ctypes.c_void_p
    clock = time.perf_counter_ns

    def loop(calls: int) -> int:
        number = ctypes.c_size_t(calls)
        began = clock()
        found = lfind(KEY, KEY, ctypes.byref(number), 0, function)
        ended = clock()
        if found is not None:
            raise RuntimeError("toascii gave a wrong result")
        return ended - began

    return loop


def say(line: str) -> None:
    """To whoever started us."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> None:
    """Serve until the end of the input."""
    try:
        loop = find_loop()
    except AttributeError as error:
        say(f"missing {str(error).rpartition(' ')[2]}")
        return
    say("ready")
    for line in sys.stdin:
        order, _, calls = line.partition(" ")
        say(str(loop(int(calls))) if order == "run" else "echo")


if __name__ == "__main__":
    main()
