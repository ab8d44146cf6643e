"""Real programs for the tests of this ring: built once, talked to in bounded time, always ended."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import select
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, Self

import pytest

if TYPE_CHECKING:
    import ubpx

ROOT: Final = Path(__file__).parents[2]
SOURCES: Final = ROOT / "tests" / "targets"
BUILD: Final = ROOT / "build" / "targets"
FLAGS: Final = ("-O2", "-g0", "-Wall", "-Wextra", "-Werror", "-pthread")
MORE_SOURCES: Final = {"twins": ("twins_other.c",)}
PATIENCE_S: Final = 30.0
MARK: Final = "UBPX_TEST_MARK"


def load(name: str) -> ModuleType:
    """The module ``tests.NAME``, from its file; tests import it by that name then, which is the one that mypy knows.

    Pytest imports tests by path and puts no directory on the path, so that somebody must load what they share.
    """
    name = f"tests.{name}"
    if name not in sys.modules:
        path = str(ROOT.joinpath(*name.split(".")).with_suffix(".py"))
        sys.modules[name] = module = ModuleType(name)
        module.__file__ = path
        SourceFileLoader(name, path).exec_module(module)
    return sys.modules[name]


# Brokers, and tests that run over both: fixtures and a hook.
_brokers: Final = load("real.brokers")
start_broker = _brokers.start_broker
serve = _brokers.serve
way = _brokers.way
pytest_generate_tests = _brokers.pytest_generate_tests
load("real.loops")
load("real.families")
pytest_report_to_serializable: Final = load("real.reports").pytest_report_to_serializable


def build(name: str, *flags: str) -> Path:
    """The program compiled from tests/targets/NAME.c; from the cache if source, headers and flags are the same."""
    sources = [SOURCES / f"{name}.c", *(SOURCES / more for more in MORE_SOURCES.get(name, ()))]
    digest = hashlib.sha256(repr((name, FLAGS, flags)).encode())
    for part in (*sources, *sorted(SOURCES.glob("*.h"))):
        digest.update(part.read_bytes())
    program = BUILD / digest.hexdigest()[:16] / name
    if program.exists():
        return program
    program.parent.mkdir(parents=True, exist_ok=True)
    unfinished = program.with_name(f"{name}.{os.getpid()}")
    subprocess.run(["gcc", *FLAGS, *flags, "-o", unfinished, *sources], check=True)
    with contextlib.suppress(FileExistsError):  # another run was building the same, and a test may run that already
        os.link(unfinished, program)
    unfinished.unlink()
    return program


def eventually(condition: Callable[[], object], timeout: float = PATIENCE_S) -> bool:
    """Whether the condition comes true in time."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def status_of(pid: int, tid: int | None = None) -> dict[str, str]:
    """/proc/PID/status as a dictionary; empty if it has ended."""
    path = Path(f"/proc/{pid}/task/{tid}/status" if tid else f"/proc/{pid}/status")
    try:
        lines = path.read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def threads_of(pid: int) -> list[int]:
    """The tids of the process; none if it has ended."""
    try:
        return sorted(int(entry.name) for entry in Path(f"/proc/{pid}/task").iterdir())
    except (FileNotFoundError, ProcessLookupError):
        return []


def stopped_or_traced(pid: int) -> dict[int, str]:
    """Threads that do not run as if nobody had been there: tid -> what is wrong."""
    found = {}
    for tid in threads_of(pid):
        status = status_of(pid, tid)
        if status and (status["State"][0] in "tT" or status["TracerPid"] != "0"):
            found[tid] = f"state {status['State']}, tracer {status['TracerPid']}"
    return found


def maps_of(pid: int) -> set[str]:
    """The lines of /proc/PID/maps, without what the program itself moves: the ends of heap and stack."""
    lines = set()
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        without_end = re.sub(r"^([0-9a-f]+)-[0-9a-f]+(.*\[heap\])$", r"\1\2", line)
        lines.add(re.sub(r"^[0-9a-f]+-([0-9a-f]+)(.*\[stack\])$", r"\1\2", without_end))
    return lines


def changed_text(pid: int) -> list[str]:
    """Executable file-backed mappings that differ from their file: one line for each, with the first address."""
    differences = []
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            span, permissions, offset, _, inode, *path = line.split(maxsplit=5)
            if "x" not in permissions or inode == "0":
                continue
            start, end = (int(bound, 16) for bound in span.split("-"))
            memory.seek(start)
            mapped = b""
            while len(mapped) < end - start and (part := memory.read(end - start - len(mapped))):
                mapped += part
            assert len(mapped) == end - start, f"cannot read {line}"
            with Path(path[0]).open("rb") as file:
                file.seek(int(offset, 16))
                expected = file.read(end - start).ljust(end - start, b"\0")
            if mapped != expected:
                at = next(i for i in range(len(expected)) if mapped[i] != expected[i])
                differences.append(f"{start + at:#x} in {path[0]}: {mapped[at : at + 16].hex(' ')}")
    return differences


