"""Where instructions start: what a function's bytes prove, and what they do not. Offsets in hexadecimal code."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ubpx.core.proofs import MOST_KEPT, Function, Proof, Proofs, _Search, prove
from ubpx.core.ubp import architecture
from ubpx.core.values import VirtAddr

BASE = 0x40_0000
X86 = architecture("x86_64")
INDIRECT = "ffe0"  # jmp rax: behind it nothing is reached by a direct branch


def proof_of(code: str | bytes, *, entries: tuple[int, ...] = (), data: tuple[tuple[int, int], ...] = ()) -> Proof:
    raw = code if isinstance(code, bytes) else bytes.fromhex(code)
    function = Function(
        code=raw,
        start=VirtAddr(BASE),
        entries=tuple(VirtAddr(BASE + entry) for entry in entries),
        data=tuple((VirtAddr(BASE + first), VirtAddr(BASE + last)) for first, last in data),
    )
    return prove(X86, function)


def accepted(proof: Proof) -> list[int]:
    size = len(proof.function.code)
    return [offset for offset in range(size) if proof.objection(VirtAddr(BASE + offset)) is None]


def reason(proof: Proof, offset: int) -> str:
    objection = proof.objection(VirtAddr(BASE + offset))
    assert objection is not None
    return objection.reason


def test_plain_code_is_proved_start_by_start() -> None:
    proof = proof_of("55 4889e5 31c0 5d c3")
    assert accepted(proof) == [0, 1, 4, 6, 7]
    assert "inside the instruction at 0x400001 (48 89 e5)" in reason(proof, 2)


def test_cases_of_a_switch_are_proved_by_decoding_on() -> None:
    """Invariant: what an indirect jump may lead to is believed where all of it is sound, padding included."""
    assert accepted(proof_of(f"{INDIRECT} 90 c3 6690 31c0 c3 0f1f4000 eb f7")) == [0, 2, 3, 4, 6, 8, 9, 13]


def test_behind_undecodable_bytes_nothing_is_proved_but_what_a_branch_leads_to() -> None:
    proof = proof_of("7403 c3 0606 90 c3")
    assert accepted(proof) == [0, 2, 5, 6]
    assert "(06 06 90 c3) are no instruction" in reason(proof, 3)
    assert accepted(proof_of("c3 06 06 90 c3")) == [0]
    assert "reached by no direct branch" in reason(proof_of("c3 06 06 90 c3"), 3)


def test_behind_undecodable_bytes_a_known_entry_is_proved() -> None:
    assert accepted(proof_of("c3 06 06 90 c3", entries=(3,))) == [0, 3, 4]


def test_decoding_on_that_ends_in_nonsense_proves_nothing_on_the_way() -> None:
    proof = proof_of(f"{INDIRECT} 90 90 06")
    assert accepted(proof) == [0]
    assert "decoding on from 0x400002 comes to 0x400004" in reason(proof, 3)


@pytest.mark.parametrize("before", ["", INDIRECT], ids=["reached", "decoded on"])
def test_where_a_branch_skips_a_lock_prefix_the_inner_start_is_refused(before: str) -> None:
    """Invariant: a trap at the inner start would be the outer one's opcode; at the outer start it harms nobody."""
    at = len(bytes.fromhex(before))
    proof = proof_of(f"{before} 7401 f00fb10e c3")
    assert accepted(proof) == [*([0] if before else []), at, at + 2, at + 6]
    assert f"the one at {BASE + at + 2:#x} (f0 0f b1 0e), which a trap here would corrupt" in reason(proof, at + 3)


def test_a_branch_into_an_immediate_is_an_overlap_where_both_are_reached() -> None:
    proof = proof_of("7401 b890909090 c3")
    assert accepted(proof) == [0, 2, 7]
    assert all("overlap" in reason(proof, offset) for offset in (3, 4, 5, 6))


def test_a_branch_into_an_immediate_speaks_against_what_is_only_decoded_on() -> None:
    """Invariant: what may be data is not believed if it contradicts itself."""
    assert accepted(proof_of(f"{INDIRECT} 7401 b890909090 c3")) == [0]


def test_decoding_on_that_runs_into_a_proved_instruction_askew_is_not_believed() -> None:
    proof = proof_of("7403 c3 9048 8b05f6ffff7f c3")  # from 3 on: nop; rex.w mov, whose opcode is a branch's target
    assert accepted(proof) == [0, 2, 5, 11]
    assert "overlap a proved instruction" in reason(proof, 3)


def test_what_an_instruction_reads_is_data_and_what_follows_unproved() -> None:
    proof = proof_of("8b0501000000 c3 90909090 90 c3")
    assert accepted(proof) == [0, 6]
    assert "data begins" in reason(proof, 7)
    again = proof_of("8b0501000000 c3 90909090 90 c3", entries=(11,))
    assert accepted(again) == [0, 6, 11, 12]


