"""The parts of the differential tool that need no processor: its program, its instructions, its operands."""

import io
import struct

import iced_x86
import pytest
from elftools.elf.elffile import ELFFile

from ubpx import MemoryFault, UsageError
from ubpx.core.registers import RegisterLayout
from ubpx.testing.oracle.comparison import compare
from ubpx.testing.oracle.forms import (
    ANY,
    EVEX,
    LEGACY,
    VEX,
    XOP,
    Fields,
    Form,
    Length,
    candidates,
    encode,
    legacy,
    valid_fields,
)
from ubpx.testing.oracle.image import elf, system_call_filter
from ubpx.testing.oracle.layout import DATA_SIZE, LAYOUTS, Layout, layout_of
from ubpx.testing.oracle.processor import Stop
from ubpx.testing.oracle.routes import LANDED, End

BITS = {"x86_64": 64, "i386": 32}
EVERY_LAYOUT = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)


def decoded(code: bytes, bits: int = 64) -> iced_x86.Instruction:
    return iced_x86.Decoder(bits, code).decode()


def length(bits: int) -> Length:
    def of(code: bytes) -> int:
        insn = decoded(code, bits)
        return 0 if insn.is_invalid else insn.len

    return of


@EVERY_LAYOUT
def test_the_program_is_an_elf_file_that_does_one_thing(layout: Layout) -> None:
    file = ELFFile(io.BytesIO(elf(layout)))
    loaded, stack = file.iter_segments()
    assert file.elfclass == BITS[layout.architecture]
    assert file.get_machine_arch() == {"x86_64": "x64", "i386": "x86"}[layout.architecture]
    assert (loaded["p_type"], loaded["p_vaddr"], stack["p_type"]) == ("PT_LOAD", layout.program, "PT_GNU_STACK")
    at = file["e_entry"] - layout.program
    assert loaded.data()[at:].startswith(layout.system_call + b"\xcc")


def test_the_program_may_only_ask_what_does_no_harm() -> None:
    """Invariant: the filter answers ENOSYS to all but four numbers of each kind of system call."""
    filter_ = [struct.unpack_from("<HBBI", system_call_filter(), at) for at in range(0, len(system_call_filter()), 8)]

    def answer(number: int, kind: int) -> int:
        at, accumulator = 0, 0
        while True:
            code, if_so, if_not, value = filter_[at]
            if code == 0x06:
                return int(value)
            if code == 0x20:
                accumulator = {0: number, 4: kind}[value]
            else:
                at += if_so if accumulator == value else if_not
            at += 1

    for kind, harmless in ((0xC000_003E, {24, 39, 102, 186}), (0x4000_0003, {20, 24, 158, 224})):
        allowed = {number for number in range(600) if answer(number, kind) == 0x7FFF_0000}
        assert allowed == harmless
        assert answer(60, kind) == 0x0005_0026
    assert answer(39, 0x1234) == 0x0005_0026


@EVERY_LAYOUT
def test_what_is_not_mapped_faults(layout: Layout) -> None:
    assert layout.offset(layout.data, 8, writing=True) == layout.offset(layout.low, 8, writing=True)
    assert layout.offset(layout.code, 1, writing=False) == 0
    for address, writing in (
        (layout.code, True),
        (layout.data - 1, False),
        (layout.data + DATA_SIZE - 7, False),
        (0, False),
    ):
        with pytest.raises(MemoryFault):
            layout.offset(address, 8, writing=writing)


def test_other_architectures_have_no_hardware_here() -> None:
    with pytest.raises(UsageError, match="x86_64, i386"):
        layout_of("riscv64")


def vector(kind: str, opcode_map: int, opcode: int, *, wide: int = 0, length: int = 0, reg: int = ANY) -> Form:
    return Form(kind, opcode_map, opcode, b"", 0, wide, length, 0, reg, ANY, on_memory=False)


HIGH = Fields(reg=31, second=17, mask=3, index_high=16, base_high=8, operand=b"\xc0")


@pytest.mark.parametrize(
    ("form", "fields", "wide", "text"),
    [
        (legacy(0, 0x03, b"\x48"), Fields(reg=9, base_high=8, operand=b"\xc1"), True, "add r9,r9"),
        (legacy(0, 0xD3, reg=4, on_memory=True), Fields(operand=b"\x00"), True, "shl dword ptr [rax],cl"),
        (legacy(0, 0x8A), Fields(reg=6, operand=b"\xc7", bare_rex=True), True, "mov sil,dil"),
        (legacy(0, 0x06), Fields(), False, "push es"),
        (vector(VEX, 2, 0xF2, wide=1), Fields(reg=3, second=10, operand=b"\xc0"), True, "andn rbx,r10,rax"),
        (vector(VEX, 1, 0x58, length=1), Fields(second=3, operand=b"\xc1"), True, "vaddps ymm2,ymm3,ymm1"),
        (vector(EVEX, 1, 0x58, length=2), HIGH, True, "vaddps zmm31{k3},zmm17,zmm24"),
        (vector(XOP, 9, 0x01, reg=1), Fields(second=3, operand=b"\xc1"), True, "blcfill ebx,ecx"),
    ],
)
def test_forms_are_encoded_as_they_say(form: Form, fields: Fields, wide: bool, text: str) -> None:
    insn = decoded(encode(form, fields, bytes(8), wide=wide), 64 if wide else 32)
    assert iced_x86.Formatter(iced_x86.FormatterSyntax.INTEL).format(insn) == text


@pytest.mark.parametrize("bits", [64, 32])
def test_there_are_forms_of_every_kind_and_map(bits: int) -> None:
    """Invariant: each map of each kind has its candidates, and an opcode's forms differ in their key alone."""
    found = {(form.kind, form.opcode_map) for form in candidates(wide=bits == 64)}
    assert found >= {(LEGACY, number) for number in range(4)} | {(VEX, number) for number in (1, 2, 3)}
    assert found >= {(EVEX, number) for number in (1, 2, 3, 5, 6)} | {(XOP, number) for number in (8, 9, 10)}
    jumps = [form for form in candidates(wide=bits == 64) if form.where == (0, 0x74) and form.kind == LEGACY]
    assert len(jumps) == len(set(jumps)) > 20
    assert not any(form.on_memory for form in jumps)


def test_what_is_an_instruction_depends_on_the_mode() -> None:
    for opcode, in_64, in_32 in ((0x06, False, True), (0x9D, True, True), (0x27, False, True), (0x0B, True, True)):
        assert (valid_fields(legacy(0, opcode), length(64), wide=True) is not None) == in_64
        assert (valid_fields(legacy(0, opcode), length(32), wide=False) is not None) == in_32


def test_all_that_differs_is_named() -> None:
    registers = RegisterLayout("toy", ("pc", "", "eflags"), "pc")
    end = End(LANDED, 1, (1, 2, 3), bytes(1024), bytes(64))
    changed = bytearray(1024)
    changed[9], changed[520], changed[600] = 1, 1, 1  # FIP; what is in use; a vector
    other = end._replace(stop=Stop(11, 1, 5), words=(1, 2, 4), xstate=bytes(changed), memory=bytes(63) + b"\1")
    assert compare(end, end, registers) == {}
    assert set(compare(end, other, registers)) == {
        "fault signal", "fault code", "fault address", "eflags", "x87 instruction pointer", "vectors+0x258",
        "memory+0x38",
    }  # fmt: skip
    assert "vectors+0x258" not in compare(end, other, registers, vectors=False)
