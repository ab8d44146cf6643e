"""Where an instruction ends, what is none, and the bugs that others had there."""

from collections.abc import Callable

import pytest

from ubpx._errors import InsnRefused
from ubpx.core.ubp.decode import Decoded, IcedDecoder
from ubpx.core.ubp.plans import InsnAnalysis, Strategy
from ubpx.core.ubp.x86_64 import X86_64
from ubpx.core.values import VirtAddr

Analyze = Callable[[str], InsnAnalysis]
EMULATE = Strategy.EMULATE


def test_nothing_readable_is_refused(x86: X86_64, origin: VirtAddr) -> None:
    """Invariant: no byte that is not given is ever used."""
    with pytest.raises(InsnRefused, match="nothing is readable"):
        x86.analyze(b"", origin)


@pytest.mark.parametrize("text", ["48", "48 8b 05 10 00 00", "c5", "62 f1 7c 48", "0f", "8f", "f3 0f 1e", "66 2e"])
def test_instruction_that_leaves_the_mapping_is_refused(analyze: Analyze, text: str) -> None:
    """Invariant: an instruction is whole or refused; it is never guessed."""
    with pytest.raises(InsnRefused, match=r"does not end in the \d+ bytes that are readable"):
        analyze(text)


def test_instruction_that_ends_with_the_mapping_is_whole(analyze: Analyze) -> None:
    """Invariant: bytes behind the instruction are not needed."""
    assert analyze("c3").insn.length == 1
    assert analyze("48 8b 05 10 00 00 00").insn.length == 7


def test_more_bytes_than_the_longest_instruction_change_nothing(x86: X86_64, origin: VirtAddr) -> None:
    """Invariant: equal instructions, equal analyses, whatever stands behind them."""
    assert x86.analyze(b"\x55" + b"\xcc" * 100, origin) == x86.analyze(b"\x55", origin)


# Bugs that others had.


def test_repeated_prefixes_fill_the_window_and_no_more(analyze: Analyze) -> None:
    """Invariant: 15 bytes are an instruction, 16 are none, and neither overflows anything."""
    assert analyze("2e " * 14 + "90").insn.length == 15
    with pytest.raises(InsnRefused):
        analyze("2e " * 15 + "90")
    with pytest.raises(InsnRefused):
        analyze("66 " * 15)


def test_66_90_is_a_nop(analyze: Analyze) -> None:
    """Invariant: the two-byte nop of every compiler can be probed."""
    assert EMULATE in analyze("66 90").strategies


def test_push_imm16_is_four_bytes_long(analyze: Analyze) -> None:
    """Invariant: an operand-size prefix shortens the immediate of push."""
    assert analyze("66 68 22 11 90 90").insn.length == 4


@pytest.mark.parametrize("text", ["2e 0f 1f 84 00 00 00 00 00", "3e ff e0", "3e eb 10", "f0 ff 00", "f0 48 0f b1 0e"])
def test_cs_nop_notrack_and_lock_are_supported(analyze: Analyze, text: str) -> None:
    """Invariant: what kernel uprobes refuse and compilers write, we probe."""
    assert analyze(text).strategies


def test_apx_ctest_is_refused_by_name(analyze: Analyze) -> None:
    """Invariant: an instruction newer than the decoders is refused, never given a wrong length."""
    with pytest.raises(InsnRefused, match="APX"):
        analyze("62 54 94 05 85 ff 90 90 90 90 90 90 90 90 90")


def test_rep_ret_fwait_and_ret_imm(analyze: Analyze) -> None:
    """Invariant: odd ways to write common things have their true lengths."""
    assert [analyze(text + " 90 90 90").insn.length for text in ("f3 c3", "9b", "c2 04 00")] == [2, 1, 3]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("d6", "opcode d6 does not exist"),
        ("f0 90", "no valid instruction"),
        ("f0 c3", "no valid instruction"),
        ("66 c5 f8 58 c1", "no valid instruction"),
        ("f3 0f 01 fd", "kernel"),
        ("f3 0f 3a f0 c0 00", "kernel"),
        ("f3 0f 38 dc c1", "kernel"),
        ("f3 0f 38 f8 08", "kernel"),
    ],
)
def test_a_decoder_that_is_too_generous_is_overruled(origin: VirtAddr, text: str, reason: str) -> None:
    """Invariant: what is no instruction of a program's is refused even where a decoder accepts it."""

    class Generous(IcedDecoder):
        def decode(self, code: bytes, address: int) -> Decoded:
            return Decoded(len(code), f"anything at {address:#x}")

    with pytest.raises(InsnRefused, match=reason):
        X86_64(Generous()).analyze(bytes.fromhex(text), origin)
