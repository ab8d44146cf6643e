"""Load-reserved/store-conditional sequences: what stands in one may not be stopped at."""

from __future__ import annotations

import pytest

from ubpx.core.ubp import Architecture, architecture
from ubpx.core.values import VirtAddr

START = VirtAddr(0x1_0000)
LR, SC, BNE_OUT, ADD, RETRY, RET = "1005a52f", "18c5a6af", "00d51863", "00150613", "fe0698e3", "00008067"
"""lr.w a0, (a1); sc.w a3, a2, (a1); bne a0, a3, .+16; addi a2, a0, 1; bnez a3, .-16; ret."""
C_NOP = "0001"

arch: Architecture = architecture("riscv64")


def assemble(*numbers: str) -> tuple[bytes, list[VirtAddr]]:
    """The bytes, and where each instruction starts."""
    code, starts = b"", []
    for number in numbers:
        starts.append(VirtAddr(START + len(code)))
        code += int(number, 16).to_bytes(len(number) // 2, "little")
    return code, starts


def refused(*numbers: str) -> list[int]:
    """Which of the instructions may not be stopped at, by their places."""
    code, starts = assemble(*numbers)
    return [place for place, start in enumerate(starts) if arch.in_sequence(code, START, start) is not None]


def test_what_stands_between_is_refused() -> None:
    """Invariant: compare and swap: not what comes before, nor the way out, nor what tries again."""
    assert refused(C_NOP, LR, BNE_OUT, ADD, SC, RETRY, C_NOP, RET) == [2, 3]


@pytest.mark.parametrize("number", ["1005a52f", "1005b52f", "1605a52f", "1205afaf", "14003fAF"])
def test_every_form_of_the_load_is_known(number: str) -> None:
    """Invariant: of 4 or 8 bytes, with any order and any registers."""
    assert refused(number, ADD, SC) == [1]


def test_short_instructions_and_odd_halves() -> None:
    """Invariant: lengths are followed, wherever the sequence begins."""
    assert refused(C_NOP, LR, "0505", C_NOP, ADD, SC, C_NOP) == [2, 3, 4]


def test_a_part_of_the_function_is_enough() -> None:
    """Invariant: the bytes may begin in the middle of it, as long as the sequence is in them."""
    code, starts = assemble(ADD, ADD, LR, ADD, SC)
    for first in (1, 2):
        assert arch.in_sequence(code[starts[first] - START :], starts[first], starts[3]) is not None
        assert arch.in_sequence(code[starts[first] - START :], starts[first], starts[first]) is None


def test_the_store_may_lie_behind_a_jump() -> None:
    """Invariant: direct branches are followed, forward and back; what only leads elsewhere is free."""
    jump_over = "00c0006f"  # j .+12
    assert refused(LR, jump_over, ADD, RET, SC, RET) == [1]
    assert refused("0100006f", ADD, SC, RET, LR, "ff1ff06f") == [1, 5]  # back to the addi, which leads to the store


@pytest.mark.parametrize("numbers", [(LR, ADD, RET, SC), (ADD, SC), (LR, ADD), (LR, ADD, "0000", SC)])
def test_what_belongs_to_none_is_free(numbers: tuple[str, ...]) -> None:
    """Invariant: a load that no store can follow, a store without a load, and a way that ends."""
    assert refused(*numbers) == []


def test_what_is_too_far_away_is_free() -> None:
    """Invariant: the store is looked for as far as the architecture says, in instructions."""
    most = arch.longest_sequence // 4
    assert refused(LR, *[ADD] * (most - 1), SC) == list(range(1, most))
    assert refused(LR, *[ADD] * most, SC) == []


def test_a_second_load_begins_a_sequence_of_its_own() -> None:
    """Invariant: what comes before it leads to no store of the first; nor does a way back to the load itself."""
    assert refused(LR, ADD, LR, ADD, SC) == [3]
    assert refused(LR, BNE_OUT, ADD, SC, "ff1ff06f", ADD, "fe9ff06f") == [1, 2]  # j .-16, j .-24
