"""A processor that unicorn plays: what is different from one to the next, and how a piece of code is run on it."""

from collections.abc import Iterator, Mapping, Sequence
from random import Random
from typing import Any, Final, NamedTuple, Protocol

import attrs

from ubpx._errors import MemoryFault, UsageError

CODE: Final = 0x10_0000
"""Where instructions stand in place."""
SLOTS: Final = CODE + 0x8_0000
"""Where copies of them do: near enough for any architecture's way back."""
CODE_SIZE: Final = 0x10_0000
DATA: Final = 0x40_0000
DATA_SIZE: Final = 0x1000
STACK: Final = 0x50_0000
STACK_SIZE: Final = 0x1000
PLACE_SIZE: Final = 64
"""Bytes that one case takes of CODE, and of SLOTS."""

_CONTEXT_HEAD: Final = 40
"""Bytes of unicorn's struct uc_context before its registers: sizes, and where its memory was."""


class Form(NamedTuple):
    """Instructions that are the same but for operands: ``value`` in the bits of ``mask``, of ``size`` bytes."""

    value: int
    mask: int
    size: int


@attrs.frozen(kw_only=True)
class Case:
    """One instruction, and everything that it can meet."""

    name: str
    form: Form
    code: bytes
    origin: int
    slot: int
    registers: tuple[int, ...] = attrs.field(repr=False)
    """In the order of the architecture's ``register_names``."""
    vectors: tuple[int, ...] = attrs.field(repr=False)
    memory: bytes = attrs.field(repr=False)
    """Of data and stack."""


class End(NamedTuple):
    """How a run ended."""

    state: bytes
    """All registers, as unicorn keeps them: if these are equal, so are the registers; else they must be asked for."""
    memory: bytes
    unkept: tuple[int, ...]
    """Those of ``Processor.unkept``."""
    fault: str
    """Empty if there was none."""
    fault_address: int
    context: Any
    """Unicorn's, for ``Machine.values``."""


class Processor(Protocol):
    """What differs from one processor to the next."""

    name: str
    trap: str
    """How ``End.fault`` says that a trap was run into."""
    system_call: int
    """The number of unicorn's interrupt for a system call."""
    undefined: frozenset[str]
    """How ``End.fault`` says that unicorn knows no such instruction."""
    alignment: int
    """Bytes: instructions begin at multiples of this."""
    filler: bytes
    """What stands where no case has stood, again and again: instructions that unicorn can decode, of either sign."""

    def machine(self) -> Any:
        """A unicorn in the state of an ordinary program's thread."""
        ...

    def register_numbers(self) -> Sequence[int]:
        """Unicorn's, in the order of the architecture's ``register_names``."""
        ...

    unkept: tuple[str, ...]
    """The ``vector_numbers`` that unicorn does not keep with the others."""

    def vector_numbers(self) -> Mapping[str, int]:
        """Unicorn's, by name: of vector and floating-point registers, their control and status."""
        ...

    def forms(self) -> Iterator[Form]:
        """All that there may be; most of them are no instruction."""
        ...

    def form_of(self, code: bytes) -> Form:
        """The one that an instruction belongs to."""
        ...

    def draw(self, random: Random) -> bytes:
        """Some instruction, or what may be one; those that are emulated come often."""
        ...

    def registers(self, random: Random, origin: int) -> tuple[int, ...]:
        """What general registers may hold: addresses of data and code, often."""
        ...

    def vectors(self, random: Random) -> tuple[int, ...]:
        """The same for ``vector_numbers``."""
        ...

    def visible(self, registers: tuple[int, ...]) -> tuple[int, ...]:
        """Without what a strategy need not leave as the instruction does."""
        ...


