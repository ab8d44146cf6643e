"""A program that execs a set-uid one is lost to its user before the new program runs one instruction."""

from __future__ import annotations

import array
import contextlib
import fcntl
import os
import select
import shutil
import subprocess
import tempfile
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

import ubpx
from tests.real.broker.users import A, as_user, open_to_all
from ubpx.core.values import ProcessId
from ubpx_froggy import messages as m
from ubpx_ptracepp.memory import ProcessMemory

if TYPE_CHECKING:
    from tests.real.broker.conftest import Peers
    from tests.real.brokers import BrokerProcess
    from tests.real.conftest import Program, StartProgram

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="becomes other users, which root alone may")

PATIENCE_S: Final = 30.0


@pytest.fixture
def broker(start_broker: Callable[..., BrokerProcess]) -> BrokerProcess:
    """Root's, for everybody, at a socket that everybody can reach."""
    return open_to_all(start_broker("--all-users", "--deadline", "10"))


@pytest.fixture
def set_uid(target_program: StartProgram) -> Iterator[Callable[[Program], Path]]:
    """``set_uid(program)``: a set-uid copy of its executable, root's."""
    with tempfile.TemporaryDirectory(prefix="ubpx-") as place:
        os.chmod(place, 0o755)
        if os.statvfs(place).f_flag & os.ST_NOSUID:
            pytest.skip(f"the file system of {place} is mounted nosuid")

        def copy(program: Program) -> Path:
            path = Path(place, "gains")
            shutil.copyfile(f"/proc/{program.pid}/exe", path)
            os.chown(path, 0, 0)
            path.chmod(0o4755)
            return path

        yield copy


GAINED_HOOKS: Final = (
    "ubpx_process_execed", "ubpx_process_exited", "ubpx_process_detached", "ubpx_module_loaded",
    "ubpx_module_unloaded", "ubpx_thread_exited", "ubpx_signal", "ubpx_probepoint_armed",
)  # fmt: skip


def test_a_program_that_gains_rights_is_lost_before_it_runs(  # noqa: PLR0915 - one story
    peers: Peers, broker: BrokerProcess, target_program: StartProgram, set_uid: Callable[[Program], Path]
) -> None:
    """Invariant: at the set-uid exec A loses the target: no hook, hit or count of the new program reaches A.

    All its handles mean nothing any more, what it waits for is over, and it cannot join again. The program runs on
    as root, and root's own client stays.
    """
    program = as_user(target_program, A, "gains", flags=("-no-pie",))
    first = peers.elsewhere(A).peer(broker.path)
    channel = first.open_channel()
    target = first.ask(m.Attach(program.pid)).target
    client = first.ask(m.OpenClient(target, "first", 1000, list(GAINED_HOOKS))).client
    leases = [
        first.ask(m.Probe(client, "answer", mode, persistent=persistent))
        for mode, persistent in (("sync", False), ("notify", False), ("count", False), ("notify", True))
    ]
    leases.append(first.ask(m.Probe(client, leases[0].address, "notify")))
    root = peers(broker)
    hearing = root.open_channel()
    target_of_root = root.ask(m.Join(program.pid)).target
    client_of_root = root.ask(m.OpenClient(target_of_root, "root's", 0, ["ubpx_process_execed"])).client
    lease_of_root = root.ask(m.Probe(client_of_root, "answer", "count")).lease

    program.tell("1\n")
    hook = channel.recv()
    while isinstance(hook, m.Hook):
        channel.answer(hook)
        hook = channel.recv()
    assert hook.lease == leases[0].lease
    channel.answer(hook)
    assert program.number("answer") == 2
    assert [each.hits for each in first.ask(m.ReadLeases([each.lease for each in leases]))] == [1] * 5
    waiting = m.Wait(target)
    number = first.begin(waiting)

    gained = set_uid(program)
    program.tell(f"e {gained}\n")
    execed = hearing.recv()
    assert (execed.name, execed.arguments) == ("ubpx_process_execed", {"path": str(gained)})
    with pytest.raises((ubpx.PermissionRefused, ubpx.UsageError)):
        first.reply(number, waiting)
    hearing.answer(execed)
    assert program.number("again") == 0
    for value in range(5):
        assert program.answer(value) == value + 1
    assert root.lease(lease_of_root).hits == 6

    assert first.ask(m.Overview()) == []
    handles = [each.lease for each in leases]
    for call in (
        m.Join(program.pid), m.Join(), m.Attach(program.pid), m.Threads(target), m.ReadRegisters(target, program.pid),
        m.ReadMemory(target, leases[0].address, 8), m.WriteMemory(target, leases[0].address, b"x"),
        m.Mappings(target), m.Clients(target), m.Holds(target), m.Wait(target, 0.0), m.OpenClient(target, "again"),
        m.Probe(client, "answer", "count"), m.TakeHold(client), m.Leases(client), m.ReadLeases(handles),
        m.Release(handles), m.CloseClient(client), m.Catch(client, "signals"), m.Leave(target),
    ):  # fmt: skip
        with pytest.raises((ubpx.PermissionRefused, ubpx.UsageError)):
            first.ask(call)
    with pytest.raises(TimeoutError):
        channel.recv(0.2)  # all that was to come has come before the replies
    assert len(first.records) == 3, "the hit of before the exec, for each lease in mode notify"
    assert [each.name for each in root.ask(m.Clients(target_of_root))] == ["root's"]
    assert program.tell("m\n").number("kept") == 1
    root.ask(m.Leave(target_of_root))
    assert program.answer(1) == 2
    program.tell("x 3\n")
    assert program.wait() == 3


