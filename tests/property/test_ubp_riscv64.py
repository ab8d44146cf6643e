"""Any bits as riscv64 instructions: what the analysis may say of them, and that a copy is what it copies."""

from __future__ import annotations

from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from ubpx._errors import InsnRefused
from ubpx.core.ubp import Architecture, InsnAnalysis, Strategy, architecture
from ubpx.core.values import VirtAddr

ARCH: Architecture = architecture("riscv64")
LOWEST, HIGHEST = 0x1_0000, ARCH.address_limit - 0x1000

unhurried = settings(deadline=None)  # a loaded machine is no failure


def words(opcodes: st.SearchStrategy[int]) -> st.SearchStrategy[bytes]:
    """Instructions of 32 bits of these major opcodes, with anything in the other bits."""
    return st.builds(
        lambda word, opcode: (word & ~0x7F | opcode).to_bytes(4, "little"), st.integers(0, 2**32 - 1), opcodes
    )


codes = st.one_of(st.binary(max_size=6), words(st.integers(0, 31).map(lambda major: major << 2 | 3)))
placed = words(st.sampled_from([0x17, 0x63, 0x67, 0x6F]))  # auipc, branches, jalr, jal
movable = st.one_of(words(st.sampled_from([0x03, 0x13, 0x37])), st.sampled_from([b"\x22\x65", b"\x05\x05", b"\x01\0"]))
addresses = st.integers(LOWEST // 2, HIGHEST // 2).map(lambda half: VirtAddr(2 * half))
registers = st.fixed_dictionaries({name: st.integers(0, 2**64 - 1) for name in ARCH.register_names})


def analysis(code: bytes, address: VirtAddr) -> InsnAnalysis | None:
    """None for what is refused; anything else that is raised is an error."""
    try:
        return ARCH.analyze(code, address)
    except InsnRefused:
        return None


@unhurried
@given(code=codes, address=st.integers(0, 2**64 - 1))
@example(code=b"", address=0)
@example(code=b"\xff" * 4, address=2**64 - 2)
def test_nothing_but_refusals_is_raised(code: bytes, address: int) -> None:
    """Invariant: of any bytes at any address, and of what is allowed there are copies or emulators."""
    found = analysis(code, VirtAddr(address))
    if found is None:
        return
    assert found.insn.raw == code[: found.insn.length]
    assert found.strategies
    assert found.strategies[0] not in found.refusals
    assert set(found.strategies) | set(found.refusals) == set(Strategy)
    patch = ARCH.trap(found)
    assert patch.trap in ARCH.trap_forms
    assert patch.original == code[: len(patch.trap)] == found.insn.raw[: len(patch.trap)]
    if Strategy.EMULATE in found.strategies:
        ARCH.emulator(found)


@unhurried
@given(code=movable, address=addresses, distance=st.integers(-(1 << 22), 1 << 22))
def test_a_slot_holds_the_instruction(code: bytes, address: VirtAddr, distance: int) -> None:
    """Invariant: each copy is whole, leads back to what follows it or to a trap, and every place has its address."""
    found = analysis(code, address)
    assume(found is not None and Strategy.STEP in found.strategies)
    assert found is not None
    slot = VirtAddr((address + distance) & ~31)
    made = ARCH.slot_code(found, slot)
    for place, origin in made.places:
        rest = made.code[place:]
        if origin == address:
            assert rest.startswith(found.insn.raw)
        else:
            flow = next(ARCH.flow(rest, VirtAddr(slot + place)))
            assert not flow.falls_through
            assert flow.target == (None if place == made.stop else found.insn.end)
    assert (Strategy.BOOST in made.serves) == (0 in dict(made.places) and made.stop != found.insn.length)


@unhurried
@given(code=placed, address=addresses, regs=registers)
def test_emulation_leaves_registers_that_can_be(code: bytes, address: VirtAddr, regs: dict[str, int]) -> None:
    """Invariant: 64 bits each, an even PC, and no other register than one that receives a return address."""
    found = analysis(code, address)
    assume(found is not None and Strategy.EMULATE in found.strategies)
    assert found is not None
    changes = ARCH.emulator(found)({**regs, "pc": address}, _NoMemory()).registers
    assert all(0 <= value < 2**64 for value in changes.values())
    assert changes["pc"] % 2 == 0
    assert len(changes.keys() - {"pc"}) <= 1
    assert changes.keys() <= set(ARCH.register_names)
    if found.landing is not None:
        assert changes == {"pc": found.landing}


@unhurried
@given(code=st.binary(max_size=400), at=st.integers(-8, 400))
def test_sequences_are_looked_for_in_anything(code: bytes, at: int) -> None:
    """Invariant: bytes that are no code are no error, and without a load-reserved there is no sequence."""
    start = VirtAddr(LOWEST)
    reason = ARCH.in_sequence(code, start, VirtAddr(start + at))
    assert reason is None or any(each & 0x7F == 0x2F for each in code)


class _NoMemory:
    """A Memory that nothing may touch."""

    def read(self, address: int, size: int) -> bytes:
        raise AssertionError(f"{size} bytes at {address:#x} were read")

    def write(self, address: int, data: bytes) -> None:
        raise AssertionError(f"{data!r} was written at {address:#x}")

    patch = write