class Program:
    """A target program and the pipes to it."""

    def __init__(self, pid: int, stdin: int, stdout: int, popen: subprocess.Popen[bytes] | None = None) -> None:
        self.pid = pid
        self.popen = popen
        self._stdin, self._stdout = stdin, stdout
        self._unread = b""
        self._born = self._birthday()

    def _birthday(self) -> str | None:
        try:
            return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[19]
        except (FileNotFoundError, ProcessLookupError):
            return None

    @property
    def exists(self) -> bool:
        """Whether this very process is still there, as a zombie perhaps."""
        return self._born is not None and self._birthday() == self._born

    def tell(self, text: str) -> Self:
        """Write to its standard input."""
        os.write(self._stdin, text.encode())
        return self

    def expect(self, name: str, timeout: float = PATIENCE_S) -> str:
        """Its next line must be NAME or NAME=VALUE, and come in time; the value."""
        line = self.line(timeout, f"{name!r}")
        said, _, value = line.partition("=")
        assert said == name, f"{self.pid} said {line!r}, not {name!r}"
        return value

    def line(self, timeout: float = PATIENCE_S, wanted: str = "line") -> str:
        """Its next line, which must come in time."""
        deadline = time.monotonic() + timeout
        while b"\n" not in self._unread:
            readable, _, _ = select.select([self._stdout], [], [], max(0.0, deadline - time.monotonic()))
            if not readable:
                state = status_of(self.pid).get("State", "gone")
                pytest.fail(f"no {wanted} from {self.pid} in {timeout} s; it is {state}, {stopped_or_traced(self.pid)}")
            received = os.read(self._stdout, 4096)
            if not received:
                time.sleep(0.05)
                how = self.popen.poll() if self.popen else "?"
                pytest.fail(f"{self.pid} ended (status {how}) instead of saying {wanted}; said {self._unread!r}")
            self._unread += received
        line, _, self._unread = self._unread.partition(b"\n")
        return line.decode()

    def number(self, name: str, timeout: float = PATIENCE_S) -> int:
        """The number in its next line, which must be NAME=NUMBER."""
        return int(self.expect(name, timeout))

    def answer(self, value: int) -> int:
        """What echo.c makes of a value."""
        return self.tell(f"{value}\n").number("answer")

    def wait(self, timeout: float = PATIENCE_S) -> int:
        """The exit status that its parent, this test, is told."""
        assert self.popen is not None, "ask the target of a spawned program"
        return self.popen.wait(timeout)

    def maps(self) -> set[str]:
        """For assert_untouched."""
        return maps_of(self.pid)

    def assert_untouched(self, maps_before: set[str]) -> None:
        """It lives as if nobody had been there: text, mappings, threads."""
        assert changed_text(self.pid) == []
        maps = self.maps()
        assert maps - maps_before == set(), "mappings that were not there before"
        assert maps_before - maps == set(), "mappings that are there no more"
        assert stopped_or_traced(self.pid) == {}

    def is_stopped(self) -> bool:
        """Whether no thread of it runs: all are in a stop, of the program's own or of a tracer."""
        return all(status_of(self.pid, tid).get("State", "T")[0] in "tT" for tid in threads_of(self.pid))

    def end(self) -> None:
        """Kill it if it lives, and leave no zombie."""
        if self.popen is not None:
            self.popen.kill()
            self.popen.wait(PATIENCE_S)
        elif self.exists:
            os.kill(self.pid, signal.SIGKILL)
            eventually(lambda: not self.exists or self._reap(), timeout=5)
        for descriptor in (self._stdin, self._stdout):
            os.close(descriptor)

    def _reap(self) -> bool:
        try:
            return os.waitpid(self.pid, os.WNOHANG)[0] == self.pid
        except ChildProcessError:
            return False


def _children(parent: int) -> dict[int, str]:
    """The children of a process, by pid: what they are."""
    found = {}
    for directory in Path("/proc").iterdir():
        if directory.name.isdigit():
            status = status_of(int(directory.name))
            if status.get("PPid") == str(parent):
                found[int(directory.name)] = f"{status['Name']}, state {status['State']}"
    return found


