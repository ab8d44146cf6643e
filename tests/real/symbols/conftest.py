"""Small programs that say where their functions are, and a view of a running process."""

import os
import select
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import pytest

from ubpx._errors import MemoryFault
from ubpx.core.values import MappedRange, Place, ProcessId, parse_maps
from ubpx.symbols.resolver import SymbolResolver

PATIENCE_S: Final = 30.0

TELL: Final = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <link.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#define KEPT __attribute__((noinline, noclone, used))
static void tell(const char *name, const void *address) { printf("%s=%p ", name, address); }
static void wait_for_end(void) { puts(""); fflush(stdout); getchar(); }
"""

Build = Callable[..., Path]


class ProcessMemory:
    """/proc/PID/mem, for reading."""

    def __init__(self, pid: int) -> None:
        self._pid = pid

    def read(self, address: int, size: int) -> bytes:
        try:
            with Path(f"/proc/{self._pid}/mem").open("rb", buffering=0) as memory:
                memory.seek(address)
                data = memory.read(size)
        except OSError as error:
            raise MemoryFault(address, size, "read") from error
        if len(data) != size:
            raise MemoryFault(address, size, "read")
        return data

    def write(self, address: int, data: bytes) -> None:
        raise AssertionError("looking up a symbol writes nothing")

    patch = write


class Running:
    """A program that has said its addresses and waits; also the ProcessView of it."""

    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        self._popen = popen
        self._resolver = SymbolResolver()
        self.pid = ProcessId(popen.pid)
        self.proc = f"/proc/{popen.pid}"
        self.memory = ProcessMemory(popen.pid)
        self.said = {name: int(value, 16) for name, _, value in (word.partition("=") for word in self._line().split())}

    def mappings(self) -> Sequence[MappedRange]:
        return parse_maps(Path(f"/proc/{self.pid}/maps").read_text())

    def resolve(self, spec: str | int) -> Place:
        place = self._resolver.resolve(spec, self)
        assert place is not None
        return place

    def end(self) -> None:
        self._popen.kill()
        self._popen.wait(PATIENCE_S)
        for pipe in (self._popen.stdin, self._popen.stdout):
            assert pipe is not None
            pipe.close()

    def _line(self) -> str:
        assert self._popen.stdout is not None
        descriptor, line, deadline = self._popen.stdout.fileno(), b"", time.monotonic() + PATIENCE_S
        while not line.endswith(b"\n"):
            readable, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
            received = os.read(descriptor, 65536) if readable else b""
            if not received:
                self._popen.kill()
                self._popen.wait(PATIENCE_S)
                pytest.fail(f"the program said {line!r} and no more (status {self._popen.returncode})")
            line += received
        return line.decode()


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """``build(NAME, {FILE: TEXT}, *FLAGS)``: what gcc makes of it, once per session for the same arguments."""
    built: dict[str, Path] = {}

    def build_once(name: str, sources: dict[str, str], *flags: str | Path) -> Path:
        key = repr((name, sources, flags))
        if key not in built:
            directory = tmp_path_factory.mktemp(name)
            for file, text in sources.items():
                directory.joinpath(file).write_text(TELL + text if file.endswith(".c") else text)
            compiled = [file for file in sources if file.endswith((".c", ".S"))]
            command = ["gcc", "-O1", "-w", "-o", name, *compiled, *map(str, flags)]
            subprocess.run(command, cwd=directory, check=True, timeout=120)
            built[key] = directory / name
        return built[key]

    return build_once


@pytest.fixture
def start() -> Iterator[Callable[..., Running]]:
    """``start(*ARGV)``: the running program; killed and reaped after the test."""
    running: list[Running] = []

    def start_one(*argv: str | Path) -> Running:
        popen = subprocess.Popen(list(map(str, argv)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        running.append(Running(popen))
        return running[-1]

    yield start_one
    for program in running:
        program.end()
