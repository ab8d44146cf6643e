"""Where each instruction leads: by its bytes, by a disassembler, and by what is looked at first."""

from __future__ import annotations

import iced_x86
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from ubpx.core.ubp.decode import IcedDecoder
from ubpx.core.ubp.encoding import PREFIXES
from ubpx.core.ubp.flow import flow, flow_of
from ubpx.core.values import VirtAddr

AT = VirtAddr(0x5655_5000)
DECODERS = {bits: IcedDecoder(bits) for bits in (64, 32)}
_CONTROL = iced_x86.FlowControl
_NOTHING_BEHIND = {
    _CONTROL.UNCONDITIONAL_BRANCH,
    _CONTROL.INDIRECT_BRANCH,
    _CONTROL.RETURN,
    _CONTROL.EXCEPTION,  # ud0, ud1, ud2
}
_NEAR = {iced_x86.OpKind.NEAR_BRANCH16, iced_x86.OpKind.NEAR_BRANCH32, iced_x86.OpKind.NEAR_BRANCH64}

in_each_mode = pytest.mark.parametrize("bits", [64, 32])
unhurried = settings(deadline=None, max_examples=200)

prefixes = st.lists(st.sampled_from(sorted(PREFIXES)), max_size=3).map(bytes)
rex = st.sampled_from([b"", b"", b"\x48", b"\x41", b"\x4f"])
opcodes = st.one_of(
    st.sampled_from([b"\xff", b"\xe8", b"\xc7\xf8", b"\xa2", b"\x9a", b"\xea", b"\x0f\x01", b"\x0f\x20", b"\x8b"]),
    st.integers(0, 255).map(lambda opcode: bytes((opcode,))),
    st.integers(0, 255).map(lambda opcode: bytes((0x0F, opcode))),
    st.integers(0, 255).map(lambda opcode: bytes((0xC4, 0xE1, 0x79, opcode))),
)
modrm = st.one_of(st.binary(min_size=1, max_size=1), st.sampled_from([b"\x05", b"\x0d", b"\x04\x25", b"\x1c\x85"]))
code_of_any_kind = st.builds(
    lambda *parts: b"".join(parts), prefixes, rex, opcodes, modrm, st.binary(min_size=8, max_size=8)
)


def one(bits: int, code: bytes) -> bytes:
    """The instruction that it begins with."""
    found = DECODERS[bits].decode(code, AT)
    assume(found is not None)
    assert found is not None
    return code[: found.length]


@in_each_mode
@unhurried
@given(code=code_of_any_kind)
@example(code=bytes.fromhex("2ef3a210000000"))
@example(code=bytes.fromhex("f30f01ec"))
@example(code=bytes.fromhex("0f2004"))
def test_what_is_looked_at_first_changes_nothing(bits: int, code: bytes) -> None:
    """Invariant: an instruction that is not taken apart is one of which nothing would have been found."""
    raw = one(bits, code)
    exact = flow_of(raw, bits, AT, VirtAddr(AT + len(raw)))
    assert list(flow(DECODERS[bits], bits, raw, AT)) == ([] if exact is None else [exact])


@in_each_mode
@unhurried
@given(code=code_of_any_kind)
@example(code=bytes.fromhex("f30f01ec"))
@example(code=bytes.fromhex("9a000000000700"))
@example(code=bytes.fromhex("f20f01ca"))
@example(code=bytes.fromhex("0f01de"))
@example(code=bytes.fromhex("f20f01de"))
def test_a_disassembler_says_the_same_of_where_it_leads(bits: int, code: bytes) -> None:
    """Invariant: target, call or not, and whether the next instruction may be the one behind it are as iced says."""
    raw = one(bits, code)
    found = next(flow(DECODERS[bits], bits, raw, AT), None)
    insn = iced_x86.Decoder(bits, raw, ip=AT).decode()
    near = insn.op_count > 0 and insn.op0_kind in _NEAR
    if found is None:
        assert near
        assert 0x66 in raw
        return
    assert (found.start, found.end) == (AT, AT + len(raw))
    assert found.target == (insn.near_branch_target if near else None)
    assert found.calls == any(
        (insn.is_call_near, insn.is_call_far, insn.is_call_near_indirect, insn.is_call_far_indirect)
    )
    halts = insn.mnemonic == iced_x86.Mnemonic.HLT  # till an interrupt; in user space it faults
    assert found.falls_through == (insn.flow_control not in _NOTHING_BEHIND and not halts)
