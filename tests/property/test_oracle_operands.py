"""Operands of the differential tool's instructions: the processor finds what was meant."""

from random import Random

import iced_x86
from hypothesis import given
from hypothesis import strategies as st

from ubpx.testing.oracle.forms import ADDRESS_SIZE, Fields, encode, legacy
from ubpx.testing.oracle.layout import LAYOUTS
from ubpx.testing.oracle.operands import Pointers, choose

GENERAL = {
    64: [iced_x86.Register.RAX + number for number in range(16)],
    32: [iced_x86.Register.EAX + number for number in range(16)],
    16: [iced_x86.Register.AX + number for number in range(16)],
}
ORIGIN = 0x5555_4001_0000


def value_of(register: int, registers: dict[int, int]) -> int:
    """What the operand's registers hold; 0 for none."""
    for bits, numbers in GENERAL.items():
        if register in numbers:
            return registers[numbers.index(register)] & (1 << bits) - 1
    return 0


@given(seed=st.integers(0, 2**32), wide=st.booleans(), narrow=st.booleans(), shift=st.sampled_from([0, 0x100]))
def test_an_operand_points_to_its_target(seed: int, wide: bool, narrow: bool, shift: int) -> None:
    """Invariant: base, index, scale, displacement and segment add up to the target, in every mode and shape."""
    random = Random(seed)
    target = Pointers(LAYOUTS["x86_64" if wide else "i386"]).any(random, low=narrow)
    operand = choose(random, target, wide=wide, narrow=narrow, vector=False, base_shift=shift)
    form = legacy(0, 0x8B, bytes((ADDRESS_SIZE,)) if narrow else b"", on_memory=True)
    fields = Fields(operand=operand.encoded, base_high=operand.base_high, index_high=operand.index_high)
    code = encode(form, fields, b"", wide=wide)
    insn = iced_x86.Decoder(64 if wide else 32, code, ip=ORIGIN if wide else 0x1001_0000).decode()
    assert insn.code != iced_x86.Code.INVALID
    assert insn.len == len(code)
    if operand.relative:
        assert insn.is_ip_rel_memory_operand
        return
    bits = (32 if narrow else 64) if wide else (16 if narrow else 32)
    held = operand.registers
    base, index = value_of(insn.memory_base, held), value_of(insn.memory_index, held)
    found = base + index * insn.memory_index_scale + insn.memory_displacement
    assert (found - target + shift) & (1 << bits) - 1 == 0
