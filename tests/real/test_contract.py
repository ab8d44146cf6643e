"""Sentences of docs/reference/contract.md that no other test shows: what a target, a client and a lease are."""

from __future__ import annotations

import inspect
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy
import pytest

import ubpx
from ubpx.core.values import Place, VirtAddr
from ubpx.hookspecs import hookimpl

if TYPE_CHECKING:
    from tests.real.conftest import Program, StartProgram

pytestmark = pytest.mark.over_both

AT_ENTRY = 9


@pytest.fixture
def echo(target_program: StartProgram) -> Program:
    """A program that calls answer(n) when asked."""
    return target_program("echo")


def host_with(**plugins: object) -> pluggy.PluginManager:
    """An application that has these plugins."""
    host = pluggy.PluginManager("application")
    for name, plugin in plugins.items():
        host.register(plugin, name)
    return host


# The life of a target -----------------------------------------------------------------------


@pytest.mark.contract("life-1")
def test_attach_stops_nobody(target_program: StartProgram) -> None:
    """Invariant: an attach stops nobody, the first trap one thread for its guard, an area of slots one more."""
    program = target_program("echo", 4)
    with ubpx.attach(program.pid) as target:
        client = target.client("one")
        assert target.stops == 0
        client.probe("answer", lambda _: None, strategy="INLINE")
        guarded = target.stops
        assert 0 < guarded <= 2 * 5
        client.probe("answer+0x4", lambda _: None, strategy="INLINE")
        assert target.stops == guarded
        client.probe("long_insn", lambda _: None, strategy="BOOST")
        assert guarded < target.stops <= 4 * 5
        assert program.answer(1) == 2


@pytest.mark.contract("life-2")
@pytest.mark.attach_alone("with a broker these are the broker's own")
def test_spawn_gives_the_program_what_popen_would(tmp_path: Path) -> None:
    """Invariant: argv, env, cwd and the three streams are the program's, and a pipe's end is on target.popen."""
    script = "import os, sys; print(os.getcwd(), os.environ['COLOUR'], sys.stdin.read()); print('!', file=sys.stderr)"
    command = [sys.executable, "-c", script]
    with (tmp_path / "said").open("w+") as said:
        streams: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": said, "stderr": subprocess.STDOUT}
        with ubpx.spawn(command, env={"COLOUR": "green"}, cwd=str(tmp_path), **streams) as target:
            assert isinstance(target, ubpx.Target)
            assert target.popen is not None
            assert target.popen.stdin is not None
            target.resume()
            target.popen.stdin.write(b"words")
            target.popen.stdin.close()
            assert target.wait(30) == 0
    assert sorted((tmp_path / "said").read_text().splitlines()) == ["!", f"{tmp_path} green words"]


@pytest.mark.contract("life-7")
def test_wait_tells_the_signal_that_killed_a_spawned_program() -> None:
    """Invariant: a signal's number is negative, for spawned programs as for attached ones."""
    with ubpx.spawn([sys.executable, "-c", "import os; os.kill(os.getpid(), 15)"]) as target:
        assert target.wait(30) == -15


@pytest.mark.contract("life-5", "life-6", "call-1")
def test_handlers_run_one_at_a_time_in_their_sessions_thread(target_program: StartProgram) -> None:
    """Invariant: all targets of a session have one tracer thread, every other session has one of its own."""
    threads: dict[str, set[threading.Thread]] = {"one": set(), "two": set(), "alone": set()}
    running: list[str] = []
    overlaps: list[tuple[str, ...]] = []

    def note(hit: ubpx.Hit) -> None:
        name = hit.lease.client.name
        threads[name].add(threading.current_thread())
        if name != "alone":
            running.append(name)
            time.sleep(0.002)
            overlaps.extend([tuple(running)] if len(running) > 1 else [])
            running.remove(name)

    programs = [target_program("hot_calls", "probed_lea", 2, 20) for _ in threads]
    with ubpx.Session() as session, ubpx.attach(programs[2].pid) as alone:
        targets = [session.attach(programs[0].pid), session.attach(programs[1].pid), alone]
        for name, target in zip(threads, targets, strict=True):
            target.client(name).probe("probed_lea", note)
        for program in programs:
            program.tell("g")
        assert [program.number("calls") for program in programs] == [40, 40, 40]
    assert overlaps == []
    assert [len(each) for each in threads.values()] == [1, 1, 1]
    assert threads["one"] == threads["two"] != threads["alone"]
    assert threading.current_thread() not in threads["one"] | threads["alone"]


