"""Wrong types and silly values in public calls: each is a UsageError that says what to give, and nothing was done."""

from __future__ import annotations

import functools
import re
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import pytest

import ubpx
from ubpx.hookspecs import hookimpl

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.real.conftest import Program, StartProgram

NAN, INFINITE = float("nan"), float("inf")
NO_INTS: tuple[object, ...] = ("x", 3.5, None, b"5", [], True)
NO_PLACES: tuple[object, ...] = (3.5, None, b"x", [], True, -1, 2**64, 2**70)
NO_TIMES: tuple[object, ...] = ("x", [], -1, NAN, INFINITE, True)
SILLY: Mapping[str, tuple[object, ...]] = {
    "plugins": (None, 5, "hitcount", b"hitcount", [5], [None]),
    "deadline": (*NO_TIMES, None, 0, 1e20),
    "slots": (None, "some", 5, []),
}
NO_SIGNALS: tuple[object, ...] = (5, "SIGUSR1", [[]], ["SIGUSR1"], [0], [65], [9], [True], [1.0])
NO_CALLS: tuple[object, ...] = (5, "openat", [[]], ["nosuch"], [-1], [True], [1.0])
NO_NAMES: tuple[object, ...] = (5, "", None, b"x", [], "a\nb")


@pytest.fixture
def echo(target_program: StartProgram) -> Program:
    """A program that calls answer(n) when asked."""
    return target_program("echo")


@pytest.fixture
def target(echo: Program) -> Iterator[Any]:
    """The program, attached; typed as anything, as for a caller without a type checker."""
    with ubpx.attach(echo.pid) as attached:
        yield attached


def refused(call: Callable[..., object], *arguments: Any, **options: Any) -> str:
    """The message of the UsageError that the call must raise."""
    with pytest.raises(ubpx.UsageError) as caught:
        call(*arguments, **options)
    return str(caught.value)


def attach(pid: object, **options: Any) -> None:
    """As anybody without a type checker may call it; detached at once should it work."""
    anything: Any = ubpx.attach
    anything(pid, **options).detach()


@pytest.mark.parametrize("pid", [*NO_INTS, 0, -1, 2**40, 2**70])
def test_pid(pid: object) -> None:
    """Invariant: what can be no process is refused before anything is done."""
    assert repr(pid) in refused(attach, pid)


@pytest.mark.parametrize(("option", "value"), [(option, value) for option in SILLY for value in SILLY[option]])
def test_options_of_attach_and_spawn(echo: Program, option: str, value: object) -> None:
    """Invariant: an option that means nothing is named in the refusal, whichever way the target was to come."""
    spawn: Any = ubpx.spawn
    assert option in refused(attach, echo.pid, **{option: value})
    assert option in refused(spawn, ["true"], kill_on_exit=True, **{option: value})
    assert echo.answer(1) == 2


def test_the_switch_interval_of_a_session() -> None:
    """Invariant: it is a time above 0, or None; a session that is refused leaves no thread behind."""
    for seconds in (*NO_TIMES, 0):
        assert "switch_interval" in refused(ubpx.Session, switch_interval=seconds)
    ubpx.Session(switch_interval=None).close()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"cwd": "/nonexist"}, "'/nonexist' cannot be entered: No such file or directory"),
        ({"cwd": 5}, "cwd=5"),
        ({"env": {"A": 5}}, "'A': 5"),
        ({"env": {5: "A"}}, "5: 'A'"),
        ({"env": {"A": "x\0"}}, "null byte"),
        ({"env": "x"}, "env='x'"),
        ({"stdin": "junk"}, "stdin='junk'"),
        ({"stdout": True}, "stdout=True"),
        ({"stderr": 1.5}, "stderr=1.5"),
        ({"stdin": 2**40}, "maximum"),
        ({"kill_on_exit": "yes"}, "kill_on_exit='yes'"),
    ],
)
def test_options_of_spawn(options: Mapping[str, Any], said: str) -> None:
    """Invariant: what Popen would choke on is refused with its own value in the message; no process is left."""
    assert said in refused(ubpx.spawn, ["true"], **options)


