"""What is put right after a step of the copy."""

from collections.abc import Callable, Mapping

import pytest

from ubpx.core.ubp.plans import InsnAnalysis, MemoryWrite, Outcome, StepPlan
from ubpx.core.ubp.x86_64 import X86_64
from ubpx.core.values import VirtAddr

Analyze = Callable[[str], InsnAnalysis]

SLOT = VirtAddr(0x7F0000300000)
SP = 0x7FFE0000
USUAL_FLAGS = 0x246
TRAP_FLAG = 0x100


def planned(x86: X86_64, analysis: InsnAnalysis, eflags: int = USUAL_FLAGS) -> StepPlan:
    return x86.before_step(analysis, SLOT, {"rip": analysis.insn.address, "rsp": SP, "eflags": eflags})


def at(rip: int, eflags: int = USUAL_FLAGS) -> Mapping[str, int]:
    return {"rip": rip, "rsp": SP, "eflags": eflags}


@pytest.mark.parametrize(("text", "copy_length"), [("48 89 e5", 3), ("90", 1), ("74 10", 6), ("f3 a4", 2)])
def test_finished_copy_leaves_the_thread_behind_the_original(
    x86: X86_64, analyze: Analyze, text: str, copy_length: int
) -> None:
    """Invariant: after the step no register shows the slot."""
    analysis = analyze(text)
    plan = planned(x86, analysis)
    assert x86.after_step(plan, at(SLOT + copy_length)) == Outcome(registers={"rip": analysis.insn.end})


@pytest.mark.parametrize("text", ["c3", "ff e0", "eb 10", "74 10"])
def test_taken_branch_is_left_alone(x86: X86_64, analyze: Analyze, text: str) -> None:
    """Invariant: a thread that has left the slot is where the program wants it."""
    assert x86.after_step(planned(x86, analyze(text)), at(0x401234)) == Outcome(registers={})


@pytest.mark.parametrize("text", ["e8 00 01 00 00", "ff d0", "ff 15 10 00 00 00", "66 66 48 e8 00 01 00 00"])
def test_call_returns_into_the_program(x86: X86_64, analyze: Analyze, text: str) -> None:
    """Invariant: a return address on the stack is never the slot's."""
    analysis = analyze(text)
    outcome = x86.after_step(planned(x86, analysis), at(0x401234))
    assert outcome == Outcome(
        registers={}, writes=(MemoryWrite(VirtAddr(SP), analysis.insn.end.to_bytes(8, "little")),)
    )


@pytest.mark.parametrize("text", ["9c", "66 9c"])
@pytest.mark.parametrize("shown", [0, TRAP_FLAG], ids=["TF hidden", "TF shown"])
def test_stored_trap_flag_is_cleared(x86: X86_64, analyze: Analyze, text: str, shown: int) -> None:
    """Invariant: a program never sees a trap flag that the tracer set, and sees every other flag."""
    analysis = analyze(text)
    eflags = 0x8D5 | 0x200 | 0x400
    outcome = x86.after_step(planned(x86, analysis, eflags), at(SLOT + analysis.insn.length, eflags | shown))
    assert outcome.writes == (MemoryWrite(VirtAddr(SP + 1), b"\x0e"),)
    assert outcome.registers == {"rip": analysis.insn.end}


def test_trap_flag_of_the_program_itself_is_kept(x86: X86_64, analyze: Analyze) -> None:
    """Invariant: a program that steps itself stores the trap flag that it set."""
    plan = planned(x86, analyze("9c"), USUAL_FLAGS | TRAP_FLAG)
    assert x86.after_step(plan, at(SLOT + 1, USUAL_FLAGS | TRAP_FLAG)).writes == ()


@pytest.mark.parametrize("text", ["f3 a4", "f3 48 ab", "f2 ae", "f3 a6"])
def test_rep_in_the_middle_goes_on(x86: X86_64, analyze: Analyze, text: str) -> None:
    """Invariant: one arrival is one hit, however many iterations it takes."""
    analysis = analyze(text)
    plan = planned(x86, analysis)
    assert x86.after_step(plan, at(SLOT)) == Outcome(registers={}, finished=False)
    assert x86.after_step(plan, at(SLOT + analysis.insn.length)).finished


