"""A tracer by hand in Python: what the one in C does, by ctypes as most people write it down."""

import ctypes
import os
from pathlib import Path

from interface import Armed, Place, main

TITLE = "Python tracer by hand (ctypes)"
CALLS = 10_000

POKEUSER, CONT, GETREGS, DETACH, SEIZE = 6, 7, 12, 17, 0x4206
SETREGS = 13
RIP = 16
"""Which of the 27 words of user_regs_struct."""
TRAPPED = 0x057F
"""The wait status of a thread that a SIGTRAP has stopped."""


def serve(place: Place, armed: Armed) -> int:
    """One stop a hit: the copy of the instruction lies ready."""
    libc = ctypes.CDLL(None, use_errno=True)
    ptrace = libc.ptrace
    ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    ptrace.restype = ctypes.c_long
    registers = (ctypes.c_ulong * 27)()
    buffer = ctypes.addressof(registers)
    pid, trap, slot = place.pid, place.address + 1, place.slot
    if ptrace(SEIZE, pid, None, None):
        raise OSError(ctypes.get_errno(), "SEIZE")
    with Path(f"/proc/{pid}/mem").open("r+b", buffering=0) as memory:
        originals = {}
        for address in (place.address, place.over):
            memory.seek(address)
            originals[address] = memory.read(1)
            memory.seek(address)
            memory.write(b"\xcc")
        armed()
        hits = 0
        while True:
            _, status = os.waitpid(pid, 0)
            if status != TRAPPED:
                raise RuntimeError(f"the program did something else: {status:#x}")
            ptrace(GETREGS, pid, None, buffer)
            if registers[RIP] != trap:
                break
            hits += 1
            ptrace(POKEUSER, pid, RIP * 8, slot)
            ptrace(CONT, pid, None, None)
        for address, byte in originals.items():
            memory.seek(address)
            memory.write(byte)
    registers[RIP] = place.over
    ptrace(SETREGS, pid, None, buffer)
    ptrace(DETACH, pid, None, None)
    return hits


if __name__ == "__main__":
    main(serve)
