"""Where the two disassemblers are known to disagree, and who is right.

Each entry is about bytes, not about one version of a library: when a library is mended, it is only
met no more. Found by going through all opcode maps with all mandatory prefixes, and by asking the
processor (Intel Xeon, Sapphire Rapids) for each; capstone 5.0, iced 1.21.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Final

import attrs

from ubpx.core.ubp.encoding import PREFIXES, one_of


@attrs.frozen
class Known:
    """One disagreement that has been looked into."""

    pattern: re.Pattern[bytes]
    """Of the instruction, from its start on."""
    what: str
    reason: str
    """Who is right, and what ubpx does."""
    processors_differ: bool = False
    """So that no processor's answer is everybody's."""


_PREFIXES: Final = one_of(PREFIXES) + b"*"
_REX: Final = rb"[\x40-\x4f]?"


def _known(opcode: bytes, what: str, reason: str, *, prefix: bytes = b"", processors_differ: bool = False) -> Known:
    """About ``opcode`` behind any prefixes, among which ``prefix`` must be."""
    leading = _PREFIXES + prefix + _PREFIXES if prefix else _PREFIXES
    return Known(re.compile(leading + _REX + opcode, re.DOTALL), what, reason, processors_differ)


KNOWN: Final[Sequence[Known]] = (
    _known(
        rb"\x0f[\xb9\xff]",
        "`ud1` and `ud0` (`0f b9`, `0f ff`): iced reads a ModRM byte, capstone does not",
        "processors differ, and raise #UD either way; ubpx refuses them",
        processors_differ=True,
    ),
    _known(
        rb"(?:\x0f[\x80-\x8f]|[\x70-\x7f\xc2\xc3\xe0-\xe3\xe8\xe9\xeb])",
        "near branches and returns with an operand-size prefix (`66 0f 80`, `66 48 c2`)",
        "Intel ignores the prefix (measured: as iced says), AMD does not; ubpx refuses them",
        prefix=rb"\x66",
        processors_differ=True,
    ),
    _known(
        rb"\x0f[\x0d\x18-\x1e]",
        "wide nops and prefetches (`0f 0d`, `0f 18` to `0f 1e`): capstone does not know all forms",
        "they run, as iced says; ubpx supports them",
    ),
    _known(
        rb"[\xdc-\xdf][\xc0-\xff]",
        "x87 aliases (`dc d0`, `dd c8`, `de d0`, `df c8`): capstone does not know them",
        "they run, as iced says; ubpx supports them",
    ),
    _known(
        rb"\x8e",
        "loads of cs and of segment registers 6 and 7 (`8e /1`): capstone takes them for instructions",
        "#UD, as iced says; ubpx refuses them",
    ),
    _known(
        rb"\x0f[\x20\x22]",
        "control registers that do not exist (`0f 20 /1`): capstone takes them for instructions",
        "#UD, as iced says; ubpx refuses them",
    ),
    _known(
        rb"\x0f\x01",
        "`vmcall`, `vmrun`, `serialize`, `xsusldtrk` and other rows of `0f 01`, with and without prefixes",
        "iced knows more of them, and calls vmcall a call into the monitor; they have 3 bytes behind the prefixes",
    ),
    _known(
        rb"\x0f(?:\x00|\x78|\xa6|\xa7|\xae|\xc7|\xaa|\x37|\xbc|\xbd|\x38[\xc8-\xcd\xd8-\xdf\xf8-\xfc]|\x3a[\xcc\xf0])",
        "instructions of some processors (padlock, key locker, sha, enqcmd, uintr, lkgs, SSE4a), and opcodes with a "
        "prefix that has no meaning there (`f2 0f bc`, `66 0f 38 c8`)",
        "where the processor runs them it sides with iced; where capstone alone takes them it raises #UD",
    ),
    _known(
        rb"\x63",
        "`movsxd` with an address-size prefix: capstone does not know it",
        "it runs, as iced says; ubpx supports it",
    ),
    _known(
        rb"(?:\xc4|\xc5|\x62)",
        "VEX and EVEX: capstone does not know forms that ignore W (`vpinsrw`, `vpsrlw`), and takes some for "
        "instructions behind a 66, f2 or f3 prefix",
        "the processor sides with iced: it runs the former and raises #UD for the latter",
    ),
    _known(
        b"",
        "`lock` before what it has no meaning for (`f0 03`): capstone takes it for an instruction",
        "#UD, as iced says; ubpx refuses it",
        prefix=rb"\xf0",
    ),
)


def known(code: bytes, lengths: Iterable[int | None]) -> Known | None:
    """The entry for the instruction that ``code`` begins with, if there is one.

    ``lengths`` are those that the disassemblers say; None: that it is no instruction. What lies behind the
    longest is no part of the instruction, and excuses nothing.
    """
    insn = code[: max((each or 0 for each in lengths), default=0)]
    return next((each for each in KNOWN if each.pattern.match(insn)), None)
