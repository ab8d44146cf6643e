"""Random instructions: what the copies are, and what the encoding parser says, against iced-x86."""

from collections.abc import Iterable

import attrs
import iced_x86
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from ubpx._errors import InsnRefused
from ubpx.core.ubp.decode import CapstoneDecoder, Decoder, IcedDecoder
from ubpx.core.ubp.encoding import parse
from ubpx.core.ubp.plans import InsnAnalysis, Strategy
from ubpx.core.ubp.x86 import InsnClass, insn_class
from ubpx.core.ubp.x86_64 import X86_64
from ubpx.core.values import VirtAddr

ICED = IcedDecoder()
X86 = X86_64(ICED)
DECODERS: list[Decoder] = [ICED, CapstoneDecoder()]
RELATIVE = {InsnClass.JUMP, InsnClass.BRANCH, InsnClass.CALL}

PREFIXES = [bytes((byte,)) for byte in (0x66, 0x67, 0xF0, 0xF2, 0xF3, 0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65)]
any_byte = st.binary(min_size=1, max_size=1)


unhurried = settings(deadline=None)  # a loaded machine is no failure
many_are_refused = settings(unhurried, suppress_health_check=[HealthCheck.filter_too_much])


def joined(*parts: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    return st.tuples(*parts).map(b"".join)


legacy_opcodes = joined(
    st.lists(st.sampled_from(PREFIXES), max_size=3).map(b"".join),
    st.one_of(st.just(b""), st.integers(0x40, 0x4F).map(lambda rex: bytes((rex,)))),
    st.sampled_from([b"", b"\x0f", b"\x0f\x38", b"\x0f\x3a"]),
    any_byte,
)
vector_opcodes = joined(
    st.sampled_from([b"", b"", b"\x64", b"\x67"]),
    st.one_of(
        joined(st.just(b"\xc5"), any_byte),
        joined(st.just(b"\xc4"), st.sampled_from([b"\xe1", b"\xe2", b"\xe3"]), any_byte),
        joined(st.just(b"\x62"), st.sampled_from([b"\xf1", b"\xf2", b"\xf3"]), any_byte, any_byte),
        joined(st.just(b"\x8f"), st.sampled_from([b"\xe8", b"\xe9", b"\xea"]), any_byte),
    ),
    any_byte,
)
rip_relative_modrm = st.integers(0, 7).map(lambda reg: bytes((reg << 3 | 5,)))
code_bytes = joined(
    st.one_of(legacy_opcodes, vector_opcodes),
    st.one_of(rip_relative_modrm, any_byte),
    st.binary(min_size=12, max_size=12),
).map(lambda code: code[:15])
addresses = st.integers(2**40, 2**46).map(VirtAddr)
distances = st.integers(-(2**31), 2**31)


def answer(x86: X86_64, code: bytes, address: VirtAddr) -> InsnAnalysis | InsnRefused:
    try:
        return x86.analyze(code, address)
    except InsnRefused as refused:
        return refused


def analyzed(code: bytes, address: VirtAddr, x86: X86_64 = X86) -> InsnAnalysis:
    found = answer(x86, code, address)
    assume(isinstance(found, InsnAnalysis))
    assert isinstance(found, InsnAnalysis)
    return found


def iced_insn(code: bytes, address: int) -> tuple[iced_x86.Instruction, iced_x86.ConstantOffsets]:
    decoder = iced_x86.Decoder(64, code, ip=address)
    insn = decoder.decode()
    return insn, decoder.get_constant_offsets(insn)


def out_of_reach(targets: Iterable[int], slot: int) -> bool:
    return any(abs(target - slot) > 2**31 - 64 for target in targets)


@many_are_refused
@given(code_bytes, addresses, distances)
def test_copy_is_the_same_instruction_and_leads_back(code: bytes, address: VirtAddr, distance: int) -> None:
    """Invariant: what runs in the slot is the same instruction with the same operand, and then the next one."""
    analysis = analyzed(code, address)
    assume(Strategy.STEP in analysis.strategies)
    insn, kind = analysis.insn, insn_class(parse(analysis.insn.raw, 64))
    slot = VirtAddr(address + distance)
    assume(slot != address)  # that would be a step in place
    try:
        found = X86.slot_code(analysis, slot)
    except InsnRefused:
        assert out_of_reach(analysis.reach, slot)
        return
    copy = ICED.decode(found.code, slot)
    assert copy is not None
    if kind in RELATIVE:  # the long form, without prefixes that say nothing
        assert copy.text.split() == insn.text.replace(" short", "").split()[-2:]
    elif kind is not InsnClass.NOP:
        assert copy.text == insn.text
    if len(found.places) == 2:
        assert found.places[1] == (copy.length, insn.end)
        back, _ = iced_insn(found.code[copy.length :], slot + copy.length)
        assert back.is_jmp_near
        assert back.near_branch_target == insn.end
    assert len(found.code) <= X86.slot_size
    assert X86.before_step(analysis, slot, {"eflags": 0}).slot_end == slot + copy.length


@many_are_refused
@given(code_bytes, addresses)
def test_places_undo_each_other(code: bytes, address: VirtAddr) -> None:
    """Invariant: to_slot and to_origin are inverse at every place, and None elsewhere."""
    analysis = analyzed(code, address)
    assume(Strategy.STEP in analysis.strategies and not out_of_reach(analysis.reach, address))
    found = X86.slot_code(analysis, VirtAddr(address + 0x100))
    for offset in range(len(found.code) + 1):
        origin = found.to_origin(VirtAddr(found.slot + offset))
        assert (origin is not None) == (offset in dict(found.places))
        assert origin is None or found.to_slot(origin) == found.slot + offset


@many_are_refused
@given(code_bytes, addresses)
def test_parser_finds_what_iced_finds(code: bytes, address: VirtAddr) -> None:
    """Invariant: operand, branch target and privilege are read from the bytes as iced-x86 reads them."""
    analysis = analyzed(code, address)
    insn, offsets = iced_insn(code, address)
    encoding = parse(analysis.insn.raw, 64)
    kind = insn_class(encoding)
    assert not insn.is_privileged
    assert (encoding.displacement_at is not None) == insn.is_ip_rel_memory_operand
    if encoding.displacement_at is not None and kind is not InsnClass.NOP:
        assert (encoding.displacement_at, 4) == (offsets.displacement_offset, offsets.displacement_size)
        assert encoding.operand_address(insn.next_ip) == insn.ip_rel_memory_address
    flow = iced_x86.FlowControl
    expected = {
        InsnClass.JUMP: {flow.UNCONDITIONAL_BRANCH},
        InsnClass.BRANCH: {flow.CONDITIONAL_BRANCH},
        InsnClass.COUNTED_BRANCH: {flow.CONDITIONAL_BRANCH},
        InsnClass.CALL: {flow.CALL},
        InsnClass.INDIRECT_CALL: {flow.INDIRECT_CALL},
        InsnClass.LEAVES: {flow.RETURN, flow.INDIRECT_BRANCH},
        InsnClass.SYSTEM_CALL: {flow.CALL},
        InsnClass.TRANSACTION: {flow.XBEGIN_XABORT_XEND},
        InsnClass.PLAIN: {flow.NEXT, flow.EXCEPTION},
    }
    assert insn.flow_control in expected.get(kind, {flow.NEXT})
    if kind in RELATIVE:
        assert insn.near_branch_target in analysis.reach


@many_are_refused
@given(code_bytes, addresses)
def test_decoders_that_both_know_an_instruction_agree(code: bytes, address: VirtAddr) -> None:
    """Invariant: which disassembler is installed changes the text for people and nothing else."""
    found = (analyzed(code, address, X86_64(decoder)) for decoder in DECODERS)
    one, other = (attrs.evolve(analysis, insn=attrs.evolve(analysis.insn, text="")) for analysis in found)
    assert one == other


@pytest.mark.parametrize("decoder", DECODERS, ids=["iced", "capstone"])
@unhurried
@given(code=st.one_of(st.binary(max_size=20), code_bytes), address=st.integers(0, 2**64 - 1).map(VirtAddr))
def test_any_bytes_are_analysed_or_refused(decoder: Decoder, code: bytes, address: VirtAddr) -> None:
    """Invariant: no bytes make the analysis raise anything but a refusal with a reason."""
    x86 = X86_64(decoder)
    analysis = answer(x86, code, address)
    if isinstance(analysis, InsnRefused):
        assert analysis.reason
        return
    assert code.startswith(analysis.insn.raw)
    assert analysis.strategies
    assert list(x86.instruction_starts(analysis.insn.raw, address)) == [address]
