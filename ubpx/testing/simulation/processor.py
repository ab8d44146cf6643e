"""A processor of a few instructions: what simulated threads execute, in place or in a slot, from memory as it is."""

from typing import Final

from ubpx.core.ports import Memory
from ubpx.testing.script import PC, POSITIONS, FakeThread

SP: Final = POSITIONS["rsp"]
_MASK: Final = 0xFFFF_FFFF_FFFF_FFFF
_COUNTERS: Final = {
    bytes.fromhex("4d 8d 64 24 01"): POSITIONS["r12"],  # lea 1(%r12), %r12
    bytes.fromhex("4d 8d 6d 01"): POSITIONS["r13"],  # lea 1(%r13), %r13
}
_LONGEST: Final = 5
_LONG_NOP: Final = bytes.fromhex("0f 1f 40 00")


class Garbage(Exception):
    """A thread stands where no instruction of the program's, or of a copy's, begins."""


def execute(thread: FakeThread, memory: Memory) -> bool:
    """Run one instruction; False: it was a trap, and the PC stands behind it.

    Raises Garbage, MemoryFault.
    """
    registers = thread.registers
    pc = registers[PC]
    code = memory.read(pc, _LONGEST)
    match code[0]:
        case 0xCC:
            registers[PC] = pc + 1
            return False
        case 0x90:
            registers[PC] = pc + 1
        case 0x0F if code[:4] == _LONG_NOP:
            registers[PC] = pc + 4
        case 0x55:
            _push(registers, memory, registers[POSITIONS["rbp"]])
            registers[PC] = pc + 1
        case 0xE8:
            _push(registers, memory, pc + _LONGEST)
            registers[PC] = _target(pc, code)
        case 0xE9:
            registers[PC] = _target(pc, code)
        case _:
            _count(registers, pc, code)
    return True


def _count(registers: list[int], pc: int, code: bytes) -> None:
    for size in (5, 4):
        counter = _COUNTERS.get(code[:size])
        if counter is not None:
            registers[counter] += 1
            registers[PC] = pc + size
            return
    raise Garbage(f"{code.hex(' ')} at {pc:#x} is no instruction that it could have come to")


def _push(registers: list[int], memory: Memory, value: int) -> None:
    memory.write(registers[SP] - 8, (value & _MASK).to_bytes(8, "little"))
    registers[SP] -= 8


def _target(pc: int, code: bytes) -> int:
    return pc + _LONGEST + int.from_bytes(code[1:5], "little", signed=True)