def _marked(mark: bytes) -> dict[int, str]:
    """Every process with this mark in its environment."""
    found = {}
    for directory in Path("/proc").iterdir():
        if directory.name.isdigit() and int(directory.name) != os.getpid():
            try:
                environment = (directory / "environ").read_bytes()
            except OSError:
                continue
            if mark in environment:
                status = status_of(int(directory.name))
                found[int(directory.name)] = f"{status.get('Name')}, state {status.get('State')}"
    return found


@pytest.fixture(autouse=True)
def nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No process that a test started, and no helper of ours, outlives the test."""
    mark = f"{os.getpid()}.{time.monotonic_ns()}"
    monkeypatch.setenv(MARK, mark)
    before = _children(os.getpid())

    def left() -> dict[int, str]:
        new = {pid: what for pid, what in _children(os.getpid()).items() if pid not in before}
        return new | _marked(f"{MARK}={mark}".encode())

    yield
    if not eventually(lambda: not left(), timeout=5):
        found = left()
        for pid in found:
            os.kill(pid, signal.SIGKILL)
        pytest.fail(f"processes left behind: {found}")


@pytest.fixture
def _programs() -> Iterator[list[Program]]:
    programs: list[Program] = []
    yield programs
    wrong = {program.pid: stopped_or_traced(program.pid) for program in programs if program.exists}
    for program in programs:
        program.end()
    assert not any(wrong.values()), f"left stopped or traced: {wrong}"


class StartProgram:
    """Starts target programs as children of the test, or stopped, by ubpx."""

    def __init__(self, programs: list[Program]) -> None:
        self._programs = programs

    def __call__(
        self,
        name: str,
        *args: object,
        flags: tuple[str, ...] = (),
        ready: bool = True,
        **popen_options: Any,
    ) -> Program:
        """Start it as an ordinary child and, unless told otherwise, read its line "ready"."""
        command = [str(build(name, *flags)), *map(str, args)]
        popen = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, **popen_options)
        assert popen.stdin is not None
        assert popen.stdout is not None
        program = Program(popen.pid, os.dup(popen.stdin.fileno()), os.dup(popen.stdout.fileno()), popen)
        popen.stdin.close()
        popen.stdout.close()
        self._programs.append(program)
        if ready:
            program.expect("ready")
        return program

    def build(self, name: str, *flags: str) -> Path:
        """Its path, for what starts it otherwise or looks into it."""
        return build(name, *flags)

    def spawned(
        self,
        spawn: Callable[..., ubpx.Target],
        name: str,
        *args: object,
        flags: tuple[str, ...] = (),
        **options: Any,
    ) -> tuple[ubpx.Target, Program]:
        """Start it by ``ubpx.spawn`` or ``session.spawn``: stopped at its entry point."""
        child_in, our_in = os.pipe()
        our_out, child_out = os.pipe()
        try:
            command = [str(build(name, *flags)), *map(str, args)]
            target = spawn(command, stdin=child_in, stdout=child_out, **options)
        except BaseException:
            os.close(our_in)
            os.close(our_out)
            raise
        finally:
            os.close(child_in)
            os.close(child_out)
        program = Program(target.pid, our_in, our_out)
        self._programs.append(program)
        return target, program


@pytest.fixture
def target_program(_programs: list[Program]) -> StartProgram:
    """Starts target programs; each is ended after the test."""
    return StartProgram(_programs)


@pytest.fixture(name="eventually")
def eventually_fixture() -> Callable[..., bool]:
    """``eventually(condition, timeout=...)``: whether it comes true in time."""
    return eventually


class PluginDirectory:
    """Plugins for a Python that is started with this environment: found by dist-info directories, as installed ones."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    @property
    def environment(self) -> Mapping[str, str]:
        """With the directory before everything else."""
        return {**os.environ, "PYTHONPATH": str(self._directory)}

    def install(self, name: str, source: str) -> None:
        """A distribution NAME 1.5, whose entry point NAME is the class Plugin of its one module."""
        (self._directory / f"{name}.py").write_text(textwrap.dedent(source))
        self._describe(name, f"[ubpx]\n{name} = {name}:Plugin\n")

    def hide(self, name: str) -> None:
        """Shadow an installed distribution by one that has no entry points."""
        self._describe(name, "")

    def _describe(self, name: str, entry_points: str) -> None:
        metadata = self._directory / f"{name}-1.5.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.5\n")
        (metadata / "entry_points.txt").write_text(entry_points)


@pytest.fixture
def plugin_directory(tmp_path: Path) -> PluginDirectory:
    """An empty one."""
    directory = tmp_path / "plugins"
    directory.mkdir()
    return PluginDirectory(directory)
