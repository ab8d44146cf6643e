"""Programs of 32 bits under a tracer of 64: everything holds for them that holds for the others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

import ubpx
from ubpx.hookspecs import hookimpl

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.real.conftest import Program, StartProgram

pytestmark = pytest.mark.skipif(os.uname().machine != "x86_64", reason="no other machine runs i386's programs")
NARROW: Final = ("-m32",)
FUNCTIONS: Final = (
    "probed_mov", "probed_push", "probed_push_esp", "probed_nop", "probed_endbr", "probed_jmp", "probed_jcc",
    "probed_jecxz", "probed_pusha", "probed_inc", "probed_leave", "probed_ret_4", "probed_pushf", "probed_pic",
    "probed_thunk_call", "probed_thunk", "probed_indirect", "probed_vsyscall", "probed_gs",
)  # fmt: skip
STRATEGIES: Final = (None, "JUMP", "BOOST", "STEP", "INLINE")
UBPX: Final = str(Path(sys.executable).with_name("ubpx"))
BITS_32: Final = 0xFFFF_FFFF


@pytest.mark.over_both
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_counts_are_exact_and_nothing_else_changes(target_program: StartProgram, strategy: str | None) -> None:
    """Invariant: over threads and signals every arrival counts once, and each function does what it did before."""
    threads, calls = 3, 20 if strategy == "INLINE" else 100
    program = target_program("i386", threads, calls, flags=NARROW)
    maps = program.maps()
    with ubpx.attach(program.pid) as target:
        assert target.architecture == "i386"
        client = target.client("one")
        leases = {}
        for name in FUNCTIONS:
            try:
                leases[name] = client.probe(
                    name, lambda _: None, strategy=None if strategy is None else ubpx.Strategy(strategy)
                )
            except ubpx.StrategyRefused:
                assert strategy is not None
        assert strategy is not None or len(leases) == len(FUNCTIONS)
        made = program.tell("g").number("calls", timeout=60)
        program.number("signals")
        assert made == threads * calls
        expected = {name: made * (2 if name == "probed_thunk" else 1) for name in leases}
        expected["probed_thunk"] = expected.get("probed_thunk", 0)
        assert {name: lease.hits for name, lease in leases.items()} == {name: expected[name] for name in leases}
        assert {lease.errors for lease in leases.values()} <= {0}
    program.assert_untouched(maps)
    assert program.tell("q").wait() == 0


@pytest.mark.parametrize("sort", ["load", "store", "divide"])
@pytest.mark.parametrize(
    "strategy", [ubpx.Strategy.JUMP, ubpx.Strategy.BOOST, ubpx.Strategy.STEP, ubpx.Strategy.INLINE]
)
def test_a_fault_is_the_programs_own(target_program: StartProgram, sort: str, strategy: ubpx.Strategy) -> None:
    """Invariant: an instruction that faults in a slot shows its own eip, si_addr and registers, and may run again."""
    program = target_program("i386_faults", sort, 50, flags=NARROW)
    with ubpx.attach(program.pid) as target:
        lease = target.client("one").probe(f"probed_fault_{sort}", lambda _: None, strategy=strategy)
        assert program.tell("g").number("arrivals") == lease.hits == 100
    assert program.tell("q").wait() == 0


@pytest.mark.over_both
@pytest.mark.contract("hit-8")
def test_a_hit_shows_the_registers_of_i386(target_program: StartProgram) -> None:
    """Invariant: names, sizes and arguments are i386's; what is written is cut to 32 bits, and is in force."""
    program = target_program("i386", 1, 1, "probed_mov", flags=NARROW)
    shots: list[ubpx.Snapshot] = []
    seen: list[tuple[tuple[str, ...], bytes, int, int]] = []

    def look(hit: ubpx.Hit) -> None:
        assert hit.regs.eip == hit.address
        seen.append((tuple(hit.regs), bytes(hit.regs), hit.args[0], hit.args[3]))
        with pytest.raises(ubpx.UnknownRegister, match=r"i386 has no register 'rax'; it has ebp, ebx, eax"):
            _ = hit.regs.rax
        with pytest.raises(ubpx.UnknownRegister):
            _ = hit.regs[""]
        shots.append(hit.snapshot())
        hit.memory.write(hit.regs.esp + 4, (40).to_bytes(4, "little"))
        hit.regs.edi = -1 << 40 | hit.regs.edi
        hit.regs.ecx = (1 << 32) + hit.regs.ecx

    with ubpx.attach(program.pid) as target:
        lease = target.client("one").probe("probed_mov", look)
        program.tell("g")
        # It finds that its function got 40 instead of 16, and nothing else amiss.
        assert program.wait() == 4
        assert (lease.hits, lease.errors) == (1, 0)
    (shot,), ((names, packed, argument, _),) = shots, seen
    assert names == (
        "ebp", "ebx", "eax", "ecx", "edx", "esi", "edi", "orig_eax", "eip", "cs", "eflags", "esp", "ss", "fs_base",
        "gs_base", "ds", "es", "fs", "gs",
    )  # fmt: skip
    assert tuple(shot.regs) == names
    assert all(0 <= value <= BITS_32 for value in shot.regs.values())
    words = [int.from_bytes(packed[at : at + 8], "little") for at in range(0, len(packed), 8)]
    assert words == list(shot.regs.values())
    assert (argument, shot.args[0], len(shot.args)) == (16, 16, 6)
    assert (shot.regs["ecx"], shot.regs["edi"], shot.regs["cs"]) == (17, 21, 0x23)


