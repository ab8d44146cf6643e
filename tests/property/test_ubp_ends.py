"""Any bytes, where a mapping ends: what the analysis may say of them, in each mode, by each disassembler."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ubpx._errors import InsnRefused
from ubpx.core.ubp import ARCHITECTURES, Architecture, InsnAnalysis, architecture
from ubpx.core.values import VirtAddr

LONGEST = 15
ADDRESS = VirtAddr(0x5655_5000)


def made(name: str, decoder: str) -> Architecture:
    """The architecture on a machine that has this disassembler alone, or prefers it."""
    with pytest.MonkeyPatch.context() as patch:
        if decoder == "capstone":
            patch.setitem(sys.modules, "iced_x86", None)
        return architecture(name)


X86_DECODERS = ("iced", "capstone")
NAMES = [
    f"{name}-{decoder}"
    for name in sorted(ARCHITECTURES)
    for decoder in (X86_DECODERS if name in ("x86_64", "i386") else X86_DECODERS[1:])
]
MADE = {name: made(*name.rsplit("-", 1)) for name in NAMES}

WHOLE_X86 = ("e910203000", "b801020304", "0f8400010000", "c5f81000")
WHOLE = {"riscv64": ("03358100", "ef001000", "2265", "0100"), "aarch64": ("1f2003d5", "00040091", "c0035fd6")}
"""Instructions that are allowed, whose beginnings are none."""

every_architecture = pytest.mark.parametrize("arch", MADE.values(), ids=MADE)
unhurried = settings(deadline=None)  # a loaded machine is no failure

prefixes = st.lists(st.sampled_from(b"\x66\x67\xf0\xf2\xf3\x26\x2e\x36\x3e\x64\x65\x40\x48"), max_size=6).map(bytes)
openings = st.sampled_from(
    [b"", b"\x0f", b"\x0f\x38", b"\x0f\x3a", b"\xc5", b"\xc4", b"\x62", b"\x8f", b"\xe8", b"\x9a", b"\xc7\xf8"]
)
some_bytes = st.builds(lambda *parts: b"".join(parts), prefixes, openings, st.binary(max_size=LONGEST))
any_bytes = st.one_of(st.binary(max_size=LONGEST + 3), some_bytes)


def answer(arch: Architecture, code: bytes) -> InsnAnalysis | InsnRefused:
    """Anything but these two is an error."""
    try:
        return arch.analyze(code, ADDRESS)
    except InsnRefused as refused:
        return refused


def comparable(found: InsnAnalysis | InsnRefused) -> object:
    """Errors are equal if they say the same."""
    return found if isinstance(found, InsnAnalysis) else (found.insn, found.reason)


@every_architecture
@unhurried
@given(code=any_bytes, follower=st.binary(min_size=LONGEST, max_size=LONGEST))
def test_what_follows_an_instruction_does_not_matter(arch: Architecture, code: bytes, follower: bytes) -> None:
    """Invariant: the analysis is that of the instruction alone, at the end of a mapping or in the middle of code."""
    found = answer(arch, code)
    insn = found.insn
    if insn is None:
        return
    assert code.startswith(insn.raw)
    assert 0 < insn.length <= arch.longest_insn
    for rest in (b"", follower):
        assert comparable(answer(arch, insn.raw + rest)) == comparable(found)


@every_architecture
@unhurried
@given(code=any_bytes)
def test_what_is_cut_short_is_refused(arch: Architecture, code: bytes) -> None:
    """Invariant: no byte is made up: each beginning of an instruction is refused, and called incomplete."""
    insn = answer(arch, code).insn
    if insn is None:
        return
    for size in range(insn.length):
        found = answer(arch, insn.raw[:size])
        assert isinstance(found, InsnRefused), f"{insn}: {size} bytes are enough"
        assert found.insn is None


@every_architecture
@unhurried
@given(code=any_bytes)
def test_a_refusal_says_where_and_why(arch: Architecture, code: bytes) -> None:
    """Invariant: nothing but a refusal is raised; it names the address, a reason, and the bytes."""
    found = answer(arch, code)
    if isinstance(found, InsnAnalysis):
        assert found.strategies
        return
    assert found.reason
    assert found.reason in str(found)
    assert f"{ADDRESS:#x}" in str(found)
    if code:
        shown = code[: arch.longest_insn] if found.insn is None else found.insn.raw
        assert f"[{shown.hex(' ')}]" in str(found)


@every_architecture
def test_cut_short_is_said_so(arch: Architecture) -> None:
    """Invariant: a person learns that the mapping ends there, not that the bytes are bad."""
    for whole in map(bytes.fromhex, WHOLE.get(arch.name, WHOLE_X86)):
        assert isinstance(answer(arch, whole), InsnAnalysis)
        for size in range(1, len(whole)):
            found = answer(arch, whole[:size])
            assert isinstance(found, InsnRefused)
            assert f"does not end in the {size} bytes that are readable there" in found.reason, whole[:size].hex()
    nothing = answer(arch, b"")
    assert isinstance(nothing, InsnRefused)
    assert nothing.reason == "nothing is readable there"


@every_architecture
@unhurried
@given(code=st.binary(max_size=200))
def test_linear_decoding_stays_inside(arch: Architecture, code: bytes) -> None:
    """Invariant: the starts ascend, each instruction is whole, and the last one ends inside."""
    starts = list(arch.instruction_starts(code, ADDRESS))
    assert starts == sorted(set(starts))
    stops = [*starts[1:], None][: len(starts)]
    for start, stop in zip(starts, stops, strict=True):
        insn = answer(arch, code[start - ADDRESS :]).insn
        assert insn is not None
        assert start + insn.length <= ADDRESS + len(code)
        assert stop in {None, start + insn.length}
