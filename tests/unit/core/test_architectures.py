"""What a program is made for belongs to its address space: programs of both kinds, and an exec of the other kind."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import pytest

from tests.unit.core.conftest import FUNCTION, PID, PUSH, STACK, World, program
from ubpx._errors import TargetGone, UnknownRegister, UsageError
from ubpx.core.events import Verdict
from ubpx.core.probepoints import LeaseState
from ubpx.core.registers import RegisterLayout, WordRegisters
from ubpx.core.slots import AREA_SIZE, choose_hole
from ubpx.core.ubp import architecture
from ubpx.core.values import MappedRange, ProcessId, VirtAddr
from ubpx.hookspecs import hookimpl

if TYPE_CHECKING:
    from ubpx.core.hits import Hit

NARROW = architecture("i386")
SLOT_REACH = 2**31
LAYOUT = RegisterLayout("i386", NARROW.register_names, NARROW.pc_name, word_size=4)


def test_words_that_are_no_register_are_not_shown() -> None:
    """Invariant: of 27 words of 64 bits the 19 of i386 are shown, 32 bits of each."""
    words = [0xDEAD_BEEF_0000_0000 | position for position in range(27)]
    values = LAYOUT.values(words)
    assert "" not in values
    assert tuple(values) == LAYOUT.names
    assert len(values) == 19
    assert all(NARROW.register_names[value] == name for name, value in values.items())
    assert LAYOUT.packed(words) == struct.pack("<19Q", *values.values())
    assert LAYOUT.packed(memoryview(struct.pack("<27Q", *words)).cast("Q")) == LAYOUT.packed(words)
    assert dict(WordRegisters(words, LAYOUT)) == values


@pytest.mark.parametrize("name", ["i386", "x86_64"])
def test_an_area_for_copies_that_may_lie_anywhere_is_out_of_the_way(name: str) -> None:
    """Invariant: it lies below all that is mapped, and where nothing is free there it lies below the limit."""
    described = architecture(name)
    limit = described.address_limit
    low = MappedRange(
        start=VirtAddr(0x804_8000),
        end=VirtAddr(0x900_0000),
        permissions="r-xp",
        offset=0,
        device="0:0",
        inode=0,
        path="",
    )
    assert choose_hole([low], [], AREA_SIZE, limit=limit, slot_reach=SLOT_REACH) == low.start - AREA_SIZE
    bottom = MappedRange(
        start=VirtAddr(0x1_0000),
        end=VirtAddr(0xFFFC_0000),
        permissions="r-xp",
        offset=0,
        device="0:0",
        inode=0,
        path="",
    )
    place = choose_hole([bottom], [], AREA_SIZE, limit=limit, slot_reach=SLOT_REACH)
    assert place is not None
    assert bottom.end <= place <= limit - AREA_SIZE
    assert choose_hole([bottom], [], 0x10_0000, limit=0xFFFF_E000, slot_reach=SLOT_REACH) is None


def exec_to(world: World, name: str) -> None:
    world.memory = memory = program()
    world.fake.exec(PID, memory, entry=FUNCTION, architecture=name)
    world.fake.idle()
    world.arrive(PID, FUNCTION)


def test_an_exec_changes_the_architecture_and_back(world: World) -> None:
    """Invariant: after an exec a lease's hits have the new program's registers, and its instructions are those."""
    world.symbols["program:push"] = PUSH
    seen: list[tuple[str, int, bytes]] = []

    def look(hit: Hit) -> None:
        name = next(each for each in ("esp", "rsp") if each in hit.regs)
        seen.append((name, hit.regs[name], bytes(hit.regs)))
        with pytest.raises(UnknownRegister):
            _ = hit.regs["rsp" if name == "esp" else "esp"]

    lease = world.attach().client("a").probe("program:push", look)
    for name, size in (("i386", 4), ("x86_64", 8), ("i386", 4)):
        exec_to(world, name)
        assert world.process.space.architecture.name == name
        assert lease.state is LeaseState.ARMED
        thread = world.arrive(PID, PUSH, ss=0x2B, rsp=STACK + 0x100, rbp=0x0123_4567_89AB_CDEF)
        assert thread["rsp"] == STACK + 0x100 - size
        pushed = world.memory.read(VirtAddr(STACK + 0x100 - size), size)
        assert pushed == (0x0123_4567_89AB_CDEF).to_bytes(8, "little")[:size]
        assert seen[-1][:2] == ("esp" if size == 4 else "rsp", STACK + 0x100)
        assert len(seen[-1][2]) == 8 * (19 if size == 4 else 27)
    assert (lease.hits, lease.errors) == (3, 0)
    exec_to(world, "x86_64")


def test_what_is_written_is_cut_to_the_register(world: World) -> None:
    """Invariant: by a handler, and along with a release; unknown names are refused with those that there are."""
    world.attach()
    exec_to(world, "i386")
    client = world.client("a")

    def write(hit: Any) -> Verdict:
        hit.regs.ecx = -1
        hit.regs["edx"] = 1 << 32 | 5
        return Verdict.HOLD

    client.probe(PUSH, write)
    thread = world.arrive(PID, PUSH, ss=0x2B, rsp=STACK + 0x100, rdi=7 << 32 | 9)
    assert (thread["ecx"], thread["edx"]) == (0xFFFF_FFFF, 5)
    assert world.desk.registers(thread.tid)["edi"] == 9
    assert "" not in world.desk.registers(thread.tid)
    (hold,) = world.holds()
    with pytest.raises(UsageError, match="no register is named 'rax'; there are ebp, ebx, eax"):
        hold.release({"rax": 1})
    with pytest.raises(UsageError, match="no register is named ''"):
        hold.release({"": 1})
    hold.release({"esi": -2})
    world.fake.idle()
    assert thread["esi"] == 0xFFFF_FFFE
    exec_to(world, "x86_64")


class AskedOfCalls:
    def __init__(self) -> None:
        self.asked: list[tuple[int, str]] = []

    @hookimpl
    def ubpx_syscall_entered(self, number: int, name: str) -> None:
        self.asked.append((number, name))


def test_a_call_that_is_caught_by_name_keeps_its_name(world: World) -> None:
    """Invariant: numbers are the present program's, and so are names; what was caught by a number is that number."""
    by_name, by_number = AskedOfCalls(), AskedOfCalls()
    world.attach().client("name", hooks=by_name).catch_syscalls(["write"])
    world.client("number", hooks=by_number).catch_syscalls([4])
    for name in ("x86_64", "i386"):
        exec_to(world, name)
        for number in (1, 4):
            world.fake.syscall(PID, number)
        world.fake.idle()
    assert by_name.asked == [(1, "write"), (4, "write")]
    assert by_number.asked == [(4, ""), (4, "write")]
    with pytest.raises(UsageError, match="'nosuch' is no system call of i386"):
        world.client("other", hooks=AskedOfCalls()).catch_syscalls(["nosuch"])
    exec_to(world, "x86_64")


