"""Compiled programs, and talking to one that runs, in bounded time."""

from __future__ import annotations

import hashlib
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, Self

BENCH: Final = Path(__file__).parents[1]
ROOT: Final = BENCH.parent
BUILD: Final = ROOT / "build" / "bench"
SOURCES: Final = BENCH / "programs"
FLAGS: Final = ("-O2", "-Wall", "-Wextra", "-Werror", "-pthread")
PATIENCE_S: Final = 120.0
"""For anything that a measured program or a peer is asked for."""
LAST_WORDS_S: Final = 0.2


class BenchError(Exception):
    """The measurement is not valid; the message says why."""


def build(name: str, *flags: str) -> Path:
    """The compiled program; built anew when a source or the flags changed."""
    source = SOURCES / f"{name}.c"
    digest = hashlib.sha256(repr((FLAGS, flags)).encode())
    for part in (source, *sorted(SOURCES.glob("*.h"))):
        digest.update(part.read_bytes())
    program = BUILD / digest.hexdigest()[:16] / name
    if not program.exists():
        program.parent.mkdir(parents=True, exist_ok=True)
        unfinished = program.with_name(f"{name}.{os.getpid()}")
        subprocess.run(["gcc", *FLAGS, *flags, "-o", unfinished, source], check=True)
        unfinished.replace(program)
    return program


class Talk:
    """A program that reads and writes lines. Owned by whoever started it; leaving the ``with`` ends it in any case."""

    def __init__(self, command: Sequence[str | Path], *, environment: Mapping[str, str] | None = None) -> None:
        self.name: Final = Path(command[1] if command[0] == sys.executable and len(command) > 1 else command[0]).name
        everything = {**os.environ, **(environment or {})}
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self._process: Final = subprocess.Popen([*command], env=everything, process_group=0, **pipes)
        self._unread = b""
        self._complaints = b""
        self._complaining = True

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def say(self, line: str) -> None:
        """Write a line. Raises BenchError if it has ended."""
        pipe = _there(self._process.stdin)
        try:
            pipe.write(f"{line}\n".encode())
            pipe.flush()
        except BrokenPipeError:
            raise self._ended() from None

    def hear(self, *, patience_s: float = PATIENCE_S) -> str:
        """Its next line. Raises BenchError if it ends, or says nothing for so long."""
        deadline = time.monotonic() + patience_s
        while b"\n" not in self._unread:
            if not self._read(deadline - time.monotonic()):
                raise self._ended()
        line, _, self._unread = self._unread.partition(b"\n")
        return line.decode(errors="replace").strip()

    def _read(self, seconds: float) -> bool:
        """Wait for anything on either stream; False at the end of its output. Raises BenchError if nothing comes."""
        out, complaints = _there(self._process.stdout), _there(self._process.stderr)
        ready, _, _ = select.select([out, complaints] if self._complaining else [out], [], [], max(seconds, 0))
        if not ready:
            raise BenchError(f"{self.name} said nothing for too long")
        if complaints in ready:
            piece = os.read(complaints.fileno(), 1 << 16)
            self._complaints += piece
            self._complaining = bool(piece)
        if out in ready:
            piece = os.read(out.fileno(), 1 << 16)
            self._unread += piece
            return bool(piece)
        return True

    def _status(self) -> int:
        """Its exit status, once it has ended; it is reaped last of all, so that its process id stays its own."""
        deadline = time.monotonic() + PATIENCE_S
        while (end := os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)) is None:
            if time.monotonic() > deadline:
                raise BenchError(f"{self.name} does not end")
            time.sleep(0.002)
        return end.si_status if end.si_code == os.CLD_EXITED else -end.si_status

    def _ended(self) -> BenchError:
        status = self._status()
        complaints = _there(self._process.stderr)
        while select.select([complaints], [], [], LAST_WORDS_S)[0]:  # not to the end: others may have it open too
            piece = os.read(complaints.fileno(), 1 << 16)
            if not piece:
                break
            self._complaints += piece
        last = self._complaints.decode(errors="replace").strip().splitlines()[-1:]
        return BenchError(f"{self.name} ended with status {status}{': ' if last else ''}{''.join(last)}")

    def hang_up(self) -> None:
        """Close its standard input: nothing more is wanted of it."""
        try:
            _there(self._process.stdin).close()
        except BrokenPipeError:
            raise self._ended() from None

    def end(self) -> None:
        """Wait for its own end. Raises BenchError if that is not a good one."""
        if not _there(self._process.stdin).closed:
            self.hang_up()
        if self._status():
            raise self._ended()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        """It, and what it has started and left: they are a process group of their own."""
        with _nobody_there():
            os.killpg(self._process.pid, 9)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            with _nobody_there():
                _there(pipe).close()


@contextmanager
def _nobody_there() -> Iterator[None]:
    try:
        yield
    except (ProcessLookupError, BrokenPipeError):
        return


def _there(pipe: IO[bytes] | None) -> IO[bytes]:
    if pipe is None:
        raise BenchError("a program was started without pipes")
    return pipe


@dataclass(frozen=True)
class Loop:
    """What a program says of one loop that it ran."""

    nanoseconds: float
    """For each call, by the clock."""
    processor_ns: float
    """The same of the thread's processor time."""
    stops: int
    """How often its thread had to wait, by the kernel's count."""


@dataclass(frozen=True)
class Function:
    """A function of the measured program: where it is, and the copies of its beginning."""

    address: int
    length: int
    slot: int
    stub: int


class MeasuredProgram(Talk):
    """bench/programs/target.c or many.c, running."""

    def __init__(self, program: Path) -> None:
        super().__init__([program])
        self.functions: Final[dict[str, Function]] = {}
        while (line := self.hear()) != "ready":
            name, *words = line.split()
            self.functions[name] = Function(*(int(word, 0) for word in words))

    def run(self, name: str, calls: int) -> Loop:
        """Have it call a function so many times."""
        self.say(f"{name} {calls}")
        nanoseconds, processor, stops = map(int, self.hear().split())
        return Loop(nanoseconds / calls, processor / calls, stops)
