"""A riscv64 program under the coordinator: the PC stays at a trap, and steps end in a trap of the slot's."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.unit.core.conftest import PID, TEXT, World, attached, memory_of, strategy_of
from ubpx._errors import InsnRefused, StrategyRefused
from ubpx.core.events import Verdict
from ubpx.core.hits import Hit
from ubpx.core.ubp.plans import Strategy
from ubpx.core.values import VirtAddr
from ubpx.testing import FakeMemory

JALR, LOAD, SHORT, BRANCH, NOP, SEQUENCE, ECALL = (TEXT + 32 * number for number in range(7))
CODE = {
    JALR: "e780 0001",  # jalr ra, 16(ra)
    LOAD: "0335 8100",  # ld a0, 8(sp)
    SHORT: "2265",  # c.ldsp a0, 8(sp)
    BRANCH: "6300 b504",  # beq a0, a1, .+64
    NOP: "0100",
    SEQUENCE: "2fa5 0510 1306 1500 afa6 c518",  # lr.w a0, (a1); addi a2, a0, 1; sc.w a3, a2, (a1)
    ECALL: "7300 0000",
}
EBREAK, C_EBREAK = b"\x73\x00\x10\x00", b"\x02\x90"
_TRAP_BRKPT = 1


def program() -> FakeMemory:
    """As ``memory_of`` makes it, with CODE and c.nop between."""
    return memory_of({address: bytes.fromhex(code) for address, code in CODE.items()}, nop=b"\x01\0")


@pytest.fixture
def riscv(make_world: type[World]) -> Iterator[World]:
    """Attached, with two threads; left as it was."""
    yield from attached(make_world, "riscv64", program())


@pytest.mark.parametrize("address", [LOAD, SHORT])
def test_a_copy_within_reach_is_boosted(riscv: World, address: int) -> None:
    """Invariant: a trap as long as the instruction is written, one stop is made, and the thread runs on in its slot."""
    hits: list[int] = []
    lease = riscv.client("a").probe(address, lambda hit: hits.append(hit.address))
    assert strategy_of(lease) is Strategy.BOOST
    slot = riscv.slot_of(lease)
    assert abs(slot - address) < 1 << 20
    own = bytes.fromhex(CODE[address])
    assert riscv.memory.read(VirtAddr(address), len(own)) == {4: EBREAK, 2: C_EBREAK}[len(own)]
    assert riscv.process.memory.read(VirtAddr(address), len(own)) == own
    thread = riscv.arrive(PID, address)
    assert hits == [address]
    assert thread.at == slot
    assert riscv.fake.actions(PID, "step") == []


def test_a_jump_to_its_own_link_register_is_emulated(riscv: World) -> None:
    """Invariant: the target is what the register held; no slot is needed."""
    lease = riscv.client("a").probe(JALR, lambda _: None)
    thread = riscv.arrive(PID, JALR, ra=0x5000)
    assert strategy_of(lease) is Strategy.EMULATE
    assert (thread.at, thread["ra"]) == (0x5010, JALR + 4)


def test_a_branch_sees_what_a_handler_wrote(riscv: World) -> None:
    """Invariant: as on any processor."""

    def write(hit: Hit) -> None:
        hit.regs["a0"] = hit.regs["a1"]

    riscv.client("a").probe(BRANCH, write)
    assert riscv.arrive(PID, BRANCH, a0=1, a1=2).at == BRANCH + 64
    assert riscv.arrive(101, BRANCH, a0=2, a1=2).at == BRANCH + 64


def test_a_step_runs_to_the_trap_behind_the_second_copy(riscv: World) -> None:
    """Invariant: no single step is asked for; at its trap the instruction is done, and no signal is told of."""
    lease = riscv.client("a").probe(LOAD, lambda _: None, strategy=Strategy.STEP)
    assert strategy_of(lease) is Strategy.STEP
    slot = riscv.slot_of(lease)
    thread = riscv.arrive(PID, LOAD)
    stop = slot + 12
    assert thread.at == stop - 4
    assert riscv.memory.read(VirtAddr(stop), 2) == C_EBREAK
    riscv.fake.pass_by(PID, stop)
    riscv.fake.signal(PID, 5, code=_TRAP_BRKPT, address=stop)
    riscv.fake.idle()
    assert thread.at == LOAD + 4
    assert riscv.fake.actions(PID, "step") == []
    assert riscv.fake.actions(PID, "resume")[-1][2] == 0
    assert riscv.recorder.named("ubpx_signal") == []


def test_a_fault_in_a_boosted_copy_is_the_programs(riscv: World) -> None:
    """Invariant: the program sees its own address, in a register and in siginfo."""
    lease = riscv.client("a").probe(LOAD, lambda _: None)
    thread = riscv.arrive(PID, LOAD)
    assert thread.at == riscv.slot_of(lease)
    riscv.fake.signal(PID, 11, code=1, address=0x10)
    riscv.fake.idle()
    assert thread.at == LOAD
    assert riscv.fake.actions(PID, "resume")[-1][2] == 11


def test_a_signal_before_a_boosted_copy_waits_for_a_step(riscv: World) -> None:
    """Invariant: the copy is done first, in its stepped half, and the signal delivered behind the instruction."""
    lease = riscv.client("a").probe(SHORT, lambda _: None)
    slot = riscv.slot_of(lease)
    thread = riscv.arrive(PID, SHORT)
    riscv.fake.signal(PID, 10)
    riscv.fake.idle()
    stop = slot + 8
    assert thread.at == stop - 2
    riscv.fake.pass_by(PID, stop)
    riscv.fake.signal(PID, 5, code=_TRAP_BRKPT, address=stop)
    riscv.fake.idle()
    assert thread.at == SHORT + 2
    assert riscv.fake.actions(PID, "resume")[-1][2] == 10


def test_out_of_reach_a_slot_serves_steps(make_world: type[World]) -> None:
    """Invariant: where nothing within 1 MiB can be mapped, the place has STEP, and the reason is said."""
    memory = program()
    for start in (TEXT - (1 << 21), TEXT + 0x1000):
        size = TEXT - start if start < TEXT else 1 << 21
        memory.map(start, bytes(size), permissions="r--p", path="/bin/around")
    world = make_world("riscv64", memory).attach()
    lease = world.client("a").probe(LOAD, lambda _: None)
    assert lease.probepoint is not None
    assert strategy_of(lease) is Strategy.STEP
    assert "no BOOST: no room within 1 MiB" in lease.probepoint.why
    slot = world.slot_of(lease)
    assert abs(slot - LOAD) > 1 << 20
    assert world.arrive(PID, LOAD).at == slot
    world.fake.pass_by(PID, slot + 4)
    world.fake.signal(PID, 5, code=_TRAP_BRKPT, address=slot + 4)
    world.fake.idle()
    assert world.fake.thread(PID).at == LOAD + 4
    forced = world.client("b").probe(SHORT, lambda _: None, strategy=Strategy.STEP)
    assert strategy_of(forced) is Strategy.STEP
    world.close()


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        (SEQUENCE, "load-reserved"),
        (SEQUENCE + 4, "its store-conditional"),
        (SEQUENCE + 8, "sequence"),
        (ECALL, "ecall"),
    ],
)
def test_what_must_not_be_stopped_at_is_refused(riscv: World, address: int, reason: str) -> None:
    """Invariant: by what stands around it, too; nothing is written."""
    before = riscv.memory.image()
    with pytest.raises(InsnRefused, match=reason):
        riscv.client("a").probe(address, lambda _: None)
    assert riscv.memory.image() == before


def test_nothing_is_done_in_place_and_nobody_steps(riscv: World) -> None:
    """Invariant: strategies and verdicts that need a single step are refused, with that reason."""
    with pytest.raises(StrategyRefused, match="no single step"):
        riscv.client("a").probe(LOAD, lambda _: None, strategy=Strategy.INLINE)
    client = riscv.client("b")
    lease = client.probe(SHORT, lambda _: Verdict.STEP)
    thread = riscv.arrive(PID, SHORT)
    assert thread.at == riscv.slot_of(lease)
    assert client.strikes == 1


def test_code_is_probed_as_a_whole(riscv: World) -> None:
    """Invariant: a trap at each instruction, none in a sequence; clients see the program's own code."""
    seen: list[int] = []
    text = riscv.memory.read(VirtAddr(TEXT), 7 * 32)
    ranges = [range(TEXT, TEXT + len(text))]
    found = riscv.desk.probe_code(
        riscv.client("code"), ranges, lambda hit: seen.append(hit.address), first_hits=None, priority=0
    )
    refused = {SEQUENCE, SEQUENCE + 4, SEQUENCE + 8, ECALL}
    assert found.instructions - found.probed == sum(found.refused.values()) == len(refused)
    starts = {int(at) for at in riscv.architecture.instruction_starts(text, VirtAddr(TEXT))}
    assert {at for at in starts if riscv.trap_stands(at)} == starts - refused
    assert riscv.process.memory.read(VirtAddr(TEXT), len(text)) == text
    riscv.arrive(PID, LOAD)
    assert riscv.arrive(101, LOAD + 4).at == LOAD + 6
    assert seen == [LOAD, LOAD + 4]
