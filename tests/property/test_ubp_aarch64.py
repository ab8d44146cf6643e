"""Any bits as aarch64 instructions: what the analysis may say of them, and that a copy is what it copies."""

from __future__ import annotations

from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from ubpx._errors import InsnRefused
from ubpx.core.ubp import Architecture, InsnAnalysis, Strategy, architecture
from ubpx.core.ubp.aarch64_insns import InsnClass, insn_class
from ubpx.core.values import VirtAddr

ARCH: Architecture = architecture("aarch64")
LOWEST, HIGHEST = 0x1_0000, ARCH.address_limit - 0x1000

unhurried = settings(deadline=None)  # a loaded machine is no failure

# Branches, exceptions and system instructions are a sixteenth of all words, and most of what is special.
special = st.builds(
    lambda word, top: word & 0x03FF_FFFF | top << 26, st.integers(0, 2**32 - 1), st.integers(0x05, 0x35)
)
words = st.one_of(st.integers(0, 2**32 - 1), special, st.integers(0xD400_0000, 0xD6FF_FFFF))


def like(*patterns: tuple[int, int]) -> st.SearchStrategy[int]:
    """Words with these values in the bits of these masks, and anything in the others."""
    return st.builds(
        lambda word, pattern: word & ~pattern[0] | pattern[1], st.integers(0, 2**32 - 1), st.sampled_from(patterns)
    )


MOVABLE = like(
    (0xFF80_0000, 0x9100_0000), (0xFFC0_0000, 0xF940_0000), (0xFFC0_0000, 0x3D80_0000), (0xFFFF_FC1F, 0xD65F_0000)
)
"""add, ldr, str of a vector register, ret."""
PLACED = like(
    (0xFC00_0000, 0x1400_0000), (0xFC00_0000, 0x9400_0000), (0xFF00_0010, 0x5400_0000), (0x7E00_0000, 0x3400_0000),
    (0x7E00_0000, 0x3600_0000), (0x1F00_0000, 0x1000_0000), (0xBF00_0000, 0x1800_0000), (0xFF00_0000, 0x9800_0000),
    (0xFFFF_FC1F, 0xD61F_0000), (0xFFFF_FC1F, 0xD63F_0000), (0xFFFF_FC1F, 0xD65F_0000),
)  # fmt: skip
"""All that is emulated."""
addresses = st.integers(LOWEST // 4, HIGHEST // 4).map(lambda word: VirtAddr(4 * word))
registers = st.fixed_dictionaries({name: st.integers(0, 2**64 - 1) for name in ARCH.register_names})


def analysis(word: int, address: int) -> InsnAnalysis | None:
    """None for what is refused; anything else that is raised is an error."""
    try:
        return ARCH.analyze(word.to_bytes(4, "little"), VirtAddr(address))
    except InsnRefused:
        return None


@unhurried
@given(word=words, address=st.integers(0, 2**64 - 1))
@example(word=0xD503_201F, address=2**64 - 4)
def test_nothing_but_refusals_is_raised(word: int, address: int) -> None:
    """Invariant: of any word at any address, and of what is allowed there are copies or emulators."""
    found = analysis(word, address)
    if found is None:
        return
    assert set(found.strategies) | set(found.refusals) == set(Strategy)
    assert not set(found.strategies) & found.refusals.keys()
    assert insn_class(word) not in (InsnClass.SYSTEM_CALL, InsnClass.EXCLUSIVE_STORE)
    if Strategy.EMULATE in found.strategies:
        ARCH.emulator(found)


@unhurried
@given(word=MOVABLE, address=addresses, distance=st.integers(-(1 << 27) + 64, (1 << 27) - 64))
def test_a_slot_holds_the_instruction(word: int, address: VirtAddr, distance: int) -> None:
    """Invariant: a copy is the word itself, and what stands behind it leads to what follows the instruction."""
    found = analysis(word, address)
    assume(found is not None and Strategy.BOOST in found.strategies)
    assert found is not None
    slot = VirtAddr(max(address + distance, 0) & -ARCH.slot_size)
    made = ARCH.slot_code(found, slot)
    assert made.code[:4] == found.insn.raw
    if found.reach:
        back = next(ARCH.flow(made.code[4:], VirtAddr(slot + 4)))
        assert (back.target, back.falls_through) == (found.insn.end, False)
    for _, origin in made.places:
        assert made.to_origin(made.to_slot(origin) or VirtAddr(0)) == origin


@unhurried
@given(word=PLACED, address=addresses, regs=registers)
def test_emulation_leaves_registers_that_can_be(word: int, address: VirtAddr, regs: dict[str, int]) -> None:
    """Invariant: 64 bits each, and no other than the PC, the flags, and one that is loaded or linked."""
    found = analysis(word, address)
    assume(found is not None and Strategy.EMULATE in found.strategies)
    assert found is not None
    changes = ARCH.emulate(found, regs, _Ones()).registers
    assert all(0 <= value < 2**64 for value in changes.values())
    assert changes.keys() <= set(ARCH.register_names)
    assert len(changes.keys() - {"pc", "pstate"}) <= 1
    if found.landing is not None:
        assert changes["pc"] == found.landing


@unhurried
@given(code=st.binary(max_size=400), at=st.integers(-8, 400))
def test_sequences_are_looked_for_in_anything(code: bytes, at: int) -> None:
    """Invariant: bytes that are no code are no error."""
    start = VirtAddr(LOWEST)
    reason = ARCH.in_sequence(code, start, VirtAddr(start + at))
    assert reason is None or "exclusive" in reason


class _Ones:
    """Memory with ones everywhere."""

    def read(self, _address: int, size: int) -> bytes:
        return b"\xff" * size

    def write(self, address: int, data: bytes) -> None:
        raise AssertionError("emulation writes nothing")

    patch = write
