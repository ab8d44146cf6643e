"""The real programs of tests/real, for these tests too; and what is expected of their debuggers, in bounded time."""

from __future__ import annotations

import importlib.util
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from ubpx_ptracepp import ProcessSignal, Ptrace, PtraceProcess

if TYPE_CHECKING:
    import ubpx

PATIENCE_S: Final = 30

ROOT: Final = Path(__file__).parents[4]
_spec = importlib.util.spec_from_file_location("real_programs", ROOT / "tests" / "real" / "conftest.py")
assert _spec is not None
assert _spec.loader is not None
real_programs: Final = sys.modules.setdefault("real_programs", importlib.util.module_from_spec(_spec))
_spec.loader.exec_module(real_programs)

_programs = real_programs._programs
eventually_fixture = real_programs.eventually_fixture
nothing_is_left = real_programs.nothing_is_left
target_program = real_programs.target_program


class Expect:
    """What must come."""

    @staticmethod
    def next(waiter: Ptrace | PtraceProcess) -> Any:
        """Its next event, in time."""
        event = waiter.wait(PATIENCE_S)
        assert event is not None, "no event in time"
        return event

    @classmethod
    def hit(cls, waiter: Ptrace | PtraceProcess, address: int) -> PtraceProcess:
        """The next event must be a hit there; the thread."""
        event = cls.next(waiter)
        assert isinstance(event, ProcessSignal), event
        assert event.signum == signal.SIGTRAP
        thread: PtraceProcess = event.process
        assert thread.getInstrPointer() == address + 1
        return thread

    @staticmethod
    def address(target: ubpx.Target, symbol: str) -> int:
        """Where a function is."""
        with target.client(f"where is {symbol}") as client:
            address = client.probe(symbol, lambda _: None).address
        assert address is not None
        return address


@pytest.fixture
def expect() -> Expect:
    """Expectations of debuggers."""
    return Expect()