def test_a_program_that_cannot_be_traced_is_left(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Invariant: an exec to what is not supported ends the target with the reason, and the program runs on alone."""
    lease = world.attach().client("a").probe(PUSH, lambda _: None)

    def refuse(pid: ProcessId) -> str:
        raise UsageError(f"process {pid} runs a program for vax")

    monkeypatch.setattr(world.fake, "architecture_of", refuse)
    world.memory = program()
    world.fake.exec(PID, world.memory, entry=FUNCTION, architecture="vax")
    world.fake.idle()
    assert world.process.ended.is_set()
    assert isinstance(world.process.failure, UsageError)
    assert not world.fake.thread(PID).traced
    assert lease.state is LeaseState.RELEASED
    with pytest.raises(TargetGone):
        world.client("b")


def test_a_forked_child_is_what_its_parent_is(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Invariant: a child is cleaned without a look at its program, which may be gone by then."""
    world.attach()
    exec_to(world, "i386")
    world.client("a").probe(PUSH, lambda _: None)
    monkeypatch.setattr(world.fake, "architecture_of", lambda _: pytest.fail("asked about a forked child"))
    world.fake.fork(PID, 200)
    world.fake.idle()
    child = world.fake._processes[ProcessId(200)]
    assert child.memory.read(VirtAddr(PUSH), 1) == b"\x55"
    assert not world.fake.thread(200).traced
    monkeypatch.undo()
    exec_to(world, "x86_64")