@pytest.mark.over_both
@pytest.mark.parametrize("strategy", [None, ubpx.Strategy.BOOST])
def test_written_registers_are_in_force(target_program: StartProgram, strategy: ubpx.Strategy | None) -> None:
    """Invariant: a handler may have the program skip its function: pc, stack and result as it says."""
    program = target_program("i386", 2, 50, "probed_nop", flags=NARROW)

    def skip(hit: ubpx.Hit) -> None:
        hit.regs.eax = hit.args[0] + 4
        hit.regs.eip = int.from_bytes(hit.memory.read(hit.regs.esp, 4), "little")
        hit.regs.esp += 4

    with ubpx.attach(program.pid) as target:
        client = target.client("one")
        skipped = client.probe("probed_nop", skip, strategy=strategy)
        behind = client.probe("probed_nop+4", lambda _: None)
        assert program.tell("g").number("calls") == skipped.hits == 100
        assert (skipped.errors, behind.hits) == (0, 0)
        program.number("signals")
    assert program.tell("q").wait() == 0


def test_slots_lie_where_32_bits_reach(target_program: StartProgram) -> None:
    """Invariant: what the program maps for us is below 4 GiB, and of every instruction a copy can be made."""
    program = target_program("i386", 1, 1, flags=NARROW)
    maps = program.maps()
    with ubpx.attach(program.pid) as target:
        lease = target.client("one").probe("probed_mov", lambda _: None, strategy=ubpx.Strategy.BOOST)
        assert lease.probepoint is not None
        assert lease.probepoint.slot is not None
        assert lease.probepoint.slot < 0xFFFF_E000
        ours = [line for line in program.maps() - maps if "r-xp" in line]
        assert len(ours) == 2  # the area, and the first page of the guard
        assert all(int(line.partition("-")[0], 16) < 0xFFFF_E000 for line in program.maps() - maps)
    program.assert_untouched(maps)


@pytest.mark.parametrize("strategy", [ubpx.Strategy.BOOST, ubpx.Strategy.STEP, ubpx.Strategy.INLINE])
def test_children_of_every_sort_are_harmless(target_program: StartProgram, strategy: ubpx.Strategy) -> None:
    """Invariant: every forked, vforked, spawned and cloned child ends as it should; only the parent's calls count."""
    program = target_program("children", 3, 3, flags=NARROW)
    with ubpx.attach(program.pid) as target:
        lease = target.client("one").probe("probed_child", lambda _: None, strategy=strategy)
        assert program.tell("g").number("children", timeout=50) == 3 * 3 * 6
        assert program.number("calls") == lease.hits
    assert program.tell("q").wait() == 0