@pytest.mark.parametrize("argv", [[], "ls", None, ["a\0b"], [""], ["/does/not/exist"], ["/etc/passwd"]])
@pytest.mark.contract("error-2")
def test_argv(argv: Any) -> None:
    """Invariant: a program that cannot be started is a UsageError that names it."""
    assert repr(argv[0] if isinstance(argv, list) and argv else argv) in refused(ubpx.spawn, argv)


def test_timeout(target: Any) -> None:
    """Invariant: only a time from 0 up is a time to wait."""
    for timeout in NO_TIMES:
        assert f"timeout={timeout!r}" in refused(target.wait, timeout)
    assert target.wait(0) is None


@pytest.mark.contract("error-18")
def test_memory(target: Any, echo: Program) -> None:
    """Invariant: neither what is no address, nor a size out of all proportion, nor text reaches the memory."""
    place = target.client("one").probe("long_insn", lambda _: None).address
    for address in NO_INTS:
        assert "address" in refused(target.memory.read, address, 8)
        assert "address" in refused(target.memory.write, address, b"12345678")
    for size in [*NO_INTS, -1, 2**40, 2**70]:
        assert "size" in refused(target.memory.read, place, size)
    for data in ("text", 5, None, [1]):
        assert "bytes" in refused(target.memory.write, place, data)
        assert "bytes" in refused(target.memory.patch, place, data)
    for address in (-1, 2**64, 2**70):
        with pytest.raises(ubpx.MemoryFault):
            target.memory.read(address, 8)
    assert target.memory.read(place, 0) == b""
    assert echo.answer(1) == 2


def test_names_of_clients(target: Any) -> None:
    """Invariant: a client's name is text that can be printed, for others are told it."""
    for name in NO_NAMES:
        assert "name" in refused(target.client, name)
    assert target.clients() == ()


def test_probes_and_holds(target: Any, echo: Program) -> None:
    """Invariant: a refused probe or hold leaves nothing armed and nothing held; the client goes on."""
    client = target.client("one")
    for place in NO_PLACES:
        assert "address" in refused(client.probe, place, print)
    for option in ("exclusive", "assume_boundary", "defer"):
        for value in ("yes", None, 1):
            assert option in refused(client.probe, "answer", print, **{option: value})
    for option in ("once", "exclusive", "assume_boundary", "skip_refused"):
        for value in ("yes", 1):
            assert option in refused(client.probe_many, ["answer"], print, **{option: value})
    for places in (5, None, [3.5], [None]):
        assert refused(client.probe_many, places, print)
    for priority in ("x", 1.5, True):
        assert "priority" in refused(client.probe, "answer", print, priority=priority)
    for tid in (*NO_INTS[:2], b"5", True, 0, -1, 2**70):
        assert "target.threads()" in refused(client.hold, tid)
    assert (client.leases, target.holds()) == ((), ())
    assert client.probe("answer", lambda _: None).hits == 0
    assert echo.answer(1) == 2


def test_hooks_and_catch_sets(target: Any, echo: Program) -> None:
    """Invariant: hooks that are none, and signals and system calls that do not exist, are refused."""

    class Asked:
        @hookimpl
        def ubpx_signal(self) -> None: ...

        @hookimpl
        def ubpx_syscall_entered(self) -> None: ...

    for hooks in (5, "hooks", object(), int):
        assert "hook" in refused(target.client, "one", hooks=hooks)
    assert target.clients() == ()
    client = target.client("one", hooks=Asked())
    for signals in NO_SIGNALS:
        assert "signal" in refused(client.catch_signals, signals)
    for calls in NO_CALLS:
        assert re.search("system call|syscalls", refused(client.catch_syscalls, calls))
    for tid in NO_INTS:
        assert "tid" in refused(client.step, tid)
    with client.hold(echo.pid) as hold:
        for signal in ("x", -1, 65, 1.5, True):
            assert "signal" in refused(hold.release, signal=signal)
            assert "signal" in refused(client.step, echo.pid, signal=signal)
        assert "registers" in refused(client.step, echo.pid, 5)
    assert echo.answer(1) == 2


