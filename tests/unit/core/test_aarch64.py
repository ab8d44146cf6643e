"""An aarch64 program under the coordinator: traps of four bytes, at which the PC stays; slots within 128 MiB."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from tests.unit.core.conftest import PID, TEXT, World, attached, memory_of, strategy_of
from ubpx._errors import ForeignTrap, InsnRefused, NotAnInstruction
from ubpx.core.slots import ORIGIN_SIZE
from ubpx.core.ubp.plans import Strategy
from ubpx.core.values import VirtAddr

CALL, ADD, BRANCH, LITERAL, SEQUENCE, SVC, BRK = (TEXT + 32 * number for number in range(7))
CODE = {
    CALL: (0xD63F_03C0,),  # blr x30
    ADD: (0x9100_0400,),  # add x0, x0, #1
    BRANCH: (0xB400_0200,),  # cbz x0, .+64
    LITERAL: (0x5800_0040, 0xD503_201F, 0x1234_5678, 0x9ABC_DEF0),  # ldr x0, .+8
    SEQUENCE: (0xC85F_7C20, 0x9100_0400, 0xC802_7C20),  # ldxr x0, [x1]; add x0, x0, #1; stxr w2, x0, [x1]
    SVC: (0xD400_0001,),
    BRK: (0xD420_0000,),
}
TRAP = b"\0\0\x20\xd4"
SIGSEGV = 11


@pytest.fixture
def arm(make_world: type[World]) -> Iterator[World]:
    """Attached, with two threads; left as it was."""
    code = {address: struct.pack(f"<{len(words)}I", *words) for address, words in CODE.items()}
    yield from attached(make_world, "aarch64", memory_of(code, nop=struct.pack("<I", 0xD503_201F)))


def test_a_copy_within_reach_is_boosted(arm: World) -> None:
    """Invariant: the slot holds the instruction and a branch back, and says at its end for whom; nobody steps."""
    lease = arm.client("a").probe(ADD, lambda _: None)
    assert strategy_of(lease) is Strategy.BOOST
    slot = arm.slot_of(lease)
    assert abs(slot - ADD) < 1 << 27
    assert arm.memory.read(ADD, 4) == TRAP
    image = arm.memory.read(slot, arm.architecture.slot_size)
    assert image[:4] == struct.pack("<I", *CODE[ADD])
    assert next(arm.architecture.flow(image[4:8], VirtAddr(slot + 4))).target == ADD + 4
    assert image[-ORIGIN_SIZE:] == ADD.to_bytes(ORIGIN_SIZE, "little")
    assert arm.arrive(PID, ADD).at == slot
    assert arm.fake.actions(PID, "step") == []


def test_a_call_through_its_own_link_register_is_emulated(arm: World) -> None:
    """Invariant: the target is what the register held."""
    lease = arm.client("a").probe(CALL, lambda _: None)
    thread = arm.arrive(PID, CALL, x30=0x5000)
    assert strategy_of(lease) is Strategy.EMULATE
    assert (thread.at, thread["x30"]) == (0x5000, CALL + 4)


def test_a_literal_is_loaded_from_where_the_program_has_it(arm: World) -> None:
    """Invariant: traps of ours in the code around are no part of it."""
    client = arm.client("a")
    client.probe(LITERAL, lambda _: None)
    thread = arm.arrive(PID, LITERAL)
    assert (thread.at, thread["x0"]) == (LITERAL + 4, 0x9ABC_DEF0_1234_5678)


def test_each_thread_goes_its_own_way(arm: World) -> None:
    """Invariant: a branch is decided by the registers of the thread that came."""
    arm.client("a").probe(BRANCH, lambda _: None)
    assert arm.arrive(PID, BRANCH, x0=0).at == BRANCH + 64
    assert arm.arrive(101, BRANCH, x0=1).at == BRANCH + 4


def test_a_step_of_a_copy_ends_behind_the_instruction(arm: World) -> None:
    """Invariant: one single step, and the thread stands in the program's own code."""
    lease = arm.client("a").probe(ADD, lambda _: None, strategy=Strategy.STEP)
    assert strategy_of(lease) is Strategy.STEP
    assert arm.arrive(PID, ADD).at == ADD + 4
    assert len(arm.fake.actions(PID, "step")) == 1


def test_a_fault_in_a_copy_is_the_programs(arm: World) -> None:
    """Invariant: the program sees its own address."""
    lease = arm.client("a").probe(ADD, lambda _: None)
    thread = arm.arrive(PID, ADD)
    assert thread.at == arm.slot_of(lease)
    arm.fake.signal(PID, SIGSEGV, code=1, address=0x10)
    arm.fake.idle()
    assert thread.at == ADD
    assert arm.fake.actions(PID, "resume")[-1][2] == SIGSEGV


@pytest.mark.parametrize(
    ("address", "error", "reason"),
    [
        (SEQUENCE + 4, InsnRefused, "between an exclusive load"),
        (SEQUENCE + 8, InsnRefused, "a trap clears the exclusive monitor"),
        (SVC, InsnRefused, "system call"),
        (ADD + 2, NotAnInstruction, "it is inside the instruction at"),
        (BRK, ForeignTrap, f"{BRK:#x}"),
    ],
)
def test_what_must_not_be_stopped_at_is_refused(arm: World, address: int, error: type[Exception], reason: str) -> None:
    """Invariant: by what stands around it, too; nothing is written."""
    before = arm.memory.image()
    with pytest.raises(error, match=reason):
        arm.client("a").probe(address, lambda _: None)
    assert arm.memory.image() == before


def test_the_load_itself_can_be_probed(arm: World) -> None:
    """Invariant: its copy is followed by a branch, and by no trap."""
    lease = arm.client("a").probe(SEQUENCE, lambda _: None)
    assert strategy_of(lease) is Strategy.BOOST
    assert arm.arrive(PID, SEQUENCE).at == arm.slot_of(lease)