def test_a_followed_child_that_gains_rights_is_lost_before_it_runs(
    peers: Peers, broker: BrokerProcess, target_program: StartProgram, set_uid: Callable[[Program], Path]
) -> None:
    """Invariant: from its set-uid exec on a followed child shows A no hit and no memory; A's target stays."""
    program = as_user(target_program, A, "gains", flags=("-no-pie",))
    first = peers.elsewhere(A).peer(broker.path)
    target = first.ask(m.Attach(program.pid, follow="all")).target
    client = first.ask(m.OpenClient(target, "first", 0, [])).client
    lease = first.ask(m.Probe(client, "answer", "count"))
    root = peers(broker)
    client_of_root = root.ask(m.OpenClient(root.ask(m.Join(program.pid)).target, "root's", 0, [])).client
    lease_of_root = root.ask(m.Probe(client_of_root, "answer", "count"))

    program.tell(f"f {set_uid(program)}\n")
    assert (program.number("answer"), program.number("again")) == (41, 0)
    (child,) = (each for each in os.listdir("/proc") if each.isdigit() and _parent_of(each) == program.pid)
    with pytest.raises(ubpx.PermissionRefused):
        first.ask(m.ReadMemory(target, lease.address, 1, int(child)))
    program.tell("7\nq\n")
    assert (program.number("answer"), program.expect("child")) == (8, "gone")
    program.tell("1\n").number("answer")
    (seen,) = first.ask(m.ReadLeases([lease.lease]))
    (all_of_them,) = root.ask(m.ReadLeases([lease_of_root.lease]))
    assert (seen.hits, seen.family) == (1, [2, 0])
    assert (all_of_them.hits, all_of_them.family) == (1, [3, 0])


def _parent_of(pid: str) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def test_not_even_the_loss_of_probepoints_is_told(
    peers: Peers, broker: BrokerProcess, target_program: StartProgram, set_uid: Callable[[Program], Path]
) -> None:
    """Invariant: after the set-uid exec no hook of A's is called, that tells of the old program either."""
    program = as_user(target_program, A, "gains", flags=("-no-pie",))
    first, channel = losing(peers, broker, program)
    program.tell(f"e {set_uid(program)}\n")
    assert program.number("again") == 0
    with pytest.raises((ubpx.PermissionRefused, ubpx.UsageError)):
        first.ask(m.Threads(first.target))
    with pytest.raises(TimeoutError):
        channel.recv(0.2)


def test_who_is_told_of_the_loss_of_probepoints_may_do_nothing_any_more(
    peers: Peers, broker: BrokerProcess, target_program: StartProgram, set_uid: Callable[[Program], Path]
) -> None:
    """Invariant: while a hook of A's runs between the exec and the loss of the target, what it asks is refused."""
    program = as_user(target_program, A, "gains", flags=("-no-pie",))
    [canary] = addresses(program, "canary")
    first, channel = losing(peers, broker, program)
    gained = set_uid(program)
    first.ask(m.WriteMemory(first.target, canary, b"\xff" * 8))  # it may, and that has been looked up just now
    program.tell(f"e {gained}\n")
    with contextlib.suppress(TimeoutError):
        hook = channel.recv(1.0)
        for call in (
            m.WriteMemory(first.target, canary, b"\xff" * 8),
            m.WriteMemory(first.target, canary, b"\xff" * 16, through_protection=True),
            m.ReadMemory(first.target, canary, 8),
            m.Mappings(first.target),
            m.Probe(first.client, "answer", "count"),
        ):
            with pytest.raises((ubpx.PermissionRefused, ubpx.UsageError)):
                channel.ask(call)
        channel.answer(hook)
    assert program.number("again") == 0
    assert program.tell("m\n").number("kept") == 1
    assert program.answer(1) == 2


