"""A probe is accepted where an instruction is proved to start, and where nobody can prove it, at a client's word."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import ubpx
from ubpx.symbols.code import ProvedBy, function_ranges

if TYPE_CHECKING:
    from tests.real.conftest import StartProgram

FIXED = ("-no-pie",)  # so that addresses are those of the file, and the same in a stripped copy
STRIPPED = (*FIXED, "-s")


def symbols_of(program: Path) -> dict[str, tuple[int, int]]:
    """Start and end of each function, as nm says."""
    listed = subprocess.run(["nm", "-S", "--defined-only", program], check=True, capture_output=True, text=True).stdout
    rows = [line.split() for line in listed.splitlines()]
    return {row[-1]: (int(row[0], 16), int(row[0], 16) + (int(row[1], 16) if len(row) == 4 else 0)) for row in rows}


def disassembled(program: Path, start: int, end: int) -> list[int]:
    """Where objdump sees instructions start."""
    command = ["objdump", "-dw", f"--start-address={start:#x}", f"--stop-address={end:#x}", str(program)]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [int(found, 16) for found in re.findall(r"^ +([0-9a-f]+):\t", listed, re.MULTILINE)]


def test_of_a_function_exactly_the_instructions_are_accepted(target_program: StartProgram) -> None:
    """Invariant: byte for byte a probe is accepted where objdump, which has the symbols, sees an instruction start."""
    whole = target_program.build("boundaries", *FIXED)
    symbols = symbols_of(whole)
    program = target_program("boundaries", flags=FIXED)
    with ubpx.attach(program.pid) as target, target.client("one") as client:
        for name in ("by_case", "main"):
            start, end = symbols[name]
            group = client.probe_many(range(start, end), lambda _: None, skip_refused=True)
            assert [lease.address for lease in group] == disassembled(whole, start, end)
            assert {type(refusal.error) for refusal in group.refused} == {ubpx.NotAnInstruction}
            if name == "by_case":
                program.tell("1").expect("called")
                assert group[0].hits == 8
            group.release()


def test_where_a_prefix_may_be_skipped_the_outer_start_alone_is_accepted(target_program: StartProgram) -> None:
    """Invariant: a trap behind the lock prefix would corrupt the locked instruction; one at it harms nobody."""
    outer, _ = symbols_of(target_program.build("boundaries", *FIXED))["maybe_outer"]
    program = target_program("boundaries", flags=FIXED)
    with ubpx.attach(program.pid) as target, target.client("one") as client:
        with pytest.raises(ubpx.NotAnInstruction, match=rf"overlap.*the one at {outer:#x} \(f0 48 ff 05 .*corrupt"):
            client.probe(outer + 1, lambda _: None)
        lease = client.probe(outer, lambda _: None)
        program.tell("1").expect("called")
        assert lease.hits == 0
        program.tell("s").expect("called")
        assert lease.hits == 2


def test_data_amid_code_is_refused(target_program: StartProgram) -> None:
    """Invariant: what the function reads is data, and code behind it is proved by the branch that leads there."""
    start, end = symbols_of(target_program.build("boundaries", *FIXED))["reads_amid"]
    program = target_program("boundaries", flags=FIXED)
    with ubpx.attach(program.pid) as target, target.client("one") as client:
        group = client.probe_many(range(start, end), lambda _: None, skip_refused=True)
        assert [lease.address for lease in group] == [start, start + 7, start + 17, start + 20]
        assert sum("data begins" in str(refusal.error) for refusal in group.refused) == 8
        program.tell("1").expect("called")
        assert [lease.hits for lease in group] == [2, 2, 2, 2]


def test_what_only_an_address_leads_to_needs_somebodys_word(target_program: StartProgram) -> None:
    """Invariant: behind undecodable bytes nothing is proved that no direct branch leads to; a word for it is taken."""
    _, end = symbols_of(target_program.build("boundaries", *FIXED))["computed"]
    program = target_program("boundaries", flags=FIXED)
    with ubpx.attach(program.pid) as target, target.client("one") as client:
        last = end - 5  # add; ret
        with pytest.raises(ubpx.NotAnInstruction, match=r"\(06 0e 48 83 .*no instruction .*assume_boundary=True"):
            client.probe(last, lambda _: None)
        lease = client.probe(last, lambda _: None, assume_boundary=True)
        program.tell("1").expect("called")
        assert lease.hits == 1


def test_a_table_between_functions_is_in_a_gap(target_program: StartProgram) -> None:
    """Invariant: the refusal says from where to where the gap is, and between what."""
    symbols = symbols_of(target_program.build("boundaries", *FIXED))
    table, before = symbols["between"][0], symbols["computed"][1]
    program = target_program("boundaries", flags=STRIPPED)
    with ubpx.attach(program.pid) as target, target.client("one") as client:
        said = rf"in the gap from {before:#x} \(the end of a function without a name\) to 0x[0-9a-f]+ \("
        with pytest.raises(ubpx.NotAnInstruction, match=said):
            client.probe(table + 8, lambda _: None)


def test_a_function_without_a_name_takes_somebodys_word_and_is_told(target_program: StartProgram) -> None:
    """Invariant: where unwind data alone tell of a function, the refusal says which, and what decoding there finds."""
    program = target_program("echo")
    lines = [line.split() for line in Path(f"/proc/{program.pid}/maps").read_text().splitlines() if "libc.so.6" in line]
    base = int(lines[0][0].partition("-")[0], 16)
    nameless = [each for each in function_ranges(lines[0][-1]) if each.proved_by is ProvedBy.UNWIND]
    assert len(nameless) > 500
    with ubpx.attach(program.pid) as target, target.client("one") as client:
        code = {each.start: target.memory.read(base + each.start, 16) for each in nameless[::5]}
        firsts = {b"\xf3\x0f\x1e\xfa", b"\x41\x54", b"\x41\x55", b"\x41\x56", b"\x41\x57"}  # endbr64; push r12 to r15
        seconds = [base + start + len(each) for start, raw in code.items() for each in firsts if raw.startswith(each)]
        assert len(seconds) > 20
        for second in seconds[:5]:
            with pytest.raises(ubpx.NotAnInstruction, match=r"without a name from 0x.*arrives there.*assume_boundary"):
                client.probe(second, lambda _: None)
        with pytest.raises(ubpx.NotAnInstruction, match=r"without a name from 0x.*inside"):
            client.probe(seconds[0] - 1, lambda _: None)
        assert len(client.probe_many(seconds, lambda _: None, assume_boundary=True)) == len(seconds)
        assert program.answer(1) == 2
