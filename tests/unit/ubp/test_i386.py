"""32-bit code: what it decodes differently, and what is emulated and put right there."""

from collections.abc import Callable, Mapping

import pytest

from ubpx._errors import InsnRefused, MemoryFault, NotEmulated
from ubpx.core.ports import Memory
from ubpx.core.ubp.decode import CapstoneDecoder, Decoder, IcedDecoder
from ubpx.core.ubp.i386 import I386
from ubpx.core.ubp.plans import InsnAnalysis, MemoryWrite, Outcome, Strategy
from ubpx.core.values import VirtAddr

ORIGIN, SLOT, SP = VirtAddr(0x804_8000), VirtAddr(0xF700_0000), 0xFFF0_1000
REGS = {
    "eax": 0x11, "ecx": 0x2222_0001, "edx": 0x33, "ebx": 0x44, "esp": SP, "ebp": SP + 0x100, "esi": 0x66, "edi": 0x77,
    "eip": ORIGIN, "eflags": 0x246, "ss": 0x2B, "fs": 0x2B, "gs": 0x63, "gs_base": 0xF7F0_0000, "fs_base": 0,
}  # fmt: skip
MakeMemory = Callable[[Mapping[int, bytes]], Memory]
EMULATE, BOOST, STEP, INLINE = Strategy.EMULATE, Strategy.BOOST, Strategy.STEP, Strategy.INLINE


@pytest.fixture(scope="module", params=[IcedDecoder, CapstoneDecoder])
def i386(request: pytest.FixtureRequest) -> I386:
    decoder: Decoder = request.param(32)
    return I386(decoder)


@pytest.fixture(scope="module")
def analyze(i386: I386) -> Callable[[str], InsnAnalysis]:
    return lambda text: i386.analyze(bytes.fromhex(text), ORIGIN)


@pytest.fixture
def emulate(i386: I386, memory: MakeMemory) -> Callable[..., Outcome]:
    def run(text: str, mapped: Mapping[int, bytes] | None = None, **regs: int) -> Outcome:
        analysis = i386.analyze(bytes.fromhex(text), ORIGIN)
        return i386.emulate(analysis, REGS | regs, memory(mapped or {}))

    return run


@pytest.mark.parametrize(
    ("text", "strategies"),
    [
        ("40", (BOOST, STEP, INLINE)),  # inc eax: no REX prefix here
        ("4f", (BOOST, STEP, INLINE)),
        ("60", (BOOST, STEP, INLINE)),
        ("61", (BOOST, STEP, INLINE)),
        ("62 00", (BOOST, STEP, INLINE)),  # bound
        ("c5 00", (BOOST, STEP, INLINE)),  # lds
        ("c4 00", (BOOST, STEP, INLINE)),  # les
        ("c5 f8 77", (BOOST, STEP, INLINE)),  # vzeroupper
        ("62 f1 fe 48 6f 00", (BOOST, STEP, INLINE)),
        ("63 c0", (BOOST, STEP, INLINE)),  # arpl
        ("82 c0 01", (BOOST, STEP, INLINE)),
        ("d4 0a", (BOOST, STEP, INLINE)),  # aam
        ("d5 0a", (BOOST, STEP, INLINE)),  # aad, no REX2 here
        ("27", (BOOST, STEP, INLINE)),
        ("06", (BOOST, STEP, INLINE)),
        ("1f", (BOOST, STEP, INLINE)),
        ("17", (BOOST,)),  # pop ss
        ("8e d0", (BOOST,)),
        ("8b 05 10 00 00 00", (BOOST, STEP, INLINE)),  # an absolute address here
        ("0f 34", (BOOST,)),
        ("d9 e8", (STEP, INLINE)),
        ("55", (EMULATE, BOOST, STEP, INLINE)),
        ("e8 00 00 00 00", (EMULATE, STEP, INLINE)),
        ("65 ff 15 10 00 00 00", (EMULATE, STEP, INLINE)),  # call *%gs:0x10
        ("36 ff 10", (STEP, INLINE)),
        ("67 ff 17", (STEP, INLINE)),
        ("9d", (EMULATE, STEP, INLINE)),
        ("e3 10", (EMULATE, INLINE)),
        ("f3 0f 1e fb", (EMULATE, BOOST, STEP, INLINE)),
    ],
)
def test_what_is_allowed(analyze: Callable[[str], InsnAnalysis], text: str, strategies: tuple[Strategy, ...]) -> None:
    """Invariant: what 64-bit mode has taken for prefixes, or lacks, is an instruction of its own length here."""
    analysis = analyze(text)
    assert analysis.strategies == strategies
    assert analysis.insn.raw == bytes.fromhex(text)
    assert analysis.reach == ()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("9a 00 00 00 00 33 00", "far"),
        ("ea 00 00 00 00 33 00", "far"),
        ("ce", "interrupt"),
        ("cd 80", "interrupt"),
        ("cc", "breakpoint already"),
        ("0f 05", "32-bit code"),
        ("66 e9 00 00", "16 bits"),
        ("66 c3", "16 bits"),
        ("0f 01 f8", "valid|kernel"),  # swapgs, which capstone knows in 32-bit code too
        ("fa", "interrupts"),
        ("", "nothing is readable"),
        ("e9 00 00", "does not end in the 3 bytes"),
    ],
)
def test_what_is_refused(analyze: Callable[[str], InsnAnalysis], text: str, reason: str) -> None:
    """Invariant: what cannot be probed is refused, and the reason names the cause."""
    with pytest.raises(InsnRefused, match=reason):
        analyze(text)


