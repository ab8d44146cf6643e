"""The program that simulated threads run: a page of places to probe, each counting how often it ran, and a stack."""

from collections.abc import Callable
from typing import Final

import attrs

from ubpx.core.values import PAGE_SIZE, VirtAddr
from ubpx.testing.memory import FakeMemory
from ubpx.testing.script import PC, POSITIONS, FakeThread

TEXT: Final = 0x40_1000
STACK: Final = 0x7FFE_0000
STACK_SIZE: Final = 4 * PAGE_SIZE
_APART: Final = 32
COUNT, STEPPED, PUSH, CALL, NOP, ENTRY = (TEXT + _APART * number for number in range(6))
PLACES: Final = (COUNT, STEPPED, PUSH, CALL, NOP)
OPEN: Final = TEXT + 0x800
"""Code in which nothing is probed."""
HANDLER: Final = TEXT + 0x900
"""Where signals are handled."""
BY_NAME: Final = {
    "count": VirtAddr(COUNT),
    "stepped": VirtAddr(STEPPED),
    "push": VirtAddr(PUSH),
    "call": VirtAddr(CALL),
    "nop": VirtAddr(NOP),
}
_R12, _R13, _SP = POSITIONS["r12"], POSITIONS["r13"], POSITIONS["rsp"]
_MUST_RUN: Final = frozenset({*PLACES, ENTRY})


def _text() -> bytes:
    code = bytearray(b"\x90" * PAGE_SIZE)
    for place, insn in {
        COUNT: "4d 8d 64 24 01",  # lea 1(%r12), %r12: BOOST, or as one asks
        STEPPED: "4d 8d 6d 01",  # lea 1(%r13), %r13
        PUSH: "55",  # push %rbp: EMULATE; the PC of a hit proves nothing
        CALL: "e8 00 00 00 00",  # call the next instruction: EMULATE; a copy would push the slot's address
    }.items():  # NOP and ENTRY are what is everywhere: EMULATE by landing
        raw = bytes.fromhex(insn)
        code[place - TEXT : place - TEXT + len(raw)] = raw
    return bytes(code)


_CODE: Final = _text()


def image(kind: Callable[[], FakeMemory]) -> FakeMemory:
    """The memory of a program that has just started."""
    memory = kind()
    memory.map(TEXT, _CODE, permissions="r-xp", path="/bin/program")
    memory.map(STACK, bytes(STACK_SIZE), permissions="rw-p", path="[stack]")
    return memory


def text_of(memory: FakeMemory) -> bytes:
    """The program's code as it stands now."""
    return memory.read(TEXT, PAGE_SIZE)


def is_sound(memory: FakeMemory) -> bool:
    """Whether the code is what it was at the start."""
    return text_of(memory) == _CODE


@attrs.define(eq=False)
class Body:
    """What one simulated thread has done, by its own account. Owned by the kernel."""

    visits: dict[int, int] = attrs.field(factory=lambda: dict.fromkeys(PLACES, 0))
    """How often it has gone to each place."""
    frames: list[tuple[list[int], dict[int, int]]] = attrs.field(factory=list)
    """Of the signal handlers that run: registers and visits at that time."""
    owed: list[int] = attrs.field(factory=list)
    """Signals sent to it that have not reached it."""
    stepping: bool = False
    """It is let run for one instruction."""

    def copy(self) -> "Body":
        """Of a task that is made by this one."""
        frames = [(list(words), dict(visits)) for words, visits in self.frames]
        return Body(visits=dict(self.visits), frames=frames)

    def complaint(self, thread: FakeThread) -> str:
        """What it has done too often or too seldom; empty: nothing. It stands in open code."""
        registers, visits = thread.registers, self.visits
        pushed = visits[PUSH] + visits[CALL]
        for what, found, wanted in (
            ("the place count", registers[_R12], visits[COUNT]),
            ("the place stepped", registers[_R13], visits[STEPPED]),
            ("the places push and call", (STACK + STACK_SIZE - registers[_SP]) // 8, pushed),
        ):
            if found != wanted:
                return f"{what} ran {found} times in thread {thread.tid}, which came there {wanted} times"
        return ""


def begin(thread: FakeThread, pc: int = OPEN) -> None:
    """The registers of a thread that has done nothing yet."""
    thread.registers[PC], thread.registers[_SP] = pc, STACK + STACK_SIZE


def must_run(pc: int) -> bool:
    """Whether a thread there does what stands there next, rather than anything else."""
    return pc in _MUST_RUN or not TEXT <= pc < TEXT + PAGE_SIZE