@pytest.mark.parametrize("text", ["eb fe", "74 fe", "e2 fe"])
def test_jump_to_itself_in_place_is_done(x86: X86_64, analyze: Analyze, text: str) -> None:
    """Invariant: in place, a thread that stands where it stood has arrived again, unless it repeats a string."""
    analysis = analyze(text)
    here = analysis.insn.address
    plan = x86.before_step(analysis, here, at(here))
    assert plan.in_place
    assert x86.after_step(plan, at(here)) == Outcome(registers={})


def test_rep_in_place_goes_on(x86: X86_64, analyze: Analyze) -> None:
    """Invariant: in place too one arrival is one hit, however many iterations it takes."""
    analysis = analyze("f3 a4")
    here = analysis.insn.address
    plan = x86.before_step(analysis, here, at(here))
    assert not x86.after_step(plan, at(here)).finished
    assert x86.after_step(plan, at(analysis.insn.end)).finished


@pytest.mark.parametrize("text", ["e8 00 01 00 00", "ff d0"])
def test_call_in_place_has_nothing_to_put_right(x86: X86_64, analyze: Analyze, text: str) -> None:
    """Invariant: a call stepped in place pushes the program's own address by itself."""
    analysis = analyze(text)
    plan = x86.before_step(analysis, analysis.insn.address, at(analysis.insn.address))
    assert x86.after_step(plan, at(0x401234)) == Outcome(registers={})


def test_call_that_did_not_run_writes_nothing(x86: X86_64, analyze: Analyze) -> None:
    """Invariant: no stack is written for a call that has not pushed."""
    assert x86.after_step(planned(x86, analyze("ff d0")), at(SLOT)).writes == ()


@pytest.mark.parametrize("text", ["f7 f9", "48 8b 05 10 00 00 00", "9c", "f3 a4"])
def test_fault_is_seen_at_the_original(x86: X86_64, analyze: Analyze, origin: VirtAddr, text: str) -> None:
    """Invariant: a copy that faulted (idiv, a bad pointer) leaves the thread at the program's own instruction."""
    assert x86.cancel_step(planned(x86, analyze(text)), at(SLOT)) == Outcome(registers={"rip": origin})


def test_cancelling_what_ran_finishes_it(x86: X86_64, analyze: Analyze, origin: VirtAddr) -> None:
    """Invariant: no instruction runs twice."""
    plan = planned(x86, analyze("9c"))
    assert x86.cancel_step(plan, at(SLOT + 1)) == x86.after_step(plan, at(SLOT + 1))
    assert x86.cancel_step(plan, at(SLOT + 1)).registers == {"rip": origin + 1}


def test_stepped_system_call_leaves_nothing_of_the_slot(x86: X86_64, analyze: Analyze, origin: VirtAddr) -> None:
    """Invariant: rcx holds the program's next address, and r11 the flags without the trap flag that the step set."""
    plan = planned(x86, analyze("0f 05"))
    after = {**at(SLOT + 2), "rcx": SLOT + 2, "r11": USUAL_FLAGS | TRAP_FLAG}
    assert x86.after_step(plan, after).registers == {"rip": origin + 2, "rcx": origin + 2, "r11": USUAL_FLAGS}
    assert x86.hide_step({**after, "rip": SLOT + 2}).registers == {"r11": USUAL_FLAGS}
    assert x86.hide_step({**after, "rcx": 5}).registers == {}
    elsewhere = {**after, "rip": 0x401234}  # rt_sigreturn
    assert x86.after_step(plan, elsewhere).registers == {}


def test_floating_point_unit_never_names_the_slot(x86: X86_64, analyze: Analyze, origin: VirtAddr) -> None:
    """Invariant: after a step of the copy the last floating-point instruction is the program's."""
    outcome = x86.after_step(planned(x86, analyze("d9 e8")), at(SLOT + 2))
    assert outcome == Outcome(registers={"rip": origin + 2}, x87_pointer=(SLOT, origin))
    in_place = x86.before_step(analyze("d9 e8"), origin, at(origin))
    assert x86.after_step(in_place, at(origin + 2)).x87_pointer is None


