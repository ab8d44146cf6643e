"""``ubpx serve``: how a broker begins, how it ends, and what it refuses before anything is touched."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

import ubpx

if TYPE_CHECKING:
    from tests.real.conftest import Program, StartProgram

UBPX: Final = str(Path(sys.executable).with_name("ubpx"))
PATIENCE_S: Final = 60.0
ROOT: Final = Path(__file__).parents[3]


@pytest.fixture
def echo(target_program: StartProgram) -> Program:
    """A program that calls answer(n) when asked."""
    return target_program("echo", 1)


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory with a short name; the run directory is in it."""
    with tempfile.TemporaryDirectory(prefix="ubpx-") as name:
        monkeypatch.setenv("UBPX_RUN_DIRECTORY", f"{name}/run")
        yield Path(name)


def serve(*arguments: object) -> subprocess.CompletedProcess[str]:
    """A broker that is expected to refuse."""
    command = [UBPX, "serve", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


def refused(*arguments: object, status: int) -> str:
    """The one line that it says."""
    done = serve(*arguments)
    assert done.returncode == status, done
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("ubpx: ")
    assert "; " in line
    return line


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("used", [False, True])
def test_a_signal_ends_it_and_the_program_is_as_before(
    start_broker: Any, echo: Program, how: signal.Signals, used: bool
) -> None:
    """Invariant: exit status 0, program untouched, clients told, socket and entries gone."""
    before = echo.maps()
    broker = start_broker("-p", str(echo.pid))
    assert broker.greeting == f"ubpx: serving process {echo.pid} at {broker.path}"
    run = Path(os.environ["UBPX_RUN_DIRECTORY"])
    assert sorted(each.name for each in run.rglob("*.json")) == sorted([f"{broker.pid}.json", f"{echo.pid}.json"])
    target = ubpx.connect(broker.path) if used else None
    if target is not None:
        lease = target.client("c").probe("answer", lambda _: None)
        target.client("d").hold(echo.pid)
    broker.popen.send_signal(how)
    assert broker.popen.wait(PATIENCE_S) == 0
    echo.assert_untouched(before)
    assert echo.answer(3) == 4
    assert not Path(broker.path).exists()
    assert list(run.rglob("*.json")) == []
    if target is not None:
        with pytest.raises(ubpx.BrokerGone):
            target.threads()
        assert (lease.hits, lease.state) == (0, "LOST")
        target.detach()


def test_it_ends_with_its_programs_and_not_before_its_clients(start_broker: Any, echo: Program) -> None:
    """Invariant: who is connected can still read its counts when the program has ended."""
    broker = start_broker("-p", str(echo.pid))
    with ubpx.connect(broker.path) as target:
        lease = target.client("c").probe("answer", lambda _: None)
        assert echo.answer(1) == 2
        assert echo.tell("x 5\n").wait() == 5
        assert target.wait(PATIENCE_S) == 5
        assert target.wait() == 5
        assert target.threads() == ()
        assert lease.hits == 1
        assert broker.popen.poll() is None
    assert broker.popen.wait(PATIENCE_S) == 0


def test_without_programs_it_waits_for_clients_and_leaves_what_nobody_uses(start_broker: Any, echo: Program) -> None:
    before = echo.maps()
    broker = start_broker()
    with ubpx.connect(broker.path, pid=echo.pid) as target:
        lease = target.client("c").probe("answer", lambda _: None)
        assert echo.answer(1) == 2
        assert lease.hits == 1
    echo.assert_untouched(before)
    with ubpx.connect(broker.path, pid=echo.pid) as target:
        assert target.clients() == ()
    echo.assert_untouched(before)
    assert broker.popen.poll() is None


def test_many_programs_one_broker(start_broker: Any, target_program: StartProgram) -> None:
    """Invariant: targets of one broker are independent; without a pid only a single one can be meant."""
    programs = [target_program("echo", 1) for _ in range(3)]
    broker = start_broker(*(word for each in programs for word in ("-p", str(each.pid))))
    with pytest.raises(ubpx.UsageError, match="3 targets"):
        ubpx.connect(broker.path)
    targets = [ubpx.connect(broker.path, pid=each.pid) for each in programs]
    leases = [each.client("c").probe("answer", lambda _: None) for each in targets]
    for number, program in enumerate(programs):
        assert [program.answer(n) for n in range(number + 1)] == list(range(1, number + 2))
    assert [each.hits for each in leases] == [1, 2, 3]
    for target in targets:
        target.detach()


def test_a_program_that_it_starts_waits_for_the_first_client(start_broker: Any, place: Path) -> None:
    """Invariant: it stands at its entry point until a client resumes it, or waits for it; probes of before count."""
    told = place / "told"
    broker = start_broker("--", sys.executable, "-c", f"import os; open({str(told)!r}, 'w').write('x'); os._exit(3)")
    assert "stands at its entry point" in broker.greeting
    with ubpx.connect(broker.path) as target:
        lease = target.client("c").probe("libc:write", lambda _: None)
        assert target.threads() == (target.pid,)
        assert target.popen is None
        assert not told.exists()
        with ubpx.connect(broker.path, read_only=True) as looker:
            assert looker.wait(0.2) is None
            assert not told.exists(), "who only reads has started the program"
        assert target.wait(PATIENCE_S) == 3
        assert lease.hits >= 1
    assert told.read_text() == "x"
    assert broker.popen.wait(PATIENCE_S) == 0


def test_run_starts_the_program_at_once(start_broker: Any, place: Path, eventually: Callable[..., bool]) -> None:
    told = place / "told"
    broker = start_broker("--run", "--", sys.executable, "-c", f"open({str(told)!r}, 'w').write('x')")
    assert "stands" not in broker.greeting
    assert eventually(told.exists)
    assert broker.popen.wait(PATIENCE_S) == 0


def test_a_program_that_it_starts_has_the_limits_that_we_have(place: Path) -> None:
    """Invariant: the many descriptors that a broker needs are its own."""
    told = place / "told"
    code = f"import resource; open({str(told)!r}, 'w').write(str(resource.getrlimit(resource.RLIMIT_NOFILE)[0]))"
    script = f'ulimit -S -n 300; exec {UBPX} serve --socket {place}/s --run -- {sys.executable} -c "{code}"'
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert (done.returncode, done.stdout) == (0, "")
    assert told.read_text() == "300"


def test_every_waiter_is_told_how_the_program_ended(start_broker: Any, echo: Program) -> None:
    broker = start_broker("-p", str(echo.pid))
    targets = [ubpx.connect(broker.path) for _ in range(3)]
    assert [each.wait(0.05) for each in targets] == [None] * 3
    assert targets[0].wait(0) is None
    assert echo.popen is not None
    echo.popen.send_signal(signal.SIGUSR1)
    assert [each.wait(PATIENCE_S) for each in targets] == [-signal.SIGUSR1] * 3
    assert echo.wait() == -signal.SIGUSR1
    for target in targets:
        target.detach()


def test_what_cannot_be_traced(place: Path, echo: Program) -> None:
    """Invariant: one line, exit status 1, and nothing is left behind."""
    path = place / "s"
    assert "no process has pid" in refused("--socket", path, "-p", 2**22 - 3, status=1)
    assert "kernel thread" in refused("--socket", path, "-p", 2, status=1)
    with ubpx.attach(echo.pid):
        assert f"already traced by {os.getpid()}" in refused("--socket", path, "-p", echo.pid, status=1)
    assert "nosuchprogram" in refused("--socket", path, "--", "nosuchprogram", status=1)
    assert not path.exists()
    assert list(place.rglob("*.json")) == []
    assert echo.answer(1) == 2


@pytest.mark.parametrize("bad", ["-p 0", "-p x", "--deadline 0", "--deadline nan", "--max-queue 0", "--nosuch"])
def test_nonsense_on_the_command_line(place: Path, bad: str) -> None:
    assert refused("--socket", place / "s", *bad.split(), status=2)
    assert not (place / "s").exists()


def test_one_refusal_leaves_the_others_alone(place: Path, echo: Program) -> None:
    """Invariant: of several programs that are named all are traced, or none."""
    before = echo.maps()
    assert "no process has pid" in refused("--socket", place / "s", "-p", echo.pid, "-p", 2**22 - 3, status=1)
    echo.assert_untouched(before)
    assert list(place.rglob("*.json")) == []


def test_a_socket_that_cannot_be_had(place: Path, start_broker: Any, echo: Program) -> None:
    """Invariant: what is in the way is named, and stays; the program is not touched."""
    before = echo.maps()
    taken = place / "file"
    taken.write_text("precious")
    assert "no socket" in refused("--socket", taken, "-p", echo.pid, status=2)
    assert taken.read_text() == "precious"
    assert "no socket" in refused("--socket", place, "-p", echo.pid, status=2)
    assert "too long" in refused("--socket", place / ("x" * 120), "-p", echo.pid, status=2)
    assert "make its directory" in refused("--socket", place / "no" / "s", "-p", echo.pid, status=1)
    broker = start_broker()
    assert "another broker listens" in refused("--socket", broker.path, "-p", echo.pid, status=2)
    echo.assert_untouched(before)


def test_a_socket_that_nobody_listens_on_is_replaced(place: Path, start_broker: Any) -> None:
    path = place / "stale"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
    broker = start_broker("--socket", str(path))
    assert broker.greeting == f"ubpx: serving no process yet at {path}"
    with pytest.raises(ubpx.UsageError, match="0 targets"):
        ubpx.connect(str(path))


def test_a_full_disk_is_met_before_the_program_is(place: Path, echo: Program) -> None:
    """Invariant: the entry in the run directory is written first; what cannot be begun has touched nothing."""
    run = place / "run"
    run.mkdir(mode=0o700)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k,mode=700", "tmpfs", run], check=True)
    try:
        with (run / "filler").open("wb") as filler:
            while True:
                try:
                    os.write(filler.fileno(), bytes(4096))
                except OSError:
                    break
        before = echo.maps()
        line = refused("--socket", place / "s", "-p", echo.pid, status=1)
        assert "No space left" in line
        echo.assert_untouched(before)
        assert not (place / "s").exists()
    finally:
        subprocess.run(["umount", run], check=True)


def test_only_root_serves_everybody(place: Path) -> None:
    code = (
        "import os, sys\n"
        "from ubpx_froggy.broker import access, serve\n"
        "import ubpx\n"
        "os.setresgid(54321, 54321, 54321), os.setresuid(54321, 54321, 54321)\n"
        "try: serve.serve(serve.ServeRequest(for_everybody=True), print)\n"
        "except ubpx.UsageError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert "--all-users needs root" in done.stdout


def test_systemd_may_hand_the_socket_over(place: Path, echo: Program, eventually: Callable[..., bool]) -> None:
    """Invariant: sd_listen_fds(3): the socket is the third descriptor, and stays where it is when the broker ends."""
    path = place / "given"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        script = f"LISTEN_PID=$$ LISTEN_FDS=1 exec {UBPX} serve 3<&{listening.fileno()}"
        command = ["bash", "-c", script]
        broker = subprocess.Popen(command, pass_fds=[listening.fileno()], stderr=subprocess.PIPE, text=True)
        try:
            assert broker.stderr is not None
            assert broker.stderr.readline() == f"ubpx: serving no process yet at {path}\n"
            with ubpx.connect(str(path), pid=echo.pid) as target:
                lease = target.client("c").probe("answer", lambda _: None)
                assert echo.answer(1) == 2
                assert lease.hits == 1
            broker.terminate()
            assert broker.wait(PATIENCE_S) == 0
            assert path.exists()
        finally:
            broker.kill()
            broker.communicate()


@pytest.mark.parametrize("unit", ["user", "system"])
def test_the_units_start_what_there_is(unit: str) -> None:
    """Invariant: the options that a unit gives are the command's, and its socket is the one that it says."""
    directory = ROOT / "plugins" / "froggy" / "systemd" / unit
    service, listening = (directory / f"ubpx.{kind}" for kind in ("service", "socket"))
    (start,) = [line for line in service.read_text().splitlines() if line.startswith("ExecStart=")]
    words = start.split()
    assert words[0].endswith("/bin/ubpx")
    assert words[1] == "serve"
    told = subprocess.run([UBPX, "serve", "--help"], capture_output=True, text=True, check=True).stdout
    assert all(word in told for word in words[2:])
    assert ("--all-users" in words) == ("SocketMode=0666" in listening.read_text()) == (unit == "system")
    if shutil.which("systemd-analyze"):
        checked = subprocess.run(
            ["systemd-analyze", "verify", f"--{unit}", "--man=no", service, listening],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        unknown = [line for line in checked.stderr.splitlines() if "Unknown" in line or "Failed to parse" in line]
        assert unknown == []
