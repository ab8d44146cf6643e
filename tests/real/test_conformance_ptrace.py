"""The real tracer does what every tracer must, on a real program."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

import pytest

from ubpx.core.ports import Tracer
from ubpx.core.values import ProcessId, VirtAddr
from ubpx.testing import CHECKS, check_tracer
from ubpx_ptracepp.tracer import PtraceTracer

if TYPE_CHECKING:
    from tests.real.conftest import Program, StartProgram


class RealProgram:
    """tests/targets/conformance.c (a ``ubpx.testing.ConformingProgram``)."""

    def __init__(self, program: Program) -> None:
        self.tracer = cast(Tracer, PtraceTracer())
        self.pid = ProcessId(program.pid)
        self.site, self.behind, self.writable = (
            VirtAddr(program.number(name)) for name in ("site", "behind", "writable")
        )
        self.unmapped = VirtAddr(0x10)
        self._program = program
        self._maps = program.maps()

    def call(self) -> None:
        self._program.tell("c")

    def called(self) -> bool:
        return self._program.expect("called") == ""

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def received(self, number: int) -> bool:
        return self._program.number("signal") == number

    def exit(self, status: int) -> None:
        assert status == 7
        self._program.tell("x")

    def exit_status(self) -> int:
        return self._program.wait()

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def is_untouched(self) -> bool:
        self._program.assert_untouched(self._maps)
        return True


class RealScenario:
    """Starts them."""

    def __init__(self, start: StartProgram, *flags: str) -> None:
        self._start, self._flags = start, flags

    @contextmanager
    def start(self) -> Iterator[RealProgram]:
        yield RealProgram(self._start("conformance", flags=self._flags))  # the fixture ends it


@pytest.mark.parametrize("flags", [(), ("-m32",)], ids=["x86_64", "i386"])
@pytest.mark.parametrize("check", CHECKS)
def test_the_ptrace_tracer_conforms(target_program: StartProgram, check: str, flags: tuple[str, ...]) -> None:
    """Invariant: what the core relies on, and the fake promises, is what the kernel does, for both word sizes."""
    check_tracer(RealScenario(target_program, *flags), check)


@pytest.mark.parametrize(("name", "bits"), [("x86_64", 64), ("i386", 32)])
def test_system_calls_have_the_numbers_of_the_kernels_headers(name: str, bits: int) -> None:
    """Invariant: every call that <asm/unistd.h> names has that number, and no number has two names."""
    asked = ["gcc", f"-m{bits}", "-E", "-dM", "-include", "asm/unistd.h", "-x", "c", os.devnull]
    defined = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=60).stdout
    expected = {call: int(number) for call, number in re.findall(r"^#define __NR_(\w+) (\d+)$", defined, re.MULTILINE)}
    known = PtraceTracer().syscall_numbers(name)
    assert len(expected) > 300
    assert {call: known.get(call) for call in expected} == expected
    assert len(set(known.values())) == len(known)
