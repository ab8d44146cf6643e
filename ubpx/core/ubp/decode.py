"""Where an instruction ends and how people write it: the only module that imports a disassembler.

Both libraries answer the same small question, so that everything built upon the answer is equal
whichever is installed. What an instruction *does* is read from its bytes by ``encoding`` and
``x86``. Libraries are loaded when a decoder is made, never at import.
"""

import threading
from collections.abc import Hashable, Iterable, Iterator
from types import ModuleType
from typing import Protocol

import attrs

from ubpx._errors import UsageError
from ubpx.core.ubp.encoding import PREFIXES, parse

LONGEST_INSN = 15
"""Bytes; a longer one raises #GP (Intel SDM volume 2A, section 2.3.11)."""


@attrs.frozen
class Decoded:
    """One valid instruction."""

    length: int
    text: str
    """Intel syntax, in the words of the library."""


class Decoder(Protocol):
    """Decodes x86 instructions of one mode. Equal calls, equal answers."""

    def decode(self, code: bytes, address: int) -> Decoded | None:
        """The instruction that ``code`` begins with; None if it is not one, or not whole."""
        ...

    def walk(
        self, code: bytes, address: int, *, named: list[int] | None = None, near: range = range(0)
    ) -> Iterator[tuple[int, Hashable]]:
        """The length and the kind of one instruction after the other; ends at what is none, or not whole.

        Instructions of one kind are the same but for operands: registers, displacements, immediates. What they
        address relative to themselves ``near`` is added to ``named``.
        """
        ...

    def kinds(self, code: bytes, places: Iterable[int]) -> Iterator[tuple[int, Hashable]]:
        """The same for each of some offsets in the code; (0, None) where no whole instruction is."""
        ...


class IcedDecoder:
    """By iced-x86. Raises ImportError when made where that is not installed."""

    def __init__(self, bits: int = 64) -> None:
        import iced_x86

        formatter = iced_x86.Formatter(iced_x86.FormatterSyntax.INTEL)
        formatter.hex_prefix, formatter.hex_suffix = "0x", ""
        formatter.uppercase_hex = False
        formatter.space_after_operand_separator = True
        formatter.branch_leading_zeros = False
        self._formatter = formatter
        self._new_decoder = iced_x86.Decoder
        known = iced_x86.Code
        # The loads of ss are of the same code as those of ds.
        self._ambiguous = frozenset({known.INVALID, known.MOV_SREG_RM16, known.MOV_SREG_R32M16, known.MOV_SREG_R64M16})
        self._bits = bits
        self._mask = (1 << bits) - 1

    def decode(self, code: bytes, address: int) -> Decoded | None:
        """See Decoder."""
        if not code:
            return None
        insn = self._new_decoder(self._bits, code[:LONGEST_INSN], ip=address & self._mask).decode()
        return None if insn.is_invalid else Decoded(insn.len, self._formatter.format(insn))

    def walk(
        self, code: bytes, address: int, *, named: list[int] | None = None, near: range = range(0)
    ) -> Iterator[tuple[int, Hashable]]:
        """See Decoder. A microsecond would be too long here: this is done for millions."""
        offset, ambiguous = 0, self._ambiguous
        for insn in self._new_decoder(self._bits, code, ip=address & self._mask):
            kind: Hashable = insn.code
            length = insn.len
            if kind in ambiguous:
                if insn.is_invalid:
                    return
                kind = code[offset : offset + length]
            elif code[offset] in PREFIXES:  # the code does not tell lock xchg from xchg, or 66 e8 from e8
                second = code[offset + 1]
                kind = code[offset : offset + length] if second in PREFIXES else (kind, code[offset], second)
            if named is not None and insn.is_ip_rel_memory_operand and insn.ip_rel_memory_address in near:
                named.append(insn.ip_rel_memory_address)
            yield length, kind
            offset += length

    def kinds(self, code: bytes, places: Iterable[int]) -> Iterator[tuple[int, Hashable]]:
        """See Decoder."""
        decoder, ambiguous = self._new_decoder(self._bits, code), self._ambiguous
        for at in places:
            decoder.position = at
            insn = decoder.decode()
            kind: Hashable = insn.code
            length = insn.len
            if kind in ambiguous or code[at] in PREFIXES:
                yield next(self.walk(code[at : at + LONGEST_INSN], 0), (0, None))
            else:
                yield length, kind


