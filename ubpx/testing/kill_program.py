"""The program whose tracers are killed (``kills.c``), and whether it is well: by its own word, and by /proc."""

import contextlib
import mmap
import os
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, Self

from ubpx._errors import UsageError
from ubpx.core.values import MappedRange, parse_maps

_SOURCE: Final = Path(__file__).with_name("kills.c")
_COUNTS: Final = struct.Struct("<67Q")
_MASKED: Final = 66
_MASK_PERIOD: Final = 64
"""After so many rounds a thread looks at its mask."""
_SIZE: Final = 4096
_PATIENCE_S: Final = 20.0
_PAUSE_S: Final = 0.002
_SIGTRAP: Final = 5


def compile_program(directory: Path) -> Path:
    """The program's file. Raises UsageError without a C compiler."""
    made = directory / "kills"
    try:
        subprocess.run(["cc", "-O1", "-pthread", str(_SOURCE), "-o", str(made)], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise UsageError(f"{_SOURCE.name} cannot be compiled: {error}; install a C compiler (Debian: gcc)") from error
    return made


class KillProgram:
    """One running program; ``with`` ends it."""

    def __init__(self, program: Path, threads: int) -> None:
        self._file: Final = tempfile.TemporaryFile()  # noqa: SIM115 - closed where the program ends
        self._file.truncate(_SIZE)
        self._counts: Final = mmap.mmap(self._file.fileno(), _SIZE)
        path = f"/proc/self/fd/{self._file.fileno()}"
        self._popen: Final = subprocess.Popen([str(program), path, str(threads)], pass_fds=[self._file.fileno()])
        self.pid: Final = self._popen.pid
        self._await(lambda: self._words()[0] == threads + 1)
        self._threads: Final = threads + 1
        self._await(self.advancing().__next__)
        self._maps: Final = self._shape()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._popen.kill()
        self._popen.wait()
        self._counts.close()
        self._file.close()

    def _words(self) -> Sequence[int]:
        return _COUNTS.unpack_from(self._counts)

    def _await(self, reached: Callable[[], bool]) -> bool:
        deadline = time.monotonic() + _PATIENCE_S
        while not reached():
            if time.monotonic() > deadline or self._popen.poll() is not None:
                return False
            time.sleep(_PAUSE_S)
        return True

    def advancing(self) -> Iterator[bool]:
        """Whether every thread has got further than when this was begun; asked again and again."""
        begun = self._words()
        while True:
            now = self._words()
            yield all(now[2 + number] > begun[2 + number] for number in range(self._threads))

    def _has_looked(self, begun: Sequence[int]) -> Iterator[bool]:
        """Whether every thread that looks at its mask has done so since."""
        while True:
            now = self._words()
            yield all(now[2 + number] > begun[2 + number] + _MASK_PERIOD for number in range(self._threads - 1))

    def complaint(self) -> str | None:
        """What is wrong with the running program; None: it is alive, gets on in every thread, and finds no fault."""
        advances = self._await(self.advancing().__next__)
        status = self._popen.poll()
        if status is not None:
            return f"it has ended with status {status}"
        if self._words()[1]:
            return f"it has found fault {self._words()[1]} with itself"
        if not advances:
            return f"not every thread gets on: {self._states()}"
        return None

    def scar(self) -> str | None:
        """What of a tracer is left in the program; None: nothing."""
        begun = self._words()
        self._await(self._has_looked(begun).__next__)
        half = self._words()
        self._await(self._has_looked(half).__next__)
        if self._words()[_MASKED] != half[_MASKED]:
            return "a thread has its signals blocked"
        for stat in Path(f"/proc/{self.pid}/task").glob("*/status"):
            with contextlib.suppress(OSError):  # one of its brief threads
                fields = dict(line.split(":\t", 1) for line in stat.read_text().splitlines() if ":\t" in line)
                if fields["TracerPid"] != "0" or fields["State"].startswith(("T", "t")):
                    return f"a thread is {fields['State']}, traced by {fields['TracerPid']}"
        if self._action():
            return "SIGTRAP has a handler"
        return self._foreign_code() or ("its mappings are others" if self._shape() != self._maps else None)

    def _action(self) -> bool:
        text = Path(f"/proc/{self.pid}/status").read_text()
        caught = next(line for line in text.splitlines() if line.startswith("SigCgt")).split()[1]
        return bool(int(caught, 16) >> (_SIGTRAP - 1) & 1)

    def _mappings(self) -> Sequence[MappedRange]:
        return parse_maps(Path(f"/proc/{self.pid}/maps").read_text())

    def _shape(self) -> Sequence[tuple[int, int, str, str]]:
        """Its mappings without those that come and go with its threads."""
        kept = [each for each in self._mappings() if each.path or each.executable]
        return [(each.start, each.end, each.permissions, each.path) for each in kept if each.path != "[heap]"]

    def _foreign_code(self) -> str | None:
        """Where its code is not that of its files."""
        own_vdso = next(each for each in parse_maps(Path("/proc/self/maps").read_text()) if each.path == "[vdso]")
        with (
            open(f"/proc/{self.pid}/mem", "rb", buffering=0) as memory,
            open("/proc/self/mem", "rb", buffering=0) as own,
        ):
            for mapping in self._mappings():
                if not mapping.executable or mapping.path == "[vsyscall]":
                    continue
                size = mapping.end - mapping.start
                memory.seek(mapping.start)
                found = memory.read(size)
                if mapping.path == "[vdso]":
                    own.seek(own_vdso.start)
                    wanted = own.read(size)
                elif mapping.path:
                    wanted = os.pread(_opened(mapping.path), size, mapping.offset)
                else:
                    return f"there is code at {mapping.start:#x} that no file has"
                if found[: len(wanted)] != wanted:
                    at = next(at for at, (a, b) in enumerate(zip(found, wanted, strict=False)) if a != b)
                    return f"the code at {mapping.start + at:#x} ({mapping.path}) is {found[at : at + 8].hex(' ')}"
        return None

    def _states(self) -> str:
        states = []
        for stat in Path(f"/proc/{self.pid}/task").glob("*/stat"):
            with contextlib.suppress(OSError):
                states.append(stat.read_text().rpartition(")")[2].split()[0])
        return " ".join(states)


_descriptors: Final[dict[str, int]] = {}


def _opened(path: str) -> int:
    if path not in _descriptors:
        _descriptors[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    return _descriptors[path]
