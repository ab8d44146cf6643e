"""The real tracer does what every tracer must, on a real program."""

from __future__ import annotations

import os
import signal
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

    def __init__(self, start: StartProgram) -> None:
        self._start = start

    @contextmanager
    def start(self) -> Iterator[RealProgram]:
        yield RealProgram(self._start("conformance"))  # the fixture ends it


@pytest.mark.parametrize("check", CHECKS)
def test_the_ptrace_tracer_conforms(target_program: StartProgram, check: str) -> None:
    """Invariant: what the core relies on, and the fake promises, is what the kernel does."""
    check_tracer(RealScenario(target_program), check)