def test_hits(target: Any, echo: Program) -> None:
    """Invariant: a handler's slip is a UsageError that counts against its client; the program never sees it."""
    seen: list[str] = []

    def slip(hit: Any) -> None:
        seen.extend(refused(hit.args.__getitem__, index) for index in (*NO_INTS, -1, slice(2)))
        seen.extend(refused(setattr, hit.regs, "rdi", value) for value in ("x", 1.5, None))
        seen.extend(refused(hit.regs.__getitem__, name) for name in (*NO_NAMES, "nosuch"))
        seen.append(refused(getattr, hit.regs, "nosuch"))
        seen.append(refused(setattr, hit.regs, "nosuch", 1))
        seen.append(str(hasattr(hit.regs, "nosuch")))

    lease = target.client("one").probe("answer", slip)
    assert echo.answer(1) == 2
    assert (lease.hits, lease.errors) == (1, 0)
    assert len(seen) == 8 + 3 + 7 + 2 + 1
    assert seen[-1] == "False"


def test_registers_at_a_release(target: Any, echo: Program, eventually: Callable[..., bool]) -> None:
    """Invariant: a release with registers that cannot be written releases nothing; what can is cut to 64 bits."""
    target.client("one").probe("answer", lambda _: ubpx.Verdict.HOLD)
    echo.tell("1\n")
    assert eventually(target.holds)
    (hold,) = target.holds()
    for registers in (5, "x", [("rdi", 1)], {"rdi": "x"}, {"rdi": None}, {"nosuch": 1}, {5: 1}):
        assert "regist" in refused(hold.release, registers)
    assert not hold.released
    hold.release({"rdi": 2**64 + 6})
    assert echo.number("answer") == 7


@pytest.mark.contract("error-7")
def test_what_is_gone_is_not_told_to_start_again(target: Any, echo: Program) -> None:
    """Invariant: the message of TargetGone fits somebody else's process too."""
    client = target.client("one")
    echo.tell("x 3\n")
    assert target.wait(10) == 3
    with pytest.raises(ubpx.TargetGone) as gone:
        client.probe("answer", lambda _: None)
    assert (gone.value.pid, gone.value.status) == (echo.pid, 3)
    assert str(gone.value) == f"process {echo.pid} exited with status 3; attach to one that runs"


def test_detach_in_a_handler_ends_the_session(echo: Program, eventually: Callable[..., bool]) -> None:
    """Invariant: a target that a handler has left takes its session along, with its threads, without a with."""

    def threads_of_ours() -> set[str]:
        return {thread.name for thread in threading.enumerate() if thread.name.startswith("ubpx-")}

    before = threads_of_ours()
    target = ubpx.attach(echo.pid)
    target.client("one").probe("answer", lambda _: target.detach())
    assert threads_of_ours() > before
    assert echo.answer(1) == 2
    assert eventually(lambda: threads_of_ours() == before)
    target.detach()
    with pytest.raises(ubpx.UsageError, match="detached"):
        target.wait()
    assert echo.answer(2) == 3


def test_detach_in_a_handler_and_beside_it(target_program: StartProgram, eventually: Callable[..., bool]) -> None:
    """Invariant: whoever detaches at the same moment as a handler is not told that the session is closed."""
    for _ in range(20):
        program = target_program("echo", 2)
        with ubpx.attach(program.pid) as target:
            lease = target.client("one").probe("busy", lambda hit: hit.lease.client.target.detach())
            assert eventually(functools.partial(getattr, lease, "hits"))
        assert program.answer(1) == 2
