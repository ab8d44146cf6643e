"""The memory of a guard, as guard.c sees it: code, then what the program may write, then lists and rows of traps."""

import struct
from collections.abc import Sequence
from typing import Final

import attrs

from ubpx.core.values import PAGE_SIZE, VirtAddr
from ubpx_ptracepp.abi import ALL_BUT_FAULTS, X86_64, Abi
from ubpx_ptracepp.guard.code import IMAGES

MAGIC: Final = b"ubpx guard 1\n\0\0\0"
SIZE: Final = 16 * PAGE_SIZE
"""Bytes of a guard; the rows of more traps than fit there have areas of their own."""
ACTION_AT: Final = 0x20
"""The action that we install, in the first page."""
ACTION_ROOM: Final = 32
BEFORE_AT: Final = PAGE_SIZE
"""The program's own action, in the page that it may write."""
FOUND_AT: Final = BEFORE_AT + 64
"""What was installed when we took ours away."""
LIST_AT: Final = 2 * PAGE_SIZE
AREAS_AT: Final = LIST_AT + 8
MANY_AREAS: Final = 128
AREA: Final = struct.Struct("<QQ")
TASKS_AT: Final = AREAS_AT + MANY_AREAS * AREA.size
MANY_TASKS: Final = 32
TASK: Final = struct.Struct("<QQQ")
FRAME_AT: Final = 3 * PAGE_SIZE
ROWS_AT: Final = 4 * PAGE_SIZE
ROW_SIZE: Final = 8
NO_TRAP: Final = 1 << 8
"""A row that tells of no trap; 0 would be the end of them."""

SLOTS, ROWS, COMING = 0, 1, 2
"""What lies in an area, in the low bits of its size; COMING: rows, once it is mapped."""
STANDING: Final = 1 << 63
"""In a row: the trap stands. Else it has stood, and threads may still come from there."""

SA_SIGINFO, SA_RESTORER, SA_ONSTACK, SA_NODEFER = 4, 0x0400_0000, 0x0800_0000, 0x4000_0000
_KEPT_FLAGS: Final = SA_ONSTACK | SA_NODEFER | 0x1000_0000  # SA_RESTART
SIG_DFL, SIG_IGN = 0, 1
_HEAD: Final = struct.Struct("<16sIII")


@attrs.frozen(kw_only=True)
class Action:
    """The kernel's sigaction."""

    handler: int
    flags: int
    restorer: int
    mask: int

    @property
    def is_handler(self) -> bool:
        """Code of somebody's, neither SIG_DFL nor SIG_IGN."""
        return self.handler > SIG_IGN

    def pack(self, abi: Abi) -> bytes:
        """As a system call of that ABI takes it."""
        return _action(abi).pack(self.handler, self.flags, self.restorer, self.mask)


def _action(abi: Abi) -> struct.Struct:
    return struct.Struct("<QQQQ" if abi is X86_64 else "<IIIQ")


def unpack_action(data: bytes, abi: Abi) -> Action:
    """What the kernel has written; ``data`` may be longer."""
    handler, flags, restorer, mask = _action(abi).unpack_from(data)
    return Action(handler=handler, flags=flags, restorer=restorer, mask=mask)


def image(abi: Abi) -> bytes:
    """The code for programs of that ABI."""
    return IMAGES[abi.name]


def gate_at(abi: Abi) -> int:
    """Offset of a system call instruction behind which the thread returns by a frame."""
    return _offsets(abi)[1]


def our_action(abi: Abi, address: VirtAddr, before: Action | None = None) -> Action:
    """What has the guard at ``address`` called; ``before`` is the program's own handler, if it has one."""
    handler, _, restorer = _offsets(abi)
    if before is None:
        flags = SA_SIGINFO | SA_RESTORER | SA_ONSTACK | SA_NODEFER
        return Action(handler=address + handler, flags=flags, restorer=address + restorer, mask=ALL_BUT_FAULTS)
    flags = SA_SIGINFO | SA_RESTORER | before.flags & _KEPT_FLAGS
    has_restorer = before.flags & SA_RESTORER  # then no frame of its handler leads to us
    back = before.restorer if has_restorer else address + restorer
    return Action(handler=address + handler, flags=flags, restorer=back, mask=before.mask)


def _offsets(abi: Abi) -> tuple[int, int, int]:
    """Of the handler, of the gate, of the restorer."""
    _, handler, gate, restorer = _HEAD.unpack_from(image(abi))
    return handler, gate, restorer


def row(address: int, original: int, *, standing: bool) -> int:
    """A trap, and the byte that is the program's own."""
    return address << 8 | original | (STANDING if standing else 0)


def standing_rows(traps: Sequence[tuple[VirtAddr, bytes]]) -> bytes:
    """The rows of traps that stand: at once, because there may be a million."""
    return struct.pack(f"<{len(traps)}Q", *[address << 8 | own[0] | STANDING for address, own in traps])


def unpack_row(value: int) -> tuple[VirtAddr, int, bool]:
    """Address, original byte, whether it stands."""
    return VirtAddr((value & ~STANDING) >> 8), value & 0xFF, bool(value & STANDING)