def test_copies_reach_everything(i386: I386, analyze: Callable[[str], InsnAnalysis]) -> None:
    """Invariant: addresses wrap at 32 bits, so that a slot may lie anywhere."""
    code = i386.slot_code(analyze("74 10"), SLOT)
    distance = (ORIGIN + 0x12 - (SLOT + 6)) % 2**32
    back = (ORIGIN + 2 - (SLOT + 11)) % 2**32
    assert code.code == b"\x0f\x84" + distance.to_bytes(4, "little") + b"\xe9" + back.to_bytes(4, "little")
    assert i386.slot_code(analyze("8b 05 10 00 00 00"), SLOT).code[:6] == bytes.fromhex("8b 05 10 00 00 00")


def test_call_pushes_four_bytes(
    emulate: Callable[..., Outcome], i386: I386, analyze: Callable[[str], InsnAnalysis]
) -> None:
    """Invariant: a return address has the program's width, not the tracer's (call 1f; 1: pop)."""
    outcome = emulate("e8 00 00 00 00")
    pushed = MemoryWrite(VirtAddr(SP - 4), (ORIGIN + 5).to_bytes(4, "little"))
    assert outcome == Outcome(registers={"esp": SP - 4, "eip": ORIGIN + 5}, writes=(pushed,))
    plan = i386.before_step(analyze("ff d0"), SLOT, REGS)
    stepped = i386.after_step(plan, REGS | {"eip": 0x11, "esp": SP - 4})
    assert stepped.writes == (MemoryWrite(VirtAddr(SP - 4), (ORIGIN + 2).to_bytes(4, "little")),)


def test_the_kernels_own_page_is_called_by_gs(emulate: Callable[..., Outcome]) -> None:
    """Invariant: call *%gs:0x10, as libc makes system calls, finds its target in thread-local memory."""
    outcome = emulate("65 ff 15 10 00 00 00", {0xF7F0_0010: (0xF7FF_0550).to_bytes(4, "little")})
    assert outcome.registers == {"esp": SP - 4, "eip": 0xF7FF_0550}


def test_a_segment_that_is_not_there_is_left_to_the_processor(emulate: Callable[..., Outcome]) -> None:
    """Invariant: a null selector faults at the call."""
    with pytest.raises(NotEmulated, match="segment"):
        emulate("64 ff 13", {0x44: b"\x11\0\0\0"}, fs=3)


def test_stack_operations(emulate: Callable[..., Outcome]) -> None:
    """Invariant: push, pop and leave move four bytes; push esp stores the value from before it."""
    assert emulate("54").writes == (MemoryWrite(VirtAddr(SP - 4), SP.to_bytes(4, "little")),)
    assert emulate("6a ff").writes == (MemoryWrite(VirtAddr(SP - 4), b"\xff" * 4),)
    assert emulate("5c", {SP: b"\x01\0\0\0"}).registers == {"esp": 1, "eip": ORIGIN + 1}
    assert emulate("c9", {SP + 0x100: b"\x02\0\0\0"}).registers == {"esp": SP + 0x104, "ebp": 2, "eip": ORIGIN + 1}
    with pytest.raises(MemoryFault):
        emulate("58")


def test_a_stack_segment_of_the_programs_own_is_left_to_the_processor(emulate: Callable[..., Outcome]) -> None:
    """Invariant: an address that is not known here is not guessed."""
    with pytest.raises(NotEmulated, match="stack segment"):
        emulate("55", ss=0x7)


def test_counted_branch_of_half_width_keeps_the_upper_half(emulate: Callable[..., Outcome]) -> None:
    """Invariant: under an address-size prefix cx counts, and the rest of ecx stays."""
    assert emulate("67 e2 10").registers == {"ecx": 0x2222_0000, "eip": ORIGIN + 3}
    assert emulate("e2 10").registers == {"ecx": 0x2222_0000, "eip": ORIGIN + 0x12}


def test_arguments_are_on_the_stack(i386: I386, memory: MakeMemory) -> None:
    """Invariant: the first argument is right behind the return address, 32 bits wide."""
    stack = memory({SP: bytes(4) + b"\x01\0\0\0" + b"\xff" * 4})
    assert [i386.argument(number, REGS, stack) for number in (0, 1)] == [1, 0xFFFF_FFFF]


def test_register_names_are_the_words_of_a_64_bit_tracer(i386: I386) -> None:
    """Invariant: eip is where rip is; words that are no register of this mode have no name."""
    assert len(i386.register_names) == 27
    assert i386.register_names.index(i386.pc_name) == 16
    assert i386.register_names.count("") == 8


@pytest.mark.parametrize(
    ("eax", "orig_eax", "number"),
    [(-512, 4, 4), (-516, 162, 0), (-512, -1, None), (-4, 4, None), (7, 4, None)],
)
def test_system_call_that_begins_again(i386: I386, eax: int, orig_eax: int, number: int | None) -> None:
    """Invariant: only what the kernel may restart, and in a system call, is said to restart; registers have 32 bits."""
    regs = {"eax": eax & 0xFFFF_FFFF, "orig_eax": orig_eax & 0xFFFF_FFFF}
    assert i386.restarted(regs) == (None if number is None else {"eax": number})
