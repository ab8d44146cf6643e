"""Where control goes from each x86 instruction, and what it uses next to the code: for proofs of boundaries.

Source: Intel SDM volume 2 (jmp, jcc, call, loop, xbegin, ud, ret), volume 1 section 3.6 (operand sizes).
"""

import re
from collections.abc import Iterator
from typing import Final

from ubpx.core.ubp.decode import LONGEST_INSN, Decoder
from ubpx.core.ubp.encoding import ADDRESS_SIZE, PREFIXES, Encoding, Form, one_of, parse, signed
from ubpx.core.ubp.plans import Flow
from ubpx.core.ubp.x86 import BRANCHING, RELATIVE, InsnClass, branch_target, calls, falls_through, insn_class
from ubpx.core.values import VirtAddr

_PREFIXES: Final = re.compile(one_of(PREFIXES) + b"*")
# Most instructions do nothing of interest, which their first bytes tell; only the others are taken apart.
_MAY_LEAVE: Final = re.compile(
    one_of(PREFIXES | frozenset(range(0x40, 0x50)))
    + b"*(?:"
    + one_of(opcode for opcode_map, opcode in BRANCHING if opcode_map == 0)
    + rb"|\x0f"
    + one_of(opcode for opcode_map, opcode in BRANCHING if opcode_map == 1)
    + rb"|\xc7\xf8)"
)
_WITHOUT_BASE: Final = one_of(range(0x05, 0x100, 8))
"""SIB bytes without a base, if ModRM.mod is 00."""
_MAY_USE: Final = re.compile(
    b".+(?:"
    + one_of(range(0x05, 0x40, 8))
    + b"|"
    + one_of(range(0x04, 0x40, 8))
    + _WITHOUT_BASE
    + b").{4}|"
    + one_of(PREFIXES)
    + rb"*[\xa0-\xa3].{4}",
    re.DOTALL,
)

_WITH_TARGET: Final = RELATIVE | {InsnClass.COUNTED_BRANCH}
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
            found = flow_of(raw, bits, start, end)
            if found is None:
                return
            yield found
        else:
            yield Flow(start, end, prefixes=_prefixes(raw))


def flow_of(raw: bytes, bits: int, start: VirtAddr, end: VirtAddr) -> Flow | None:
    """Of exactly one instruction; None for a branch whose length processors disagree on."""
    encoding = parse(raw, bits)
    kind = insn_class(encoding)
    if encoding.narrow and kind in _WITH_TARGET:
        return None
    target = VirtAddr(branch_target(encoding, end)) if kind in _WITH_TARGET else None
    operand = None if kind is InsnClass.NOP else _operand(encoding, end)
    return Flow(
        start,
        end,
        target=target,
        falls_through=falls_through(encoding, kind),
        calls=calls(encoding, kind),
        operand=operand,
        touches=operand is not None and not _is_lea(encoding),
        prefixes=_prefixes(raw),
    )


def _is_lea(encoding: Encoding) -> bool:
    return encoding.form is Form.LEGACY and (encoding.opcode_map, encoding.opcode) == (0, 0x8D)


def _operand(encoding: Encoding, end: VirtAddr) -> VirtAddr | None:
    """The operand's address where the instruction itself says it, an index register aside."""
    if encoding.prefixes & _SEGMENTS or (encoding.bits == 32 and ADDRESS_SIZE in encoding.prefixes):
        return None
    relative = encoding.operand_address(end)
    if relative is not None or encoding.on_register:
        return None if relative is None else VirtAddr(relative)
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