@pytest.mark.contract("life-18")
def test_spec_whose_module_is_not_mapped_is_pending(echo: Program) -> None:
    """Invariant: with defer such a lease is PENDING, has no address and no hits, and can be released."""
    with ubpx.attach(echo.pid) as target:
        lease = target.client("one").probe("libnone.so:write", lambda _: None)
        assert (lease.state, lease.address, lease.probepoint, lease.hits) == (ubpx.LeaseState.PENDING, None, None, 0)
        assert target.probepoints() == ()
        lease.release()
        assert lease.state is ubpx.LeaseState.RELEASED


# Clients, leases, hits ----------------------------------------------------------------------


class Witness:
    """A client plugin that keeps what it is told, by the argument names of the contract."""

    def __init__(self) -> None:
        self.attached: list[tuple[Any, Any]] = []
        self.stepped: list[tuple[int, int]] = []
        self.quarantined: list[tuple[str, str, float]] = []

    @hookimpl
    def ubpx_process_attached(self, client: Any, process: Any) -> None:
        self.attached.append((client, process.pid))
        client.probe("answer", lambda _: ubpx.Verdict.STEP)

    @hookimpl
    def ubpx_thread_stepped(self, tid: int, address: int) -> None:
        self.stepped.append((tid, address))

    @hookimpl
    def ubpx_client_quarantined(self, client: Any, reason: str, held_s: float) -> None:
        self.quarantined.append((client.name, reason, held_s))