def test_code_that_is_read_as_data_is_refused_alone() -> None:
    """Invariant: a trap would be read; the instruction is reached all the same, and so are those behind it."""
    proof = proof_of("803d0000000090 75f7 c3")  # cmp byte [rip+0], 0x90: it reads the jne behind itself
    assert accepted(proof) == [0, 9]
    assert "the instruction at 0x400000 reads or writes what stands there" in reason(proof, 7)


def test_what_has_its_address_taken_may_be_a_table() -> None:
    proof = proof_of("488d0502000000 ffe0 90 90 c3")
    assert accepted(proof) == [0, 7]
    assert "data begins" in reason(proof, 9)
    reached = proof_of("488d0504000000 7402 ffe0 90 90 c3")  # the same, but a branch leads there
    assert accepted(reached) == [0, 7, 9, 11, 12, 13]


def test_data_that_turns_up_late_unmakes_what_was_believed() -> None:
    """Invariant: the order in which code and the data that it uses are found does not matter."""
    proof = proof_of("7414 ffe0 90 90 c3" + "90" * 5 + "8a05f3ffffff c3" + "cc" * 3 + "c3")
    assert 4 not in accepted(proof)
    assert 5 not in accepted(proof)
    assert [offset for offset in (0, 2, 22) if offset not in accepted(proof)] == []


def test_what_a_symbol_calls_data_is_data() -> None:
    proof = proof_of("eb04 90909090 90 c3", data=((2, 6),))
    assert accepted(proof) == [0, 6, 7]
    assert "symbol says that the bytes from 0x400002 to 0x400006 are data" in reason(proof, 3)


def test_a_call_over_bytes_of_its_own_function_does_not_prove_them() -> None:
    """Invariant: call; .asciz; pop: what follows the call may be data that the callee pops."""
    assert accepted(proof_of("e804000000 61626300 58 c3")) == [0, 9, 10]
    assert accepted(proof_of("e801000000 c3 58 c3")) == [0, 5, 6, 7]


def test_a_branch_of_believed_code_reaches_back_into_what_was_given_up() -> None:
    proof = proof_of(f"7407 {INDIRECT} 06 31c0 c3 c3 {INDIRECT} eb f8")
    assert accepted(proof) == [0, 2, 5, 7, 8, 9, 11]


def test_a_branch_whose_length_is_disputed_proves_nothing_behind_it() -> None:
    assert accepted(proof_of("90 66e900000000 90 c3")) == [0]


INSTRUCTIONS = ["90", "55", "4889e5", "31c0", "b878563412", "0f1f4000", "c5f877", "f30f1efa", "660f6f07", "ffd0"]


@given(st.lists(st.sampled_from(INSTRUCTIONS), max_size=40), st.integers(0, 40))
def test_straight_code_is_proved_exactly(codes: list[str], where: int) -> None:
    """Invariant: of code without branches exactly the instructions' starts are accepted, an indirect jump or not."""
    codes = [*codes[:where], INDIRECT, *codes[where:], "c3"]
    starts, at = [], 0
    for code in codes:
        starts.append(at)
        at += len(bytes.fromhex(code))
    assert accepted(proof_of("".join(codes))) == starts


@given(st.binary(min_size=1, max_size=200), st.lists(st.integers(0, 199), max_size=3))
def test_whatever_the_bytes_no_trap_can_corrupt_an_accepted_neighbour(code: bytes, entries: list[int]) -> None:
    """Invariant: no accepted start is inside another accepted instruction, and each decodes."""
    proof = proof_of(code, entries=tuple(entry for entry in entries if entry < len(code)))
    ends: list[int] = []
    for offset in accepted(proof):
        flow = next(X86.flow(code[offset:], VirtAddr(BASE + offset)))
        assert all(offset >= end for end in ends)
        ends.append(flow.end - BASE)


def test_a_hostile_function_is_given_up_in_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Invariant: the work grows with the size, not with its square; what is given up is unproved."""
    looks = 0
    sound = _Search._wrong

    def counted(*arguments: Any) -> str | None:
        nonlocal looks
        looks += 1
        return sound(*arguments)

    monkeypatch.setattr(_Search, "_wrong", counted)
    islands = 300
    code = b""
    for left in range(islands, 0, -1):  # each jumps over a jump to a long way into nonsense
        tail = 7 * (left - 1) + len(bytes.fromhex(INDIRECT))
        code += b"\xeb\x05" + b"\xe9" + tail.to_bytes(4, "little")
    code += bytes.fromhex(INDIRECT) + b"\x90" * 3000 + b"\x06"
    proof = proof_of(code)
    assert looks < 10 * len(code)
    assert accepted(proof) == [*range(0, 7 * islands, 7), 7 * islands]


def test_the_last_proofs_are_kept_and_no_more() -> None:
    kept, proof = Proofs(), proof_of("c3")
    for start in range(MOST_KEPT + 1):
        kept.keep(VirtAddr(start), proof)
    assert kept.get(VirtAddr(0)) is None
    assert kept.get(VirtAddr(1)) is proof