def losing(peers: Peers, broker: BrokerProcess, program: Program) -> tuple[Any, Any]:
    """A's connection and channel, with a client that wants to be told of probepoints that are lost, and one to lose."""
    first = peers.elsewhere(A).peer(broker.path)
    channel = first.open_channel()
    target = first.ask(m.Attach(program.pid)).target
    client = first.ask(m.OpenClient(target, "first", 0, ["ubpx_probepoint_lost"])).client
    first.note(target, client)
    lease = first.ask(m.Probe(client, "answer", "count")).lease
    assert program.answer(1) == 2
    assert first.lease(lease).hits == 1
    return first, channel


HIJACKED_AS_ITSELF: Final = 76
"""See gains.c; 77 would be: as root."""


@pytest.mark.parametrize("size", [8, 16])
def test_nothing_is_written_into_a_program_that_has_gained_rights(
    size: int, peers: Peers, broker: BrokerProcess, target_program: StartProgram, set_uid: Callable[[Program], Path]
) -> None:
    """Invariant: not one of A's writes that race with the exec reaches the new program's memory."""
    for _ in range(10):
        program = as_user(target_program, A, "gains", flags=("-no-pie",))
        [canary] = addresses(program, "canary")
        gained = set_uid(program)
        attacker = peers.elsewhere(A)
        attacker.begin(keep_writing, peers.connect, broker.path, program.pid, canary, b"\xff" * size)
        await_bytes(program.pid, canary, b"\xff" * size)
        program.tell(f"e {gained}\n")
        assert program.number("again") == 0
        assert attacker.outcome() > 0
        assert program.tell("m\n").number("kept") == 1
        assert program.answer(1) == 2
        program.tell("q\n")
        assert program.wait() == 0
        attacker.end()


def test_a_memory_that_was_left_is_never_another(target_program: StartProgram, monkeypatch: pytest.MonkeyPatch) -> None:
    """Invariant: a write that is under way when its memory is closed reaches no memory that is opened then."""
    other = as_user(target_program, A, "gains", flags=("-no-pie",))
    first = as_user(target_program, A, "gains", flags=("-no-pie",))
    [canary] = addresses(first, "canary")
    write, opened = os.pwrite, list[Any]()

    def interrupted(descriptor: int, data: bytes, address: int) -> int:
        exec_ = threading.Thread(target=replace)
        exec_.start()
        exec_.join(1.0)  # or it waits for us
        return write(descriptor, data, address)

    def replace() -> None:
        memory.close()
        opened.append(ProcessMemory(ProcessId(other.pid)))

    with ubpx.attach(first.pid):
        memory = ProcessMemory(ProcessId(first.pid))
        monkeypatch.setattr(os, "pwrite", interrupted)
        with contextlib.suppress(ubpx.MemoryFault):
            memory.patch(canary, b"\xff" * 8)
        monkeypatch.undo()
    for each in opened:
        each.close()
    assert peek(other.pid, canary, 8) == b"\x5a" * 8


def test_nothing_is_emulated_into_a_program_that_has_gained_rights(
    peers: Peers, broker: BrokerProcess, target_program: StartProgram, set_uid: Callable[[Program], Path]
) -> None:
    """Invariant: what a thread would have pushed whose program another thread has replaced is pushed nowhere."""
    for _ in range(5):
        program = as_user(target_program, A, "gains", flags=("-no-pie",))
        gained = set_uid(program)
        go = go_of(gained)
        attacker = peers.elsewhere(A)
        attacker.begin(keep_pushing, peers.connect, broker.path, program.pid, str(go))
        root = peers(broker)
        eventually_probed(root, program.pid)
        program.tell(f"t {gained}\n")
        assert program.number("again") == 0
        assert attacker.outcome() in {"answered", "late"}
        assert program.tell("m\n").number("kept") == 1
        program.tell("q\n")
        assert program.wait() == 0
        attacker.end()


def go_of(gained: Path) -> Path:
    """What A has to make that the program be replaced."""
    go = Path(f"{gained}.go")
    go.unlink(missing_ok=True)
    os.chmod(gained.parent, 0o777)
    return go


def keep_pushing(connect: Callable[[str], Any], path: str, pid: int, go: str) -> str:
    """Answer the hit of a push once the program has gained rights, if that can be before the answer is late."""
    peer = connect(path)
    lease = peer.probe("probed_pivot", pid=pid, strategy="EMULATE")
    hit = peer.channel.recv()
    assert hit.lease == lease.lease
    Path(go).touch()
    for _ in range(1000):
        if "\t0\t" in Path(f"/proc/{pid}/status").read_text().partition("Uid:")[2].partition("\n")[0]:
            peer.channel.answer(hit, registers={"rbp": 2**64 - 1})
            return "answered"
        with contextlib.suppress(ubpx.UbpxError):
            peer.channel.ask(m.Stops(peer.target))
    return "late"


