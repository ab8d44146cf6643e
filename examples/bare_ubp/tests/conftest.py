"""Programs for these tests: built from this directory or from tests/targets, and always ended."""

import hashlib
import os
import select
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[3]
TARGETS: Final = ROOT / "tests" / "targets"
FLAGS: Final = ("-O2", "-Wall", "-Wextra", "-Werror", "-pthread", f"-I{TARGETS}")
PATIENCE_S: Final = 50


def build(name: str) -> Path:
    """The program, compiled unless it is there from the same sources."""
    source = next(each for each in (Path(__file__).with_name(f"{name}.c"), TARGETS / f"{name}.c") if each.exists())
    digest = hashlib.sha256(repr(FLAGS).encode())
    for part in (source, *sorted(TARGETS.glob("*.h"))):
        digest.update(part.read_bytes())
    program = ROOT / "build" / "targets" / digest.hexdigest()[:16] / name
    if not program.exists():
        program.parent.mkdir(parents=True, exist_ok=True)
        unfinished = program.with_name(f"{name}.{os.getpid()}")
        subprocess.run(["gcc", *FLAGS, "-o", unfinished, source], check=True)
        unfinished.replace(program)
    return program


class Program:
    """A running target and the pipes to it."""

    def __init__(self, name: str, *arguments: object) -> None:
        command = [str(build(name)), *map(str, arguments)]
        self.popen = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        self.pid = self.popen.pid

    def tell(self) -> None:
        """The byte that it waits for."""
        assert self.popen.stdin is not None
        self.popen.stdin.write(b"g")

    def has_spoken(self, timeout: float = 0) -> bool:
        """Whether there is something to read, its end perhaps."""
        assert self.popen.stdout is not None
        return bool(select.select([self.popen.stdout], [], [], timeout)[0])

    def expect(self, name: str) -> int:
        """Its next line must be NAME or NAME=NUMBER, and come in time; the number, or 0."""
        assert self.popen.stdout is not None
        assert self.has_spoken(PATIENCE_S), f"no {name!r} in time"
        said, _, value = self.popen.stdout.readline().decode().strip().partition("=")
        assert said == name
        return int(value or 0)

    def ends_well(self) -> bool:
        """It has checked all that happened to it, and found nothing wrong."""
        self.tell()
        return self.popen.wait(PATIENCE_S) == 0

    def maps(self) -> list[str]:
        """What it has mapped; heap and stack move by themselves."""
        lines = Path(f"/proc/{self.pid}/maps").read_text().splitlines()
        return [line for line in lines if not line.endswith(("[heap]", "[stack]"))]

    def text(self) -> dict[str, bytes]:
        """Everything executable that it has mapped, by place."""
        found = {}
        with Path(f"/proc/{self.pid}/mem").open("rb", buffering=0) as memory:
            for line in self.maps():
                span, permissions, _ = line.split(maxsplit=2)
                start, end = (int(bound, 16) for bound in span.split("-"))
                if "x" in permissions and not line.endswith("[vsyscall]"):
                    memory.seek(start)
                    found[line] = memory.read(end - start)
        return found

    def is_left_alone(self) -> bool:
        """No thread of it is traced or stopped."""
        statuses = [each.read_text() for each in Path(f"/proc/{self.pid}/task").glob("*/status")]
        return all("TracerPid:\t0" in each and "State:\tT" not in each for each in statuses)

    def end(self) -> None:
        """Kill it if it lives, and leave no zombie."""
        self.popen.kill()
        self.popen.wait(PATIENCE_S)
        for pipe in (self.popen.stdin, self.popen.stdout):
            assert pipe is not None
            pipe.close()


@pytest.fixture
def start() -> Iterator[Callable[..., Program]]:
    """Starts target programs, which say that they are ready; each is ended after the test."""
    programs: list[Program] = []

    def start_one(name: str, *arguments: object) -> Program:
        programs.append(Program(name, *arguments))
        programs[-1].expect("ready")
        return programs[-1]

    yield start_one
    for program in programs:
        program.end()