class CapstoneDecoder:
    """By capstone. Raises ImportError when made where that is not installed."""

    def __init__(self, bits: int = 64) -> None:
        import capstone

        mode = capstone.CS_MODE_64 if bits == 64 else capstone.CS_MODE_32
        self._capstone = capstone.Cs(capstone.CS_ARCH_X86, mode)
        self._bits = bits
        self._lock = threading.Lock()  # ctypes drops the GIL, and a capstone handle serves one thread at a time

    def decode(self, code: bytes, address: int) -> Decoded | None:
        """See Decoder."""
        with self._lock:
            found = list(self._capstone.disasm_lite(code[:LONGEST_INSN], address, 1))
        if not found:
            return None
        _, length, mnemonic, operands = found[0]
        return Decoded(length, f"{mnemonic} {operands}".rstrip())

    def walk(
        self, code: bytes, address: int, *, named: list[int] | None = None, near: range = range(0)
    ) -> Iterator[tuple[int, Hashable]]:
        """See Decoder. Each encoding is a kind of its own."""
        offset = 0
        while (insn := self.decode(code[offset : offset + LONGEST_INSN], address + offset)) is not None:
            raw = code[offset : offset + insn.length]
            offset += insn.length
            if named is not None:
                operand = parse(raw, self._bits).operand_address(address + offset)
                if operand is not None and operand in near:
                    named.append(operand)
            yield insn.length, raw

    def kinds(self, code: bytes, places: Iterable[int]) -> Iterator[tuple[int, Hashable]]:
        """See Decoder."""
        return (next(self.walk(code[at : at + LONGEST_INSN], 0), (0, None)) for at in places)


_WORD = 4
_CONSISTENT = 0x5400_0010
"""bc.cond."""


class CapstoneAarch64:
    """Aarch64 by capstone: words of four bytes, little-endian. Raises UsageError when made where that is missing."""

    def __init__(self) -> None:
        try:
            import capstone
        except ImportError:
            raise UsageError(
                "no disassembler for aarch64 is installed; install one with: pip install capstone"
            ) from None
        self._capstone = capstone.Cs(capstone.CS_ARCH_ARM64, capstone.CS_MODE_LITTLE_ENDIAN)
        self._lock = threading.Lock()  # see CapstoneDecoder

    def decode(self, code: bytes, address: int) -> Decoded | None:
        """See Decoder."""
        found = self._disassembled(code[:_WORD], address)
        if found is None and len(code) >= _WORD:
            word = int.from_bytes(code[:_WORD], "little")
            if word & 0xFF00_0010 == _CONSISTENT:  # capstone 5 does not know it; it is b.cond but for its prediction
                found = self._disassembled((word & ~0x10).to_bytes(_WORD, "little"), address)
                return None if found is None else Decoded(_WORD, found.text.replace("b.", "bc.", 1))
        return found

    def _disassembled(self, code: bytes, address: int) -> Decoded | None:
        with self._lock:
            found = next(iter(self._capstone.disasm_lite(code, address, 1)), None)
        if found is None:
            return None
        _, length, mnemonic, operands = found
        return Decoded(length, f"{mnemonic} {operands}".rstrip())

    def is_insn(self, code: bytes, address: int) -> bool:
        """Whether ``code`` begins with an instruction."""
        return self.decode(code, address) is not None


def default_decoder(bits: int = 64) -> Decoder:
    """The fastest decoder that is installed, for a mode of so many bits.

    Raises UsageError if none is.
    """
    for make in (IcedDecoder, CapstoneDecoder):
        try:
            return make(bits)
        except ImportError:  # iced-x86 has no wheel for some machines
            continue
    raise UsageError("no disassembler is installed; install one with: pip install capstone")


class RiscvDecoder:
    """How people write RV64GC instructions, by capstone. Raises UsageError when made where that is not installed.

    Which bytes are instructions is said by ``riscv64_insns``: capstone knows no HINTs.
    """

    def __init__(self) -> None:
        try:
            import capstone
        except ImportError as error:
            raise UsageError("no disassembler is installed; install one with: pip install capstone") from error
        mode = capstone.CS_MODE_RISCV64 | capstone.CS_MODE_RISCVC
        self._capstone = capstone.Cs(capstone.CS_ARCH_RISCV, mode)
        self._lock = threading.Lock()  # as for x86

    def text(self, raw: bytes, address: int) -> str | None:
        """Of one whole instruction; None where capstone does not know it."""
        with self._lock:
            found = list(self._capstone.disasm_lite(raw, address, 1))
        return f"{found[0][2]} {found[0][3]}".rstrip() if found else None


def disassemblers() -> tuple[ModuleType, ModuleType]:
    """iced_x86 and capstone themselves, for ``opinions``, which compares them. Raises ImportError without both."""
    import capstone
    import iced_x86

    return iced_x86, capstone
