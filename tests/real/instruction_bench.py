"""A bench for single instructions: run by the processor itself in place, and by every strategy."""

import contextlib
from collections.abc import Iterator, Mapping

import attrs
import pytest

from ubpx import InsnRefused
from ubpx.core.ubp import Strategy, architecture
from ubpx.core.values import VirtAddr
from ubpx.testing.oracle.cases import Case
from ubpx.testing.oracle.comparison import compare
from ubpx.testing.oracle.forms import legacy
from ubpx.testing.oracle.layout import DATA_AT, DATA_SIZE, INT3, MEMORY, STACK_AT, layout_of
from ubpx.testing.oracle.processor import REGISTERS, Processor, Watchdog
from ubpx.testing.oracle.routes import LANDED, End, Routes

BASE_FLAGS = 0x202


@attrs.frozen
class Result:
    """What a program finds behind one instruction."""

    end: End
    names: tuple[str, ...]
    strategies: tuple[Strategy, ...]

    def __getitem__(self, name: str) -> int:
        return self.end.words[self.names.index(name)]

    def data(self, offset: int, size: int) -> int:
        return int.from_bytes(self.end.memory[offset : offset + size], "little")

    def stack(self, offset: int, size: int) -> int:
        return self.data(STACK_AT - DATA_AT + offset, size)


class Bench:
    """One processor, and the architecture under test."""

    def __init__(self, name: str) -> None:
        self.architecture = architecture(name)
        self.names = self.architecture.register_names
        self.layout = layout_of(name)
        self.processor = Processor(self.layout, self.names, self.architecture.pc_name)
        self.routes = Routes(self.processor, self.architecture)
        self.origin, self.data, self.stack = self.layout.origin, self.layout.data, self.layout.stack
        self.sp = self.stack + 0x1000
        self._words = self.processor.words()
        self._xstate = self.processor.xstate()

    def relative(self, head: str, tail: str = "", *, offset: int = 0x100) -> bytes:
        """An instruction with a rip-relative operand ``offset`` into the data, between head and tail."""
        before, behind = bytes.fromhex(head), bytes.fromhex(tail)
        distance = self.data + offset - (self.origin + len(before) + 4 + len(behind))
        return before + distance.to_bytes(4, "little", signed=True) + behind

    def run(
        self,
        code: bytes | str,
        registers: Mapping[str, int] | None = None,
        *,
        data: bytes = b"",
        stack: bytes = b"",
        flags: int = 0,
    ) -> Result:
        """The instruction in place, after all its strategies have been found to do the same.

        ``data`` stands 0x100 into the data area, ``stack`` where the stack pointer is.
        """
        raw = bytes.fromhex(code) if isinstance(code, str) else code
        case = self._case(raw, registers or {}, data, stack, flags)
        analysis = self.architecture.analyze(raw.ljust(15, INT3), self.origin)
        assert analysis.insn.raw == raw
        expected = self.routes.in_place(case)
        for strategy in analysis.strategies:
            found = self.routes.by(strategy, case, analysis)
            if found is None:  # emulation leaves this arrival to the slot
                continue
            if found.stop is LANDED and (expected.stop is not LANDED or found.pc != expected.pc):
                found = self.routes.run_on(found)
            differences = compare(expected, found, self.processor.registers, vectors=strategy is not Strategy.EMULATE)
            assert differences == {}, (strategy, analysis.insn)
        return Result(expected, self.names, analysis.strategies)

    def _case(self, raw: bytes, registers: Mapping[str, int], data: bytes, stack: bytes, flags: int) -> Case:
        words = list(self._words)
        sp = "rsp" if self.layout.word_size == 8 else "esp"
        orig = "orig_rax" if self.layout.word_size == 8 else "orig_eax"
        values = {sp: self.sp, "eflags": BASE_FLAGS | flags, orig: 2**64 - 1, self.architecture.pc_name: self.origin}
        for name, value in {**values, **registers}.items():
            words[self.names.index(name)] = value
        memory = bytearray(MEMORY.stop - MEMORY.start)
        memory[0x100 : 0x100 + len(data)] = data
        memory[DATA_SIZE + 0x1000 : DATA_SIZE + 0x1000 + len(stack)] = stack
        return Case(
            name="by hand",
            form=legacy(0, 0x90),
            code=raw,
            origin=self.origin,
            words=REGISTERS.pack(*words),
            xstate=self._xstate,
            memory=bytes(memory),
        )

    def refusal(self, code: str) -> str:
        with pytest.raises(InsnRefused) as caught:
            self.architecture.analyze(bytes.fromhex(code).ljust(15, INT3), VirtAddr(self.origin))
        return caught.value.reason


@contextlib.contextmanager
def bench_of(name: str) -> Iterator[Bench]:
    bench = Bench(name)
    with contextlib.closing(bench.processor), Watchdog(bench.processor):
        yield bench
