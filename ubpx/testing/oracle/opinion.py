"""A second opinion: what unicorn, which is no hardware, makes of the same case."""

from typing import Any, Final

from ubpx.testing.oracle.cases import Case
from ubpx.testing.oracle.forms import ADDRESS_SIZE, FS, GS
from ubpx.testing.oracle.layout import (
    CODE_SIZE,
    DATA_AT,
    DATA_SIZE,
    INT3,
    STACK_AT,
    STACK_SIZE,
    Layout,
)
from ubpx.testing.oracle.processor import REGISTERS
from ubpx.testing.oracle.routes import LANDED, End

_MOST_ITERATIONS: Final = 1000
_KERNEL_FLAGS: Final = 0x7200
"""IF, IOPL, NT."""
_UNKNOWN_FLAGS: Final = 1 << 8 | 1 << 18
"""TF, AC."""
_ELSEWHERE: Final = frozenset({ADDRESS_SIZE, FS, GS})
_NARROW: Final = bytes((ADDRESS_SIZE,))


class Opinion:
    """Unicorn, with the layout's areas mapped. Owned by one thread. Raises ImportError where it is not installed."""

    def __init__(self, layout: Layout, names: tuple[str, ...]) -> None:
        import unicorn
        from unicorn import x86_const

        wide = layout.word_size == 8
        self._layout: Final = layout
        self._error: Final[type[Exception]] = unicorn.UcError
        self._machine: Final[Any] = unicorn.Uc(
            unicorn.UC_ARCH_X86, unicorn.UC_MODE_64 if wide else unicorn.UC_MODE_32
        )  # fmt: skip
        wanted = {name: at for at, name in enumerate(names) if name and not name.startswith("orig")}
        for name in ("cs", "ss", "ds", "es", "fs", "gs", "fs_base", "gs_base"):
            del wanted[name]  # unicorn has descriptors of its own
        self._registers: Final = tuple(
            (at, getattr(x86_const, f"UC_X86_REG_{name.upper()}")) for name, at in wanted.items()
        )  # fmt: skip
        self._pc: Final = x86_const.UC_X86_REG_RIP if wide else x86_const.UC_X86_REG_EIP
        self._flags: Final = x86_const.UC_X86_REG_EFLAGS
        self._machine.mem_map(layout.code, CODE_SIZE)
        self._machine.mem_write(layout.code, INT3 * CODE_SIZE)
        self._machine.mem_map(layout.data, DATA_SIZE)
        self._machine.mem_map(layout.stack, STACK_SIZE)
        self._fresh: Final = self._machine.context_save()

    def of(self, case: Case) -> tuple[tuple[int, ...], bytes] | None:
        """The general registers (as ``compared`` picks them) and the memory; None if unicorn sees a fault."""
        machine, layout = self._machine, self._layout
        machine.context_restore(self._fresh)  # segments of an earlier case
        machine.mem_write(case.origin, case.code)
        machine.ctl_flush_tb()
        machine.mem_write(layout.data, case.memory[:DATA_SIZE])
        machine.mem_write(layout.stack, case.memory[STACK_AT - DATA_AT :])
        words = REGISTERS.unpack(case.words)
        for at, number in self._registers:
            machine.reg_write(number, words[at])
        try:
            for _ in range(_MOST_ITERATIONS):  # of a repeated string one at a time
                machine.emu_start(machine.reg_read(self._pc), 0, count=1)
                if machine.reg_read(self._pc) != case.origin:
                    break
        except self._error:
            return None
        finally:
            machine.mem_write(case.origin, INT3 * len(case.code))
        memory = bytes(machine.mem_read(layout.data, DATA_SIZE)) + bytes(machine.mem_read(layout.stack, STACK_SIZE))
        return self._masked(tuple(machine.reg_read(number) for _, number in self._registers)), memory

    def compared(self, end: End) -> tuple[tuple[int, ...], bytes]:
        """The same of what the hardware did."""
        return self._masked(tuple(end.words[at] for at, _ in self._registers)), end.memory

    def _masked(self, words: tuple[int, ...]) -> tuple[int, ...]:
        """Without the flags that unicorn lets a program change as if it were a kernel."""
        return tuple(
            word & ~_KERNEL_FLAGS if number == self._flags else word
            for word, (_, number) in zip(words, self._registers, strict=True)
        )


def can_be_asked(case: Case, end: End, flags: int) -> bool:
    """Whether unicorn knows of what happens there: not of faults, of what TF and AC bring about, of the low area.

    ``flags`` is the place of the flags among the registers.
    """
    if end.stop != LANDED or case.code[0] in _ELSEWHERE or case.code[1:2] == _NARROW:
        return False
    return not REGISTERS.unpack(case.words)[flags] & _UNKNOWN_FLAGS
