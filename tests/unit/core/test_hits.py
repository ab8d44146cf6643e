"""What a handler gets: valid until it returns, and never later."""

from __future__ import annotations

import struct
from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import attrs
import pytest

from ubpx._errors import MemoryFault, StaleHit, UsageError
from ubpx.core.hits import Hit
from ubpx.core.registers import RegisterLayout, WordRegisters, put
from ubpx.core.ubp.i386 import I386
from ubpx.core.ubp.x86_64 import X86_64

if TYPE_CHECKING:
    from ubpx.core.ports import TracedThread

PLACE, STACK = 0x40_1000, 0x7FFE_0000
LAYOUT = RegisterLayout("x86_64", X86_64.register_names, "rip")
PUBLIC = [name for name in vars(Hit) if not name.startswith("_")]


class CountingMemory:
    """Words on a stack; counts who reads them."""

    def __init__(self) -> None:
        self.reads = 0

    def read(self, address: int, size: int) -> bytes:
        self.reads += 1
        if not STACK <= address < STACK + 0x100:
            raise MemoryFault(address, size, "read")
        return (address - STACK).to_bytes(size, "little")


@pytest.fixture
def memory() -> CountingMemory:
    return CountingMemory()


@pytest.fixture
def thread() -> TracedThread:
    words = [0] * len(LAYOUT.names)
    put(words, LAYOUT, {"rip": PLACE, "rsp": STACK, "rdi": 1, "rsi": 2, "rdx": 3, "rcx": 4, "r8": 5, "r9": 6})
    return cast("TracedThread", SimpleNamespace(tid=11, pid=10, words=words))


@pytest.fixture
def hit(thread: TracedThread, memory: CountingMemory) -> Hit:
    around = SimpleNamespace(architecture=X86_64(), layout=LAYOUT, memory=memory)
    return hit_of(thread, around)


def hit_of(thread: TracedThread, around: Any) -> Hit:
    """As ``sites.run_handlers`` makes it."""
    hit = Hit()
    hit._lease, hit._thread, hit._surroundings, hit._writes = "the lease", thread, around, None
    return hit


@pytest.mark.parametrize("kind", [list, lambda words: memoryview(bytearray(struct.pack("<27Q", *words))).cast("Q")])
def test_all_registers_at_once(hit: Any, thread: Any, kind: Any) -> None:
    """Invariant: little-endian words in the order of the names, however the tracer keeps them."""
    thread.words = kind(thread.words)
    words = struct.unpack("<27Q", bytes(hit.regs))
    assert dict(zip(hit.regs, words, strict=True)) == {name: hit.regs[name] for name in hit.regs}
    assert hit.brief() == (11, bytes(hit.regs))


def test_hit_says_who_arrived_where(hit: Any, memory: CountingMemory) -> None:
    assert (hit.address, hit.pid, hit.tid, hit.lease) == (PLACE, 10, 11, "the lease")
    assert hit.memory is memory
    assert hit.regs.rip == hit.regs["rip"] == PLACE
    assert list(hit.regs) == list(X86_64.register_names)
    assert repr(hit) == "<hit of thread 11 at 0x401000>"
    assert "rdi=0x1 " in repr(hit.regs)


@pytest.mark.parametrize("name", PUBLIC)
def test_every_attribute_of_a_hit_that_is_over_refuses(hit: Hit, name: str) -> None:
    """Invariant: nothing of a hit works after its handler has returned; the error says what to keep."""
    hit._thread = None
    with pytest.raises(StaleHit, match=r"hit\.snapshot\(\)"):
        getattr(hit, name)() if name in {"snapshot", "brief"} else getattr(hit, name)
    assert repr(hit) == "<hit, over>"


def test_a_hit_can_end_while_another_thread_describes_it(hit: Any) -> None:
    """Invariant: who watches for handlers that overrun, in a thread of its own, can name the hit whatever comes."""

    class Ending(Hit):
        @property
        def tid(self) -> Any:
            self._thread = None
            return super().tid

    ending: Any = Ending()
    for name in ("_lease", "_thread", "_surroundings", "_writes"):
        setattr(ending, name, getattr(hit, name))
    assert repr(ending) == "<hit, over>"