def test_no_register_of_a_program_that_has_gained_rights_is_written(
    peers: Peers, broker: BrokerProcess, target_program: StartProgram, set_uid: Callable[[Program], Path]
) -> None:
    """Invariant: a hold's release that was asked for before the exec and is done after it writes nothing.

    The tracer is kept busy by a hit of another program of A's while another thread of the program execs. Where it is
    not kept for long enough, A's own program is sent to ``hijacked``, which is A's right.
    """
    for _ in range(5):
        program = as_user(target_program, A, "gains", flags=("-no-pie",))
        decoy = as_user(target_program, A, "echo")
        gained = set_uid(program)
        go = go_of(gained)
        assert program.tell(f"w {gained}\n").expect("waits") == ""
        attacker = peers.elsewhere(A)
        [hijacked] = addresses(program, "hijacked")
        attack = {"pid": program.pid, "decoy": decoy.pid, "hijacked": hijacked, "go": str(go)}
        attacker.begin(keep_releasing, peers.connect, broker.path, **attack)
        eventually_probed(peers(broker), decoy.pid)
        decoy.tell("1\n")
        assert attacker.outcome() in {"released", "refused"}
        assert decoy.number("answer") == 2
        if speaks(program):
            assert program.number("again") == 0
            assert program.answer(1) == 2
            program.tell("q\n")
        assert program.wait() in {0, HIJACKED_AS_ITSELF}
        attacker.end()


def keep_releasing(connect: Callable[[str], Any], path: str, *, pid: int, decoy: int, hijacked: int, go: str) -> str:
    """Hold the leader; release it, with other registers, while a hit of the decoy's keeps the tracer from the exec."""
    peer = connect(path)
    target = peer.ask(m.Attach(pid)).target
    client = peer.ask(m.OpenClient(target, "holder")).client
    hold = peer.ask(m.TakeHold(client, pid)).hold
    peer.probe("answer", pid=decoy)
    hit = peer.channel.recv()
    call = m.ReleaseHold(hold, {"rip": hijacked, "orig_rax": 2**64 - 1})  # no system call that the kernel would restart
    number = peer.begin(call)
    for _ in range(3):
        peer.channel.ask(m.Stops(peer.target))
    Path(go).touch()
    for _ in range(1000):
        if "\t0\t" in Path(f"/proc/{pid}/status").read_text().partition("Uid:")[2].partition("\n")[0]:
            break
        peer.channel.ask(m.Stops(peer.target))
    peer.channel.answer(hit)
    try:
        peer.reply(number, call)
    except ubpx.UbpxError:
        return "refused"
    return "released"


def eventually_probed(root: Any, pid: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if any(each.pid == pid and each.probepoints for each in root.ask(m.Overview())):
            return
        time.sleep(0.01)
    pytest.fail("nothing was probed")


def speaks(program: Program) -> bool:
    """Whether it says something; else it has ended."""
    assert select.select([program._stdout], [], [], PATIENCE_S)[0], "neither"
    unread = array.array("i", [0])
    fcntl.ioctl(program._stdout, termios.FIONREAD, unread)
    return unread[0] > 0


def addresses(program: Program, *names: str) -> list[int]:
    """Of symbols of its executable, which is not position-independent."""
    lines = subprocess.run(["nm", f"/proc/{program.pid}/exe"], capture_output=True, text=True, check=True).stdout
    found = {line.split()[2]: int(line.split()[0], 16) for line in lines.splitlines() if len(line.split()) == 3}
    return [found[name] for name in names]


def peek(pid: int, address: int, size: int) -> bytes:
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        memory.seek(address)
        return memory.read(size)


def await_bytes(pid: int, address: int, wanted: bytes) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while peek(pid, address, len(wanted)) != wanted:
        assert time.monotonic() < deadline, "nothing was written"
        time.sleep(0.005)


def keep_writing(connect: Callable[[str], Any], path: str, pid: int, address: int, data: bytes) -> int:
    """Write, as often as can be, until all ways to go on are refused; how often it was done."""
    peer = connect(path)
    target, done, refused = peer.ask(m.Attach(pid)).target, 0, 0
    while refused < 100:
        for _ in range(16):
            peer.begin(m.WriteMemory(target, address, data))
        for _ in range(16):
            if isinstance(peer.hear(), m.Failed):
                refused += 1
            else:
                done += 1
        if refused:
            with contextlib.suppress(ubpx.UbpxError):
                target = peer.ask(m.Attach(pid)).target
    return done
