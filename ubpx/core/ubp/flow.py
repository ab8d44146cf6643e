"""Where control goes from each x86 instruction, and what it uses next to the code: for proofs of boundaries.

Source: Intel SDM volume 2 (jmp, jcc, call, loop, xbegin, ud, ret), volume 1 section 3.6 (operand sizes).
"""

import re
from collections.abc import Iterator
from typing import Final

from ubpx.core.ubp.decode import LONGEST_INSN, Decoder
from ubpx.core.ubp.encoding import ADDRESS_SIZE, Encoding, Form, parse, signed
from ubpx.core.ubp.plans import Flow
from ubpx.core.ubp.x86 import RELATIVE, InsnClass, branch_target, insn_class
from ubpx.core.values import VirtAddr

_PREFIXES: Final = re.compile(rb"[\x26\x2e\x36\x3e\x64-\x67\xf0\xf2\xf3]*")
# Most instructions do nothing of interest, which their first bytes tell; only the others are taken apart.
_MAY_LEAVE: Final = re.compile(
    rb"[\x26\x2e\x36\x3e\x64-\x67\xf0\xf2\xf3\x40-\x4f]*"
    rb"(?:[\x70-\x7f\x9a\xc2\xc3\xca\xcb\xcf\xe0-\xe3\xe8-\xeb\xf4\xff]|\x0f[\x07\x0b\x35\x80-\x8f\xb9\xff]|\xc7\xf8)"
)
_MAY_USE: Final = re.compile(
    rb".+(?:[\x05\x0d\x15\x1d\x25\x2d\x35\x3d]|[\x04\x0c\x14\x1c\x24\x2c\x34\x3c]"
    rb"[\x05\x0d\x15\x1d\x25\x2d\x35\x3d\x45\x4d\x55\x5d\x65\x6d\x75\x7d"
    rb"\x85\x8d\x95\x9d\xa5\xad\xb5\xbd\xc5\xcd\xd5\xdd\xe5\xed\xf5\xfd]).{4}|[^\xa0-\xa3]?[\xa0-\xa3].{4}",
    re.DOTALL,
)

_WITH_TARGET: Final = RELATIVE | {InsnClass.COUNTED_BRANCH}
_CALLS: Final = frozenset({InsnClass.CALL, InsnClass.INDIRECT_CALL})
_NEVER_BEHIND: Final = frozenset(
    {(0, 0x9A), (0, 0xCA), (0, 0xCB), (0, 0xCF), (0, 0xEA), (0, 0xF4)}  # far, iret, hlt
    | {(1, 0x07), (1, 0x0B), (1, 0x35), (1, 0xB9), (1, 0xFF)}  # sysret, ud2, sysexit, ud1, ud0
)
_LEA: Final = (0, 0x8D)
_SEGMENTS: Final = frozenset({0x64, 0x65})  # fs, gs: their operands are the thread's


def flow(decoder: Decoder, bits: int, code: bytes, address: VirtAddr) -> Iterator[Flow]:
    """See ``Architecture.flow``."""
    offset = 0
    while (decoded := decoder.decode(code[offset : offset + LONGEST_INSN], address + offset)) is not None:
        raw = code[offset : offset + decoded.length]
        start = VirtAddr(address + offset)
        offset += decoded.length
        end = VirtAddr(address + offset)
        if _MAY_LEAVE.match(raw) or _MAY_USE.match(raw):
            found = _flow(raw, bits, start, end)
            if found is None:
                return
            yield found
        else:
            yield Flow(start, end, prefixes=_prefixes(raw))


def _flow(raw: bytes, bits: int, start: VirtAddr, end: VirtAddr) -> Flow | None:
    """None for a branch whose length processors disagree on."""
    encoding = parse(raw, bits)
    kind = insn_class(encoding)
    where = (encoding.opcode_map, encoding.opcode) if encoding.form is Form.LEGACY else None
    if encoding.narrow and kind in _WITH_TARGET:
        return None
    target = VirtAddr(branch_target(encoding, end)) if kind in _WITH_TARGET else None
    far_jump = where == (0, 0xFF) and encoding.reg == 5
    stays = kind in (InsnClass.JUMP, InsnClass.LEAVES) or far_jump or where in _NEVER_BEHIND
    operand = None if kind is InsnClass.NOP or where in _NEVER_BEHIND else _operand(encoding, end)
    return Flow(
        start,
        end,
        target=target,
        falls_through=not stays,
        calls=kind in _CALLS,
        operand=operand,
        touches=operand is not None and where != _LEA,
        prefixes=_prefixes(raw),
    )


def _operand(encoding: Encoding, end: VirtAddr) -> VirtAddr | None:
    """The operand's address where the instruction itself says it, an index register aside."""
    if encoding.prefixes & _SEGMENTS or (encoding.bits == 32 and ADDRESS_SIZE in encoding.prefixes):
        return None
    relative = encoding.operand_address(end)
    if relative is not None:
        return VirtAddr(relative)
    raw, at = encoding.raw, encoding.modrm_at
    if encoding.modrm is None:
        moves = encoding.bits == 32 and encoding.form is Form.LEGACY and encoding.opcode_map == 0
        return _absolute(raw[-4:], 32) if moves and encoding.opcode in range(0xA0, 0xA4) else None
    if encoding.modrm & 0xC7 == 0x05:  # 32-bit code
        return _absolute(raw[at + 1 : at + 5], encoding.bits)
    if encoding.modrm & 0xC7 == 0x04 and raw[at + 1] & 7 == 5:  # SIB without a base: a table's address
        return _absolute(raw[at + 2 : at + 6], encoding.bits)
    return None


def _absolute(displacement: bytes, bits: int) -> VirtAddr:
    return VirtAddr(signed(displacement) & (1 << bits) - 1)


def _prefixes(raw: bytes) -> int:
    found = _PREFIXES.match(raw)
    return found.end() if found else 0