def test_program_that_steps_itself_is_noted(x86: X86_64, analyze: Analyze) -> None:
    """Invariant: whoever finishes the step knows that the program waits for its own trap."""
    assert planned(x86, analyze("48 89 e5"), USUAL_FLAGS | TRAP_FLAG).steps_itself
    assert not planned(x86, analyze("48 89 e5")).steps_itself
    assert x86.own_trap_flag == ("eflags", TRAP_FLAG)


@pytest.mark.parametrize(
    ("rax", "orig_rax", "number"),
    [
        (2**64 - 512, 0, 0),
        (2**64 - 514, 7, 7),
        (2**64 - 516, 35, 219),
        (2**64 - 4, 0, None),
        (2**64 - 512, 2**64 - 1, None),
    ],
)
def test_system_call_that_begins_again(x86: X86_64, rax: int, orig_rax: int, number: int | None) -> None:
    """Invariant: only what the kernel may restart, and in a system call, is said to restart."""
    assert x86.restarted({"rax": rax, "orig_rax": orig_rax}) == (None if number is None else {"rax": number})


@pytest.mark.parametrize("text", ["ff 10", "e8 00 00 00 00"])
def test_call_that_faults_at_its_target_has_pushed_already(
    x86: X86_64, analyze: Analyze, origin: VirtAddr, text: str
) -> None:
    """Invariant: what the processor wrote below the stack pointer is the program's return address, not the slot's."""
    analysis = analyze(text)
    wrong, right = (address.to_bytes(8, "little") for address in (SLOT + analysis.insn.length, analysis.insn.end))
    write = MemoryWrite(VirtAddr(SP - 8), right, instead_of=wrong)
    assert x86.cancel_step(planned(x86, analysis), at(SLOT)) == Outcome(registers={"rip": origin}, writes=(write,))


def test_popf_that_faults_leaves_no_trap_flag(x86: X86_64, analyze: Analyze, origin: VirtAddr) -> None:
    """Invariant: the trap flag of a step is never taken for one that popf has set, where popf has not run."""
    shown = at(SLOT, USUAL_FLAGS | TRAP_FLAG)
    assert x86.cancel_step(planned(x86, analyze("9d")), shown).registers == {"rip": origin, "eflags": USUAL_FLAGS}
    own = planned(x86, analyze("9d"), USUAL_FLAGS | TRAP_FLAG)
    assert x86.cancel_step(own, shown).registers == {"rip": origin}


def test_a_program_that_steps_itself_sees_each_iteration(x86: X86_64, analyze: Analyze, origin: VirtAddr) -> None:
    """Invariant: behind each iteration of rep its own trap comes, with the address of the rep."""
    own = planned(x86, analyze("f3 aa"), USUAL_FLAGS | TRAP_FLAG)
    assert x86.after_step(own, at(SLOT)) == Outcome(registers={"rip": origin})


@pytest.mark.parametrize("text", ["c4 e2 69 90 04 0f", "62 f2 7d 49 a0 04 0f"])
def test_what_stops_half_way_has_not_finished(x86: X86_64, analyze: Analyze, text: str) -> None:
    """Invariant: a gather or scatter that still stands where it stood goes on, in place too."""
    analysis = analyze(text)
    here = analysis.insn.address
    plan = x86.before_step(analysis, here, at(here))
    assert not x86.after_step(plan, at(here)).finished
    assert x86.after_step(plan, at(analysis.insn.end)).finished


def test_a_tile_load_stops_half_way_too() -> None:
    """Invariant: of AMX, which capstone does not know, a load goes on as a gather does."""
    x86 = X86_64()
    analysis = x86.analyze(bytes.fromhex("c4 e2 7b 4b 44 9a 00"), VirtAddr(0x401000))
    plan = x86.before_step(analysis, VirtAddr(0x401000), at(0x401000))
    assert not x86.after_step(plan, at(0x401000)).finished