@pytest.mark.parametrize(
    "use",
    [
        lambda regs, args: regs.rdi,
        lambda regs, args: regs["rdi"],
        lambda regs, args: setattr(regs, "rdi", 1),
        lambda regs, args: args[0],
        lambda regs, args: args[7],
        lambda regs, args: repr(regs),
        lambda regs, args: bytes(regs),
    ],
)
def test_views_kept_beyond_the_hit_refuse(hit: Hit, use: Callable[[Any, Any], object]) -> None:
    """Invariant: hit.regs and hit.args that were taken in time are as stale as the hit itself."""
    regs, args = hit.regs, hit.args
    hit._thread = None
    with pytest.raises(StaleHit):
        use(regs, args)
    assert hit._writes is None


@pytest.mark.contract("hit-2")
def test_snapshot_outlives_the_hit(hit: Hit, thread: TracedThread) -> None:
    """Invariant: a snapshot is plain values, untouched by what the thread does later, and cannot be changed."""
    kept = hit.snapshot()
    hit._thread = None
    thread.words[LAYOUT.index["rdi"]] = 99
    assert (kept.address, kept.pid, kept.tid, kept.lease) == (PLACE, 10, 11, "the lease")
    assert (kept.regs["rdi"], kept.args) == (1, (1, 2, 3, 4, 5, 6))
    with pytest.raises(TypeError):
        cast(dict[str, int], kept.regs)["rdi"] = 2
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        kept.tid = 5  # type: ignore[misc, assignment]


@pytest.mark.contract("hit-7", "hit-11")
def test_arguments_are_read_when_asked_for(hit: Hit, memory: CountingMemory) -> None:
    """Invariant: hit.args reads no memory for registers, and the stack only for the argument asked for."""
    assert [hit.args[index] for index in range(6)] == [1, 2, 3, 4, 5, 6]
    assert memory.reads == 0
    assert hit.args[7] == 16  # [rsp + 8 * (n - 5)]
    assert memory.reads == 1
    with pytest.raises(MemoryFault):
        hit.args[100]
    with pytest.raises(UsageError, match="counted from 0"):
        hit.args[-1]


def test_writes_are_kept_apart_and_cut_to_64_bits(hit: Any, thread: TracedThread) -> None:
    """Invariant: a write changes nothing the handlers read; it applies after all of them."""
    assert not hit._writes
    hit.regs.rdi = -1
    hit.regs["rsi"] = 1 << 64 | 5
    assert hit._writes == {"rdi": 0xFFFF_FFFF_FFFF_FFFF, "rsi": 5}
    assert (hit.regs.rdi, hit.regs.rsi) == (1, 2)
    assert thread.words[LAYOUT.index["rdi"]] == 1


def test_unknown_register_is_told_which_there_are(hit: Hit) -> None:
    with pytest.raises(AttributeError, match="x86_64 has no register 'eax'; it has r15, "):
        hit.regs.eax  # noqa: B018
    with pytest.raises(AttributeError, match="no register 'x0'"):
        hit.regs.x0 = 1
    assert hit._writes is None


@pytest.mark.parametrize("architecture", [X86_64(), I386()])
def test_attributes_and_items_show_the_same_in_every_architecture(architecture: Any, memory: CountingMemory) -> None:
    """Invariant: each name is its own register's value, cut to that register's size; two layouts do not mix."""
    layout = RegisterLayout(
        architecture.name, architecture.register_names, architecture.pc_name, word_size=architecture.word_size
    )
    words = [0xABCD_0000_0000_0000 | position for position in range(len(architecture.register_names))]
    thread = cast("TracedThread", SimpleNamespace(tid=11, pid=10, words=words))
    hit = hit_of(thread, SimpleNamespace(architecture=architecture, layout=layout, memory=memory))
    for name, position in layout.index.items():
        assert getattr(hit.regs, name) == hit.regs[name] == words[position] & layout.mask
    setattr(hit.regs, layout.names[0], -1)
    assert hit._writes == {layout.names[0]: layout.mask}


def test_word_registers_are_a_mapping_over_the_words() -> None:
    words = list(range(len(LAYOUT.names)))
    registers = WordRegisters(words, LAYOUT)
    assert dict(registers) == dict(zip(LAYOUT.names, words, strict=True))
    assert len(registers) == len(words)
    words[LAYOUT.pc] = 77
    assert registers["rip"] == 77
