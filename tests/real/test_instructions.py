"""Single instructions that others have got wrong, run by the processor itself: in place, and by every strategy.

Each test says what is right; where a strategy could leave it, it is looked at after every one.
"""

from collections.abc import Iterator
from itertools import product

import pytest

from tests.real.instruction_bench import BASE_FLAGS, Bench, bench_of
from ubpx import InsnRefused
from ubpx.core.ubp import Strategy
from ubpx.testing.oracle.layout import DATA_SIZE, INT3
from ubpx.testing.oracle.routes import LANDED

CARRY, PARITY, ADJUST, ZERO, SIGN, TRAP, OVERFLOW = 1, 4, 0x10, 0x40, 0x80, 0x100, 0x800
SIGILL, SIGTRAP, SIGFPE, SIGSEGV = 4, 5, 8, 11


@pytest.fixture
def wide() -> Iterator[Bench]:
    with bench_of("x86_64") as bench:
        yield bench


@pytest.fixture
def narrow() -> Iterator[Bench]:
    with bench_of("i386") as bench:
        yield bench


@pytest.fixture(params=["wide", "narrow"])
def both(request: pytest.FixtureRequest) -> Bench:
    bench: Bench = request.getfixturevalue(request.param)
    return bench


# Operands relative to rip: gdb 13.1 computes the first two wrongly.


def test_shl_by_cl_of_a_relative_operand(wide: Bench) -> None:
    found = wide.run(wide.relative("d3 25"), {"rcx": 3}, data=b"\x05")
    assert (found.data(0x100, 4), found["rcx"]) == (40, 3)


def test_cmpxchg16b_of_a_relative_operand(wide: Bench) -> None:
    old, new = (1 << 64 | 2), (3 << 64 | 4)
    registers = {"rdx": 1, "rax": 2, "rcx": 3, "rbx": 4}
    found = wide.run(wide.relative("48 0f c7 0d"), registers, data=old.to_bytes(16, "little"))
    assert found.data(0x100, 16) == new
    assert found["eflags"] & ZERO
    other = wide.run(wide.relative("48 0f c7 0d"), registers, data=(5).to_bytes(16, "little"))
    assert (other["rdx"], other["rax"], other["eflags"] & ZERO) == (0, 5, 0)


@pytest.mark.parametrize("number", range(16))
def test_andn_with_any_register_as_vvvv(wide: Bench, number: int) -> None:
    """Invariant: no scratch register is one that VEX.vvvv names."""
    names = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{n}" for n in range(8, 16)))
    target = 0 if number else 1
    code = wide.relative(f"c4 e2 {(~number & 15) << 3 | 0x80:02x} f2 {target << 3 | 5:02x}")
    found = wide.run(code, {names[number]: 0xFF00}, data=(0xABCD).to_bytes(8, "little"))
    assert (found[names[target]], found[names[number]]) == (0xCD, 0xFF00)


def test_mulx_of_a_relative_operand_uses_rdx(wide: Bench) -> None:
    found = wide.run(wide.relative("c4 e2 fb f6 0d"), {"rdx": 3}, data=(1 << 63).to_bytes(8, "little"))
    assert (found["rcx"], found["rax"], found["rdx"]) == (1, 1 << 63, 3)


@pytest.mark.parametrize("tail", ["11 22 33 44", "11 22"])
def test_an_immediate_behind_a_relative_operand(wide: Bench, tail: str) -> None:
    head = "c7 05" if len(tail) > 5 else "66 c7 05"
    found = wide.run(wide.relative(head, tail))
    assert found.data(0x100, 4) == int.from_bytes(bytes.fromhex(tail), "little")


def test_an_evex_operand_relative_to_rip(wide: Bench) -> None:
    code = wide.relative("62 f1 fd 48 6f 05", offset=0x140)  # vmovdqa64 zmm0, [rip+d]
    found = wide.run(code, data=bytes(64) + bytes(range(64)))
    assert found.end.stop is LANDED
    assert found.end.xstate[160:176] == bytes(range(16))


def test_an_operand_relative_to_eip(wide: Bench) -> None:
    distance = wide.layout.low + 0x100 - (wide.origin + 7) & 0xFFFF_FFFF
    found = wide.run(b"\x67\x8b\x05" + distance.to_bytes(4, "little"), data=b"\x07")
    assert found["rax"] == 7


# Lengths and prefixes.


@pytest.mark.parametrize(
    "code",
    ["66 90", "66" * 14 + "90", "2e 0f 1f 84" + " 00" * 5, "66 2e 0f 1f 84" + " 00" * 5, "f3 0f 1e fa", "3e 90"],
)
def test_a_nop_is_one_with_any_prefixes(wide: Bench, code: str) -> None:
    raw = bytes.fromhex(code)
    assert wide.run(raw)["rip"] == wide.origin + len(raw)