class Machine:
    """Unicorn with code, data and a stack. Owned by one thread. Raises UsageError where unicorn is not installed."""

    def __init__(self, processor: Processor) -> None:
        try:
            import unicorn
        except ImportError:
            raise UsageError("comparing needs unicorn; install it with: pip install unicorn") from None

        self._error: Final[type[Exception]] = unicorn.UcError
        self._fetches: Final = frozenset({unicorn.UC_ERR_FETCH_UNMAPPED, unicorn.UC_ERR_FETCH_PROT})
        self._processor: Final = processor
        self._machine: Final[Any] = processor.machine()
        readable, writable = unicorn.UC_PROT_READ, unicorn.UC_PROT_WRITE
        self._machine.mem_map(CODE, CODE_SIZE, readable | unicorn.UC_PROT_EXEC)
        self._machine.mem_write(CODE, processor.filler * (CODE_SIZE // len(processor.filler)))
        for start, size in ((DATA, DATA_SIZE), (STACK, STACK_SIZE)):
            self._machine.mem_map(start, size, readable | writable)
        self._numbers: Final = [*processor.register_numbers(), *processor.vector_numbers().values()]
        self._general: Final = len(processor.register_numbers())
        names = tuple(processor.vector_numbers())
        self._unkept: Final = {self._general + names.index(name): 0 for name in processor.unkept}
        """Their places among all registers, and their values at the beginning."""
        self._interrupts: Final[list[int]] = []
        self._fault_address = 0
        self._machine.hook_add(unicorn.UC_HOOK_INTR, self._interrupted)
        self._machine.hook_add(unicorn.UC_HOOK_MEM_INVALID, self._missed)
        self._start: Any = None
        self._memory = b""

    def _interrupted(self, machine: Any, number: int, _data: object) -> None:
        self._interrupts.append(number)
        machine.emu_stop()

    def _missed(self, _machine: Any, _access: int, address: int, _size: int, _value: int, _data: object) -> bool:
        self._fault_address = self._fault_address or address
        return False

    def put_code(self, address: int, code: bytes) -> None:
        """Have ``code`` stand there, whatever has run there before."""
        self._machine.ctl_remove_cache(address, address + PLACE_SIZE)
        self._machine.mem_write(address, code)

    def begin(self, case: Case) -> None:
        """From here each run of the case starts."""
        values = (*case.registers, *case.vectors)
        self._machine.reg_write_batch(list(zip(self._numbers, values, strict=True)))
        self._start = self._machine.context_save()
        self._unkept.update((place, values[place]) for place in self._unkept)
        self._memory = case.memory
        self._write_memory(case.memory)
        self.put_code(case.origin, case.code)

    def __getitem__(self, place: int) -> int:
        """A register as it is now, by its place among the general ones and the vectors."""
        return int(self._machine.reg_read(self._numbers[place]))

    def again(self) -> None:
        """Back to the beginning."""
        self._machine.context_restore(self._start)
        for place, value in self._unkept.items():
            self.set_register(place, value)
        if self._read_memory() != self._memory:
            self._write_memory(self._memory)

    def run(self, address: int) -> str:
        """One instruction; what fault it met, "" for none. A system call is as if the kernel had done nothing."""
        self._interrupts.clear()
        self._fault_address = 0
        try:
            self._machine.emu_start(address, 0, count=1)
        except self._error as error:
            number = getattr(error, "errno", 0)
            return "" if number in self._fetches else f"error {number}"
        others = [number for number in self._interrupts if number != self._processor.system_call]
        return f"exception {others[0]}" if others else ""

    def set_register(self, place: int, value: int) -> None:
        """Set the register of that place."""
        self._machine.reg_write(self._numbers[place], value)

    def read(self, address: int, size: int) -> bytes:
        """See ports.Memory."""
        try:
            return bytes(self._machine.mem_read(address, size))
        except self._error:
            raise MemoryFault(address, size, "read") from None

    def write(self, address: int, data: bytes) -> None:
        """See ports.Memory."""
        try:
            self._machine.mem_write(address, data)
        except self._error:
            raise MemoryFault(address, len(data), "write") from None

    def patch(self, address: int, data: bytes) -> None:
        """See ports.Memory."""
        self.write(address, data)

    def end(self, fault: str) -> End:
        """What is there now; a fault's address is that of the operand."""
        context = self._machine.context_save()
        address = self._fault_address if fault else 0
        unkept = tuple(self[place] for place in self._unkept)
        return End(bytes(context)[_CONTEXT_HEAD:], self._read_memory(), unkept, fault, address, context)

    def values(self, end: End) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """What the general registers were, and the vectors, as far as a program can see."""
        self._machine.context_restore(end.context)
        values = list(self._machine.reg_read_batch(self._numbers))
        for place, value in zip(self._unkept, end.unkept, strict=True):
            values[place] = value
        return self._processor.visible(tuple(values[: self._general])), tuple(values[self._general :])

    def _read_memory(self) -> bytes:
        return bytes(self._machine.mem_read(DATA, DATA_SIZE)) + bytes(self._machine.mem_read(STACK, STACK_SIZE))

    def _write_memory(self, memory: bytes) -> None:
        self._machine.mem_write(DATA, memory[:DATA_SIZE])
        self._machine.mem_write(STACK, memory[DATA_SIZE:])


def some_value(random: Random, origin: int) -> int:
    """For a general register of 64 bits: as likely an address as a number."""
    match random.randrange(8):
        case 0 | 1 | 2:
            return DATA + random.randrange(DATA_SIZE // 16) * 16
        case 3:
            return DATA + random.randrange(DATA_SIZE)
        case 4:
            return origin + 4 * random.randrange(-64, 64)
        case 5:
            return random.choice((0, 1, 2, 2**31, 2**32 - 1, 2**63, 2**64 - 1, 0xFFFF_FFFF_8000_0000))
        case 6:
            return random.getrandbits(6)
        case _:
            return random.getrandbits(64)