@pytest.mark.contract("client-3", "verdict-2", "failure-3")
def test_a_client_plugin_sees_what_its_client_lives_through(echo: Program, eventually: Callable[..., bool]) -> None:
    """Invariant: its own client, named after it; the end of each step that it asked for; others' quarantine."""
    witness = Witness()
    with ubpx.attach(echo.pid, host=host_with(witness=witness), plugins=["witness"]) as target:
        ((client, pid),) = witness.attached
        assert (client.name, client.target, pid) == ("witness", target, echo.pid)
        assert target.clients() == (client,)
        (lease,) = client.leases
        assert [echo.answer(n) for n in range(3)] == [1, 2, 3]
        assert witness.stepped == [(echo.pid, lease.address + 4)] * 3
        ill = target.client("ill")
        failing = ill.probe("answer", lambda _: 1 // 0)
        assert [echo.answer(n) for n in range(4)] == [1, 2, 3, 4]
        assert (failing.state, failing.hits, ill.leases) == (ubpx.LeaseState.QUARANTINED, 3, ())
        assert lease.probepoint.clients == ("witness",)
        assert eventually(lambda: witness.quarantined)
        ((told, reason, held_s),) = witness.quarantined
        assert (told, "ZeroDivisionError" in reason, 0 <= held_s < 60) == ("witness", True, True)


@pytest.mark.contract("lease-1", "lease-4")
def test_what_a_lease_tells(echo: Program, way: str) -> None:
    """Invariant: a lease and its probepoint have all their parts, by spec and by address."""
    with ubpx.attach(echo.pid) as target:
        client = target.client("one")
        first = client.probe(
            "answer", lambda _: None, strategy=None, exclusive=False, priority=None, assume_boundary=False, defer=True
        )
        assert way == "connect" or isinstance(first, ubpx.Lease)
        assert first.address is not None
        second = client.probe(first.address, lambda _: None)
        assert echo.answer(1) == 2
        assert (second.address, second.hits, second.errors, second.state) == (first.address, 1, 0, "ARMED")
        found = second.probepoint
        assert found is not None
        assert (found.address, found.clients) == (first.address, ("one", "one"))
        assert isinstance(found.strategy, ubpx.Strategy)
        assert found.slot is None or isinstance(found.slot, int)
        second.release()
        assert (second.state, found.clients) == ("RELEASED", ("one",))


@pytest.mark.contract("hit-7", "hit-11")
def test_arguments_beyond_the_registers(echo: Program) -> None:
    """Invariant: the seventh argument is the word behind the return address, and unsigned like all others."""
    seen: list[tuple[int, int, int]] = []

    def look(hit: ubpx.Hit) -> None:
        behind = hit.memory.read(VirtAddr(hit.regs.rsp + 8), 8)
        seen.append((hit.args[0], hit.args[6], int.from_bytes(behind, "little")))

    with ubpx.attach(echo.pid) as target:
        target.client("one").probe("answer", look)
        assert echo.answer(-5) == -4
    ((first, seventh, behind),) = seen
    assert (first, seventh) == (2**64 - 5, behind)


@pytest.mark.contract("slots-1", "slots-2")
def test_slots_may_be_forbidden(target_program: StartProgram) -> None:
    """Invariant: with slots="none" nothing is ever mapped, and every instruction is emulated or stepped in place."""
    program = target_program("hot_calls", "probed_push", 4, 100)
    maps = program.maps()
    with ubpx.attach(program.pid, slots="none") as target:
        client = target.client("one")
        used = []
        for symbol in ("probed_push", "call_observed", "probed_lea", "probed_indirect"):
            lease = client.probe(symbol, lambda _: None)
            assert lease.probepoint is not None
            assert lease.probepoint.slot is None
            used.append(lease.probepoint.strategy)
        for strategy in ("BOOST", "STEP", "JUMP"):
            with pytest.raises(ubpx.StrategyRefused):
                client.probe("probed_rip", lambda _: None, strategy=strategy)
        assert set(used) == {ubpx.Strategy.EMULATE, ubpx.Strategy.INLINE}
        assert program.tell("g").number("calls") == client.leases[0].hits == 400
        assert program.maps() - maps == set()
    assert program.tell("q").wait() == 0


@pytest.mark.contract("failure-7")
def test_the_default_deadline_is_one_second() -> None:
    for face in (ubpx.attach, ubpx.spawn, ubpx.Session):
        assert inspect.signature(face).parameters["deadline"].default == 1.0


@pytest.mark.contract("failure-8")
@pytest.mark.attach_alone("a broker does not wait for it to return")
def test_handler_that_blocks_in_c_is_quarantined_when_it_returns(echo: Program) -> None:
    """Invariant: one call that blocks past its deadline is enough; others are told for how long, and go on."""
    witness = Witness()
    with ubpx.attach(echo.pid, deadline=0.05, host=host_with(witness=witness), plugins=["witness"]) as target:
        blocks = target.client("blocks").probe("answer", lambda _: time.sleep(1.5))
        well = target.client("well").probe("answer", lambda _: None)
        assert echo.answer(1) == 2
        assert blocks.state is ubpx.LeaseState.QUARANTINED
        assert (blocks.hits, well.hits, well.state) == (1, 1, ubpx.LeaseState.ARMED)
        ((told, _, held_s),) = witness.quarantined
        assert (told, 1.5 <= held_s < 60) == ("witness", True)
        assert echo.answer(2) == 3
        assert (blocks.hits, well.hits) == (1, 2)


# Specs --------------------------------------------------------------------------------------


@pytest.mark.contract("spec-1", "spec-2", "spec-3", "spec-6")
def test_every_form_of_a_spec_leads_to_one_probepoint(echo: Program) -> None:
    """Invariant: symbol, module and symbol, path, offset and address name one place, and so do aliases."""
    path = os.readlink(f"/proc/{echo.pid}/exe")
    with ubpx.attach(echo.pid) as target:
        client = target.client("one")
        first = client.probe("answer", lambda _: None)
        assert first.address is not None
        end = f"answer+{4:#x}"
        forms = ["echo:answer", f"{path}:answer", f"{first.address:#x}", "answer+0"]
        assert {client.probe(form, lambda _: None).probepoint for form in forms} == {first.probepoint}
        assert client.probe(end, lambda _: None).address == first.address + 4
        aliases = ["libc:write", "libc.so.6:write", "libc.so.6:__write"]
        assert len({client.probe(alias, lambda _: None).probepoint for alias in aliases}) == 1
        assert len(target.probepoints()) == 3


@pytest.mark.contract("spec-8", "spec-9")
def test_address_outside_any_symbol_needs_somebodys_word(target_program: StartProgram) -> None:
    """Invariant: where no symbol proves it, an address is an instruction's start by assume_boundary alone."""
    program = target_program("echo", flags=("-s",))
    words = memoryview(Path(f"/proc/{program.pid}/auxv").read_bytes()).cast("Q")
    entry = dict(zip(words[::2], words[1::2], strict=True))[AT_ENTRY]
    with ubpx.attach(program.pid) as target:
        client = target.client("one")
        with pytest.raises(ubpx.NotAnInstruction) as refused:
            client.probe(entry, lambda _: None)
        assert "assume_boundary" in str(refused.value)
        assert target.probepoints() == ()
        assert client.probe(entry, lambda _: None, assume_boundary=True).state is ubpx.LeaseState.ARMED


@pytest.mark.contract("import-5")
@pytest.mark.attach_alone("they are resolved where the tracer is")
def test_specs_are_resolved_by_hook(echo: Program) -> None:
    """Invariant: what a spec means is what the hook says; a host's resolver is asked before the installed one."""

    class OwnWords:
        place: Place | None = None

        @hookimpl
        def ubpx_resolve_spec(self, spec: object) -> Place | None:
            return self.place if spec == "where it answers" else None

    resolver = OwnWords()
    with ubpx.attach(echo.pid, host=host_with(words=resolver)) as target:
        client = target.client("one")
        by_name = client.probe("answer", lambda _: None)
        assert by_name.address is not None
        at = by_name.address
        resolver.place = Place(address=at, name="it", symbol_start=at, symbol_end=VirtAddr(at + 5))
        assert client.probe("where it answers", lambda _: None).probepoint is by_name.probepoint


# Errors that the kernel gives only on demand ------------------------------------------------


@pytest.mark.contract("error-17")
def test_slots_exhausted(echo: Program) -> None:
    """Invariant: a program that may map no memory gets no slot, and is told; what needs none goes on."""
    resource.prlimit(echo.pid, resource.RLIMIT_AS, (0, resource.RLIM_INFINITY))
    with ubpx.attach(echo.pid) as target:
        client = target.client("one")
        with pytest.raises(ubpx.SlotsExhausted) as refused:
            client.probe("answer", lambda _: None, strategy="BOOST")
        assert (refused.value.pid, "memory" in refused.value.reason) == (echo.pid, True)
        assert target.probepoints() == ()
        lease = client.probe("answer", lambda _: None)
        assert echo.answer(1) == 2
        assert lease.hits == 1


STRANGER = """\
import ctypes, sys
import pluggy, ubpx
from ubpx.hookspecs import hookimpl
from ubpx_ptracepp.tracer import PtraceTracer
SETRESUID = 117

class Stranger(PtraceTracer):
    def open(self):
        super().open()
        assert ctypes.CDLL(None).syscall(SETRESUID, 65534, 65534, 65534) == 0

class Plugin:
    @hookimpl
    def ubpx_open_tracer(self):
        return Stranger()

host = pluggy.PluginManager("stranger")
host.register(Plugin(), "stranger")
try:
    ubpx.attach(int(sys.argv[1]), host=host)
except ubpx.PermissionRefused as refused:
    print(refused.pid, refused.cause, refused.remedy, sep="; ")
"""


@pytest.mark.contract("error-5")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a tracer thread somebody else's")
def test_permission_refused(echo: Program) -> None:
    """Invariant: another user's process is refused by the kernel, and the refusal says whose it is."""
    command = [sys.executable, "-c", STRANGER, str(echo.pid)]
    outcome = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert outcome.stdout.startswith(f"{echo.pid}; "), outcome.stderr
    assert "user 0" in outcome.stdout
    assert "run ubpx as root" in outcome.stdout
    assert outcome.stderr == ""
    assert echo.answer(1) == 2


@pytest.mark.contract("command-10", "error-21")
@pytest.mark.attach_alone("a broker without a tracer does not start")
def test_without_a_tracer_attach_says_what_to_install(echo: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    """Invariant: ubpx alone cannot trace, says so, and leaves the process alone."""
    from ubpx.core import plugins

    installed: Callable[..., Any] = plugins.entry_points  # type: ignore[attr-defined]
    without = [each for each in installed(group="ubpx") if each.name != "ptracepp"]
    monkeypatch.setattr(plugins, "entry_points", lambda group: without)
    arguments: Mapping[str, Callable[[], object]] = {
        "attach": lambda: ubpx.attach(echo.pid),
        "spawn": lambda: ubpx.spawn(["true"]),
        "Session": ubpx.Session,
    }
    for call in arguments.values():
        with pytest.raises(ubpx.NoTracer, match="pip install ubpx-ptracepp"):
            call()
    assert echo.answer(1) == 2