def test_sixteen_bytes_are_no_instruction(both: Bench) -> None:
    assert "no valid instruction" in both.refusal("66" * 15 + "90")


@pytest.mark.parametrize("code", ["66 68 34 12", "66 6a 7f", "66 50"])
def test_a_push_of_16_bits(both: Bench, code: str) -> None:
    sp = "rsp" if both.layout.word_size == 8 else "esp"
    assert both.run(code)[sp] == both.sp - 2


def test_a_locked_increment(both: Bench) -> None:
    bx = "rbx" if both.layout.word_size == 8 else "ebx"
    assert both.run("f0 ff 03", {bx: both.data + 0x100}, data=b"\xff").data(0x100, 4) == 0x100


def test_a_wait_for_the_floating_point_unit(both: Bench) -> None:
    assert both.run("9b").end.pc == both.origin + 1


def test_the_floating_point_unit_names_the_programs_own_instruction(both: Bench) -> None:
    found = both.run("d9 e8")
    assert int.from_bytes(found.end.xstate[8:12], "little") == both.origin & 0xFFFF_FFFF
    assert Strategy.BOOST not in found.strategies


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("66 e9 00 00", "operand-size prefix"),
        ("66 0f 84 00 00", "operand-size prefix"),
        ("cc", "breakpoint"),
        ("f4", "only the kernel"),
    ],
)
def test_what_is_refused_in_both_modes(both: Bench, code: str, reason: str) -> None:
    assert reason in both.refusal(code)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("62 f4 7c 08 85 c0", "APX"),  # ctest, EVEX map 4
        ("d5 00 90", "APX"),
        ("ea 00 00 00 00 33 00", "does not exist"),
        ("06", "does not exist"),
    ],
)
def test_what_is_refused_in_64_bit_mode(wide: Bench, code: str, reason: str) -> None:
    assert reason in wide.refusal(code)


@pytest.mark.parametrize("code", ["ea 00 00 00 00 23 00", "9a 00 00 00 00 23 00"])
def test_a_far_jump_is_refused_by_its_name_and_length(narrow: Bench, code: str) -> None:
    """Invariant: 0xea has seven bytes."""
    with pytest.raises(InsnRefused, match="far transfer") as caught:
        narrow.architecture.analyze(bytes.fromhex(code).ljust(15, INT3), narrow.origin)
    assert caught.value.insn is not None
    assert caught.value.insn.length == 7


# Where the thread goes.


def holds(pair: int, flags: int) -> bool:
    """Whether the first of two opposite conditions does (Intel SDM volume 1, appendix B)."""
    less = bool(flags & SIGN) != bool(flags & OVERFLOW)
    any_of = (OVERFLOW, CARRY, ZERO, CARRY | ZERO, SIGN, PARITY, 0, ZERO)[pair]
    return bool(flags & any_of) or (less and pair >= 6)


@pytest.mark.parametrize("near", [False, True])
def test_every_condition_with_every_flag(both: Bench, near: bool) -> None:
    """Invariant: a jump on two flags is taken if either holds (jbe, jle); a displacement is signed."""
    for condition, *chosen in product(range(16), *[(0, 1)] * 5):
        flags = sum(bit for bit, wanted in zip((CARRY, PARITY, ZERO, SIGN, OVERFLOW), chosen, strict=True) if wanted)
        distance = -0x300 if near else -0x60
        code = bytes((0x0F, 0x80 + condition)) if near else bytes((0x70 + condition,))
        code += distance.to_bytes(4 if near else 1, "little", signed=True)
        taken = holds(condition >> 1, flags) != bool(condition & 1)
        assert both.run(code, flags=flags).end.pc == both.origin + len(code) + (distance if taken else 0)