@pytest.mark.over_both
@pytest.mark.parametrize("first", ["i386", "x86_64"])
def test_exec_from_one_word_size_to_the_other_and_back(target_program: StartProgram, first: str) -> None:
    """Invariant: what a process's registers and arguments are called is its present program's; its leases go on.

    Children that run the other kind by fork, vfork and posix_spawn are let go unharmed.
    """
    paths = {"i386": target_program.build("hop", *NARROW), "x86_64": target_program.build("hop")}
    other = "x86_64" if first == "i386" else "i386"
    seen: list[tuple[str, int]] = []

    def land(hit: ubpx.Hit) -> None:
        kind = "i386" if "eip" in hit.regs else "x86_64"
        assert hit.regs["eip" if kind == "i386" else "rip"] == hit.address
        seen.append((kind, hit.args[0] & BITS_32))

    target = ubpx.spawn([str(paths[first]), "5", str(paths[first]), str(paths[other])])
    with target:
        assert target.architecture == first
        lease = target.client("one").probe("landing", land)
        assert target.wait(timeout=60) == 0
        assert (lease.hits, lease.errors) == (6, 0)
    assert seen == [(first if count % 2 else other, count) for count in (5, 4, 3, 2, 1, 0)]


@pytest.mark.parametrize("first", [59, 11])
def test_an_exec_ends_as_a_call_of_the_new_program(target_program: StartProgram, first: int) -> None:
    """Invariant: its entry has the old program's number for it, its exit the new one's; both its name."""
    wide, narrow = (str(target_program.build("hop", *flags)) for flags in ((), NARROW))
    keeper, second = CallKeeper(), 59 + 11 - first
    command = [wide, "2", wide, narrow] if first == 59 else [narrow, "2", narrow, wide]
    with ubpx.spawn(command) as target:
        target.client("one", hooks=keeper)
        assert target.wait(timeout=60) == 0
    for told in (keeper.entered, keeper.exited):
        assert {number for name, number in told if name == "execve"} == {59, 11}
        assert (told["execve", first], told["execve", second]) == (1, 1)
    assert not any(number < 0 for _, number in keeper.exited)