@pytest.mark.parametrize("prefix", ["", "67"])
@pytest.mark.parametrize("opcode", [0xE0, 0xE1, 0xE2, 0xE3])
def test_loops_count_and_look_at_zero(both: Bench, opcode: int, prefix: str) -> None:
    bits = 8 * both.layout.word_size
    name = "rcx" if bits == 64 else "ecx"
    counted = bits // 2 if prefix else bits
    code = bytes.fromhex(prefix) + bytes((opcode, 0x40))
    for count, flags in product((0, 1, 2, 1 << bits // 2, (1 << bits // 2) + 1, (1 << bits) - 1), (0, ZERO)):
        found = both.run(code, {name: count}, flags=flags)
        left = (count if opcode == 0xE3 else count - 1) & (1 << counted) - 1
        wanted = {0xE0: not flags, 0xE1: bool(flags)}.get(opcode, True)
        taken = left == 0 if opcode == 0xE3 else left != 0 and wanted
        assert found.end.pc == both.origin + len(code) + (0x40 if taken else 0)
        assert found[name] & (1 << counted) - 1 == left


@pytest.mark.parametrize("code", ["c3", "f3 c3", "f2 c3", "c2 04 00", "3e c3"])
def test_returns(both: Bench, code: str) -> None:
    """Invariant: rep ret is a ret; ret $4 of a struct return takes four bytes more."""
    word = both.layout.word_size
    found = both.run(code, stack=(both.origin + 0x500).to_bytes(word, "little"))
    assert found.end.pc == both.origin + 0x500
    assert found["rsp" if word == 8 else "esp"] == both.sp + word + (4 if code.startswith("c2") else 0)


@pytest.mark.parametrize("code", ["3e ff e0", "ff e0", "3e ff d0", "ff d0"])
def test_indirect_jumps_and_calls_without_tracking(both: Bench, code: str) -> None:
    ax = "rax" if both.layout.word_size == 8 else "eax"
    assert both.run(code, {ax: both.origin + 0x200}).end.pc == both.origin + 0x200


@pytest.mark.parametrize("code", ["e8 00 01 00 00", "ff d0", "3e ff d0"])
def test_a_call_leaves_the_programs_own_return_address(both: Bench, code: str) -> None:
    """Invariant: of the program's width, also where the tracer has another."""
    word, size = both.layout.word_size, len(bytes.fromhex(code))
    found = both.run(code, {"rax" if word == 8 else "eax": both.origin + 0x105})
    assert found.end.pc == both.origin + 0x105
    assert found.stack(0x1000 - word, word) == both.origin + size
    assert found.stack(0x1000 - 2 * word, word) == 0


def test_a_call_to_no_address_faults_where_it_stands(wide: Bench) -> None:
    found = wide.run("ff d0", {"rax": 1 << 60})
    assert (found.end.stop.signal, found["rip"], found["rsp"]) == (SIGSEGV, wide.origin, wide.sp)


def test_xbegin_goes_to_the_programs_own_abort_address(both: Bench) -> None:
    """Invariant: wherever it runs, an abort (the trap behind it, at the latest) leads to the relative address."""
    found = both.run("c7 f8 00 01 00 00")
    assert found.end.pc in {both.origin + 0x106, both.origin}  # without transactional memory it is no instruction
    assert found.strategies == (Strategy.BOOST,)


# The stack and the flags.


def test_a_push_of_the_stack_pointer_stores_what_it_was(both: Bench) -> None:
    word = both.layout.word_size
    assert both.run("54").stack(0x1000 - word, word) == both.sp


def test_a_pop_of_the_stack_pointer_leaves_what_it_read(both: Bench) -> None:
    word = both.layout.word_size
    assert both.run("5c", stack=b"\x78\x56\x34\x12")["rsp" if word == 8 else "esp"] == 0x1234_5678


@pytest.mark.parametrize("flags", [0, CARRY | OVERFLOW, ZERO | PARITY | ADJUST])
def test_pushf_stores_no_trap_flag_of_a_step(both: Bench, flags: int) -> None:
    word = both.layout.word_size
    found = both.run("9c", flags=flags)
    assert found.stack(0x1000 - word, word) == BASE_FLAGS | flags
    assert Strategy.STEP in found.strategies


def test_a_push_that_faults_has_done_nothing(both: Bench) -> None:
    """Invariant: emulation leaves it to the slot; the program sees its own fault at its own address."""
    sp = "rsp" if both.layout.word_size == 8 else "esp"
    found = both.run("50", {sp: both.stack})
    assert (found.end.stop.signal, found.end.pc, found[sp]) == (SIGSEGV, both.origin, both.stack)
    assert found.end.stop.address == both.stack - both.layout.word_size


def test_popf_sets_the_programs_own_trap_flag(both: Bench) -> None:
    found = both.run("9d", stack=(BASE_FLAGS | TRAP | CARRY).to_bytes(8, "little"))
    assert found["eflags"] & (TRAP | CARRY) == TRAP | CARRY


def test_popf_that_faults_keeps_no_trap_flag_of_a_step(both: Bench) -> None:
    sp = "rsp" if both.layout.word_size == 8 else "esp"
    found = both.run("9d", {sp: both.stack - 0x800})
    assert (found.end.stop.signal, found["eflags"] & TRAP) == (SIGSEGV, 0)


@pytest.mark.parametrize("code", ["40", "90", "89 c0", "f7 d8", "50"])
def test_a_program_that_steps_itself_gets_its_own_trap(narrow: Bench, code: str) -> None:
    """Invariant: si_code says trace, si_addr is the address behind the instruction."""
    size = len(bytes.fromhex(code))
    found = narrow.run(code, flags=TRAP)
    assert (found.end.stop.signal, found.end.stop.code) == (SIGTRAP, 2)
    assert found.end.stop.address == narrow.origin + size


@pytest.mark.parametrize("code", ["8e d0", "66 8e d0"])
def test_mov_ss_and_not_the_next_instruction(both: Bench, code: str) -> None:
    found = both.run(code, {"rax" if both.layout.word_size == 8 else "eax": 0x2B})
    assert (found.end.pc, found["ss"]) == (both.origin + len(bytes.fromhex(code)), 0x2B)
    assert found.strategies == (Strategy.BOOST,)


def test_pop_ss_and_lss(narrow: Bench) -> None:
    assert narrow.run("17", stack=b"\x2b").end.pc == narrow.origin + 1
    pointer = narrow.sp.to_bytes(4, "little") + b"\x2b\0"
    found = narrow.run("0f b2 23", {"ebx": narrow.data + 0x100}, data=pointer)
    assert (found.end.pc, found["esp"]) == (narrow.origin + 3, narrow.sp)


# The kernel.


@pytest.mark.parametrize(("number", "fails"), [(39, False), (0x1FFF, True)])
@pytest.mark.parametrize("flags", [0, CARRY | ZERO])
def test_syscall_leaves_the_programs_next_address_and_flags(wide: Bench, number: int, fails: bool, flags: int) -> None:
    """Invariant: rcx is not the slot's (kernel uprobes and gdb leave that), and r11 has no TF."""
    found = wide.run("0f 05", {"rax": number}, flags=flags)
    assert found["rcx"] == wide.origin + 2
    assert found["r11"] == BASE_FLAGS | flags
    assert (found["rax"] > 1 << 63) == fails


@pytest.mark.parametrize("code", ["0f 00 c8", "0f 01 e0", "0f 00 c0"])
def test_what_the_kernel_emulates_is_one_instruction(both: Bench, code: str) -> None:
    """Invariant: behind str, smsw and sldt, which a step would take together with the next one, the next one is due."""
    assert both.run(code).end.pc == both.origin + 3


# Faults.


@pytest.mark.parametrize("code", ["f7 f9", "48 f7 f9"])
def test_a_division_by_zero_shows_its_own_address(wide: Bench, code: str) -> None:
    found = wide.run(code, {"rcx": 0})
    assert (found.end.stop.signal, found["rip"]) == (SIGFPE, wide.origin)
    assert found.end.stop.address == wide.origin


def test_an_undefined_instruction_shows_its_own_address(both: Bench) -> None:
    found = both.run("0f 0b")
    assert (found.end.stop.signal, found.end.stop.address, found.end.pc) == (SIGILL, both.origin, both.origin)


@pytest.mark.parametrize(("code", "step", "value"), [("f3 a4", 1, 0x0303), ("f3 a5", 4, 0x03030303_03030303)])
def test_a_repeated_move_is_one_arrival(both: Bench, code: str, step: int, value: int) -> None:
    wide = both.layout.word_size == 8
    names = ("rcx", "rsi", "rdi") if wide else ("ecx", "esi", "edi")
    registers = dict(zip(names, (2, both.data + 0x100, both.data + 0x200), strict=True))
    found = both.run(code, registers, data=b"\x03" * 64)
    assert (found[names[0]], found[names[2]]) == (0, both.data + 0x200 + 2 * step)
    assert found.data(0x200, 2 * step) == value
    assert found.end.pc == both.origin + 2


def test_a_repeated_store_stops_where_memory_does(both: Bench) -> None:
    wide = both.layout.word_size == 8
    names = ("rcx", "rdi", "rax") if wide else ("ecx", "edi", "eax")
    registers = dict(zip(names, (40, both.data + DATA_SIZE - 16, 0xEE), strict=True))
    found = both.run("f3 aa", registers)
    assert (found.end.stop.signal, found.end.pc) == (SIGSEGV, both.origin)
    assert found.end.stop.address == both.data + DATA_SIZE
    assert found[names[0]] == 24
    assert found.data(DATA_SIZE - 16, 8) == 0xEEEE_EEEE_EEEE_EEEE


@pytest.mark.parametrize(
    "code", ["8f e8 78 c0 c1 05", "8f e9 78 01 c9", "8f ea 78 10 c1 01 00 00 00", "c4 e3 71 69 c2 30"]
)
def test_xop_and_fma4_have_their_length(wide: Bench, code: str) -> None:
    """Invariant: where the processor lacks them, the program gets its own SIGILL at its own address."""
    found = wide.run(code)
    if found.end.stop is not LANDED:
        assert (found.end.stop.signal, found.end.stop.address) == (SIGILL, wide.origin)
    else:
        assert found["rip"] == wide.origin + len(bytes.fromhex(code))