def test_a_program_that_may_not_be_read_is_told_by_its_auxiliary_vector(
    target_program: StartProgram, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Invariant: whoever may trace a program need not be allowed to read its file."""
    kinds = {"i386": target_program("waits", flags=NARROW), "x86_64": target_program("waits")}
    monkeypatch.setattr("ubpx_ptracepp.procfs.machine", lambda _: "unknown")
    for kind, program in kinds.items():
        with ubpx.attach(program.pid) as target:
            assert target.architecture == kind
            assert target.client("one").probe("by_mutex", lambda _: None, strategy="BOOST").hits == 0


def test_one_session_has_processes_of_both_kinds(target_program: StartProgram) -> None:
    """Invariant: an architecture belongs to a process, not to the session that traces it."""
    narrow = target_program("i386", 1, 50, "probed_push", flags=NARROW)
    wide = target_program("hot_calls", "probed_push", 1, 50)
    with ubpx.Session() as session:
        targets = [session.attach(program.pid) for program in (narrow, wide)]
        assert [target.architecture for target in targets] == ["i386", "x86_64"]
        leases = [target.client("one").probe("probed_push", lambda _: None) for target in targets]
        assert [program.tell("g").number("calls") for program in (narrow, wide)] == [50, 50]
        assert [lease.hits for lease in leases] == [50, 50]
    narrow.number("signals")
    assert [program.tell("q").wait() for program in (narrow, wide)] == [0, 0]


class CallKeeper:
    """Keeps the names and numbers of the system calls that it is told of: those named, or all."""

    def __init__(self, *calls: str) -> None:
        self.calls = calls
        self.entered: Counter[tuple[str, int]] = Counter()
        self.exited: Counter[tuple[str, int]] = Counter()
        self.results: set[int] = set()

    @hookimpl
    def ubpx_process_attached(self, client: ubpx.Client) -> None:
        if self.calls:
            client.catch_syscalls(self.calls)

    @hookimpl
    def ubpx_syscall_entered(self, number: int, name: str) -> None:
        self.entered[name, number] += 1

    @hookimpl
    def ubpx_syscall_exited(self, number: int, name: str, result: int) -> None:
        self.exited[name, number] += 1
        if name == "getpid":
            self.results.add(result)


@pytest.mark.over_both
def test_system_calls_have_the_numbers_of_i386(target_program: StartProgram) -> None:
    """Invariant: hooks are called with i386's names, and a client catches what i386 calls so."""
    program = target_program("i386", 1, 30, "probed_vsyscall", flags=NARROW)
    everything, one = CallKeeper(), CallKeeper("getpid", "mmap2")
    with ubpx.attach(program.pid) as target:
        target.client("everything", hooks=everything)
        target.client("one", hooks=one)
        lease = target.client("prober").probe("probed_vsyscall", lambda _: None)
        assert program.tell("g").number("calls") == lease.hits == 30
        program.number("signals")
    # The program asks libc for its pid, too, to see whether the answer is right.
    assert everything.entered["getpid", 20] == everything.exited["getpid", 20] == 60
    assert everything.results == {program.pid}
    assert everything.entered["write", 4] >= 2
    assert one.entered == Counter({("getpid", 20): 60})
    assert program.tell("q").wait() == 0


class StepKeeper:
    """Keeps where each step ended."""

    def __init__(self) -> None:
        self.stepped: list[int] = []
        self.step = threading.Event()

    @hookimpl
    def ubpx_thread_stepped(self, address: int) -> None:
        self.stepped.append(address)
        self.step.set()


def test_stepping_through_a_system_call(target_program: StartProgram, eventually: Callable[..., bool]) -> None:
    """Invariant: from a probed call of the vdso a client steps into it, over its system call, and out again."""
    program = target_program("i386", 1, 1, "probed_vsyscall", flags=NARROW)
    keeper = StepKeeper()
    with ubpx.attach(program.pid) as target:
        client = target.client("one", hooks=keeper)
        lease = client.probe("probed_vsyscall", lambda _: ubpx.Verdict.HOLD)
        assert lease.address is not None
        program.tell("g")
        assert eventually(lambda: len(target.holds()) == 1)
        (hold,) = target.holds()
        assert hold.thread is not None
        behind = lease.address + 7
        stack = target.registers(hold.thread)["esp"]
        for _ in range(30):
            keeper.step.clear()
            client.step(hold.thread)
            assert keeper.step.wait(30)
            if len(keeper.stepped) == 1:  # the call has pushed where the program goes on
                assert target.registers(hold.thread)["esp"] == stack - 4
                assert int.from_bytes(target.memory.read(stack - 4, 4), "little") == behind
            if keeper.stepped[-1] == behind:
                break
        assert keeper.stepped[-1] == behind
        assert target.registers(hold.thread)["eax"] == program.pid
        vdso = next(line for line in program.maps() if line.endswith("[vdso]"))
        start, end = (int(bound, 16) for bound in vdso.split()[0].split("-"))
        assert all(start <= address < end for address in keeper.stepped[:-1])
        hold.release()
        assert program.number("calls") == 1
        program.number("signals")
    assert program.tell("q").wait() == 0


@pytest.mark.parametrize("flags", [(), NARROW], ids=["x86_64", "i386"])
def test_what_is_interrupted_in_the_kernel_waits_on(target_program: StartProgram, flags: tuple[str, ...]) -> None:
    """Invariant: threads that are stopped, and have to map slots, in system calls of every sort do not notice."""
    program = target_program("waits", flags=flags)
    maps = program.maps()
    for turn in range(6):
        with ubpx.attach(program.pid) as target:
            client = target.client("one")
            lease = client.probe("by_mutex", lambda _: None, strategy=ubpx.Strategy.STEP)
            for thread in target.threads() if turn % 2 else ():
                client.hold(thread).release()
            client.hold().release()
            assert lease.hits == 0
        program.assert_untouched(maps)
    assert program.tell("q").number("waited") == 8
    assert program.wait() == 0


@pytest.mark.over_both
def test_a_lease_waits_for_dlopen(target_program: StartProgram) -> None:
    """Invariant: a pending lease is armed before the library's first instruction runs, and again after a reload."""
    library = str(target_program.build("plugin", "-shared", "-fPIC", *NARROW))
    loader = target_program("loader", library, flags=NARROW)
    loader.tell("oc").expect("opened")
    loader.expect("closed")
    maps = loader.maps()
    with ubpx.attach(loader.pid) as target:
        lease = target.client("one").probe("plugin:plugin_function", lambda _: None)
        assert lease.state == ubpx.LeaseState.PENDING
        for round_ in (1, 2):
            loader.tell("o").expect("opened")
            assert (lease.state, lease.hits) == (ubpx.LeaseState.ARMED, round_ * 11 - 10)
            assert loader.tell("g").number("calls") == round_ * 10
            loader.tell("c").expect("closed")
            assert (lease.state, lease.hits) == (ubpx.LeaseState.PENDING, round_ * 11)
    loader.assert_untouched(maps)
    assert loader.tell("q").wait() == 0


@pytest.mark.parametrize("linkage", [("-pie",), ("-static", "-no-pie", "-fno-pie")], ids=["pie", "static"])
def test_a_program_runs_from_start_to_end_with_all_its_functions_probed(
    target_program: StartProgram, linkage: tuple[str, ...]
) -> None:
    """Invariant: probed at every function of its main program, it does what it does alone; a static one has libc's."""
    command = [str(target_program.build("sorter", *NARROW, *linkage)), "300"]
    alone = subprocess.run(command, capture_output=True, timeout=60, check=False)
    reading, writing = os.pipe()
    with Path(f"/proc/self/fd/{writing}").open("wb") as stdout:
        os.close(writing)
        with ubpx.spawn(command, stdout=stdout) as target:
            stdout.close()
            group = target.client("all").probe_many("sorter:*", lambda _: None)
            assert len(group) > (900 if "-static" in linkage else 10)
            assert target.wait(timeout=60) == alone.returncode
            hits = {str(lease.spec): lease.hits for lease in group}
            assert not any(lease.errors for lease in group)
    with Path(f"/proc/self/fd/{reading}").open("rb") as output:
        os.close(reading)
        assert output.read() == alone.stdout
    by_name = {name.rpartition(":")[2]: count for name, count in hits.items()}
    assert by_name["main"] == 1
    assert f"compared {by_name['compare']}\n".encode() in alone.stdout
    if "-static" in linkage:
        assert by_name["printf"] > 1


def test_a_debug_register_watches_a_program_of_32_bits(target_program: StartProgram) -> None:
    """Invariant: every write of every thread is noticed, and what 32 bits cannot name is refused."""
    program = target_program("writer", 2, flags=NARROW)
    with ubpx.attach(program.pid) as target:
        client = target.client("one")
        place = data_address(program, target_program.build("writer", *NARROW), "watched_long")
        lease = client.watch(place, lambda _: None, size=4)
        assert program.tell("w").number("accesses") == lease.hits > 0
        with pytest.raises(ubpx.UsageError, match="cannot be watched; give an address of the program's memory"):
            client.watch(1 << 33, lambda _: None)


def data_address(program: Program, path: Path, symbol: str) -> int:
    """Where a data symbol of the program is."""
    listed = subprocess.run(["nm", path], check=True, capture_output=True, text=True).stdout.splitlines()
    linked = next(int(line.split()[0], 16) for line in listed if line.endswith(f" {symbol}"))
    return min(int(line.split("-")[0], 16) for line in program.maps() if str(path) in line) + linked


def test_the_commands_work_on_it(target_program: StartProgram) -> None:
    """Invariant: doctor finds nothing against it, and trace shows hits and cdecl's arguments."""
    program = target_program("i386", 1, 1, flags=NARROW)
    doctor = subprocess.run(
        [UBPX, "doctor", "-p", str(program.pid)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (doctor.returncode, doctor.stderr) == (0, "")
    paths = [str(target_program.build("hop", *flags)) for flags in (NARROW, ())]
    command = [UBPX, "trace", "--json", "-e", "landing", "--", paths[0], "3", *paths]
    traced = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert traced.returncode == 0, traced.stderr
    lines = [json.loads(line) for line in traced.stderr.splitlines()]
    assert [line["args"][0] & BITS_32 for line in lines] == [3, 2, 1, 0]
    assert {len(line["args"]) for line in lines} == {6}
    assert lines[0]["address"] < 1 << 32 <= lines[1]["address"]
