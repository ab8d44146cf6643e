"""The tools that read every instruction of a file: ``coverage`` and ``decoders``, and the processor that they ask."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ubpx.core.values import VirtAddr
from ubpx.testing import coverage, decoders
from ubpx.testing.decoders import Answer, Comparer, Leads, is_wrong
from ubpx.testing.disagreements import KNOWN, known
from ubpx.testing.opinions import FlowKind, both_disassemblers
from ubpx.testing.oracle.length import Happened, LengthOracle, Measured, can_ask
from ubpx.testing.plants import PLANTS, planted
from ubpx.testing.program_text import BITS, Piece, ProgramText, read_text, take_census

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.real.conftest import StartProgram

needs_processor = pytest.mark.skipif(not can_ask(), reason="only x86_64 Linux can run 64-bit x86 code")


def libraries(*names: str) -> list[Path]:
    """Where this process, or the machine, has them."""
    directory = Path("/usr/lib/x86_64-linux-gnu")
    return [directory / name for name in names if (directory / name).exists()]


@pytest.fixture
def odd_code(target_program: StartProgram) -> str:
    """A file with instructions of every class."""
    return str(target_program.build("odd_code"))


@pytest.fixture(params=["x86_64", "i386"])
def odd_code_of_each(request: pytest.FixtureRequest, target_program: StartProgram) -> str:
    """The same for each architecture."""
    if request.param == "x86_64":
        return str(target_program.build("odd_code"))
    try:
        return str(target_program.build("odd_code", "-m32"))
    except subprocess.CalledProcessError:
        pytest.skip("gcc builds no 32-bit programs here; apt-get install gcc-multilib")


def said(capsys: pytest.CaptureFixture[str], tool: Callable[[list[str]], int], *arguments: str) -> tuple[int, Any]:
    """The tool's exit status and its JSON."""
    status = tool([*arguments, "--json"])
    return status, json.loads(capsys.readouterr().out)


def test_coverage_counts_every_instruction_once(odd_code_of_each: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Invariant: what is counted by strategy and what is refused are all instructions, and every copy is right."""
    status, found = said(capsys, coverage.main, odd_code_of_each)
    assert (status, found["differences"], found["undecodable_bytes"]) == (0, 0, 0)
    assert sum(found["by_strategy"].values()) + sum(found["refused"].values()) == found["instructions"]
    assert {"EMULATE", "BOOST", "STEP"} <= found["by_strategy"].keys()
    assert all(found["by_strategy"][strategy] for strategy in ("EMULATE", "BOOST"))
    assert any("breakpoint" in reason for reason in found["refused"])
    assert found["analysis"]["multiple"] > 1


@pytest.mark.parametrize("fault", [name for name, plant in PLANTS.items() if "coverage" in plant.tools])
def test_coverage_finds_each_planted_fault(
    fault: str, odd_code_of_each: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Invariant: a tool that proves something fails where it must."""
    status, found = said(capsys, coverage.main, odd_code_of_each, "--plant", fault)
    assert status == 1
    assert found["differences"] >= len(found["samples"]) > 0
    assert said(capsys, coverage.main, odd_code_of_each)[0] == 0, "the fault stayed behind"


@pytest.mark.parametrize("fault", [name for name, plant in PLANTS.items() if "decoders" in plant.tools])
def test_decoders_finds_each_planted_fault(
    fault: str, odd_code_of_each: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Invariant: an analysis that sides with nobody is found."""
    status, found = said(capsys, decoders.main, odd_code_of_each, "--plant", fault)
    assert status == 1
    assert found["wrong"] > 0
    assert found["samples"][0]["wrong"]


def test_libc_is_covered(capsys: pytest.CaptureFixture[str]) -> None:
    """Invariant: hardly an instruction of a C library is refused, and hardly one needs a single step."""
    (libc,) = libraries("libc.so.6")
    status, found = said(capsys, coverage.main, str(libc))
    assert (status, found["differences"], found["arch"]) == (0, 0, "x86_64"), found["samples"]
    assert found["instructions"] > 100_000
    assert found["refused_share"] <= 0.005
    assert found["no_step_share"] >= 0.9


@pytest.mark.torture
@pytest.mark.parametrize("tool", [coverage.main, decoders.main], ids=["coverage", "decoders"])
def test_large_files_are_as_documented(tool: Callable[[list[str]], int], capsys: pytest.CaptureFixture[str]) -> None:
    """Invariant: the figures of docs/reference/instructions.md hold for whatever versions are installed."""
    python = Path(sys.base_prefix, "lib", "libpython3.11.so.1.0")
    files = libraries("libc.so.6", "libcrypto.so.3", "libstdc++.so.6", "libpython3.11.so.1.0")
    others = (python, Path("/usr/bin/gdb"), Path("/usr/lib32/libc.so.6"), Path("/usr/lib32/libstdc++.so.6"))
    files += [path for path in others if path.exists()]
    status = tool([*map(str, files), "--json"])
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert status == 0, [each["samples"] for each in found]
    assert len(found) == len(files) > 0
    if tool is coverage.main:
        assert all(each["refused_share"] <= 0.005 and each["no_step_share"] >= 0.9 for each in found), found


@needs_processor
def test_decoders_lists_what_is_odd_with_the_verdict(odd_code: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Invariant: each disagreement has both answers, the processor's and the reason; ubpx is on no wrong side."""
    status, found = said(capsys, decoders.main, odd_code)
    assert (status, found["wrong"]) == (0, 0)
    lengths = {each["bytes"]: each["hardware"].split()[0] for each in found["samples"]}
    assert lengths == {"dfc8": "2", "0f1cc0": "3", "0fb9c0": "3", "660f8100000000": "7"}
    assert all(each["known"] and each["iced"] != each["capstone"] for each in found["samples"])
    assert sum(found["flows"].values()) == found["instructions"]
    assert found["flows"].keys() == set(FlowKind)


def test_our_classes_are_those_of_the_decoders(odd_code_of_each: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Invariant: of every class, in each mode, ubpx and the disassemblers say the same of where it leads."""
    status, found = said(capsys, decoders.main, odd_code_of_each)
    assert (status, found["wrong"]) == (0, 0), found["samples"][:1]


def test_decoders_of_a_machine_that_is_not_here(
    odd_code: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Invariant: where the processor cannot be asked, the disagreements are listed all the same."""
    monkeypatch.setattr(decoders, "can_ask", lambda: False)
    status, found = said(capsys, decoders.main, odd_code)
    assert status == 0
    assert {each["hardware"] for each in found["samples"]} == {"not tried"}


@pytest.mark.parametrize("tool", [coverage.main, decoders.main], ids=["coverage", "decoders"])
def test_what_cannot_be_read_is_one_line(
    tool: Callable[[list[str]], int], tmp_path: Path, odd_code: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Invariant: usage errors have exit status 2 and say what to do."""
    foreign = tmp_path / "foreign"
    image = bytearray(Path(odd_code).read_bytes())
    image[18:20] = (22).to_bytes(2, "little")  # S/390
    foreign.write_bytes(image)
    bare = tmp_path / "bare"  # without section headers nothing is vouched for
    image = bytearray(Path(odd_code).read_bytes())
    image[40:48] = bytes(8)
    image[60:64] = bytes(4)
    bare.write_bytes(image)
    for arguments, words in {
        (str(tmp_path / "none"),): "cannot open",
        (__file__,): "name an ELF file",
        (str(bare),): "name a program or a shared library",
        (str(foreign),): "ubpx cannot analyse code for other with 64 bits; it can for",
        (odd_code, "--plant", "nosuch"): "there is no fault 'nosuch' to plant; there is ",
        (odd_code, "--plant", "stack-segment"): "fault stack-segment is found by differential alone",
    }.items():
        assert tool(list(arguments)) == 2
        problem = capsys.readouterr().err
        assert problem.startswith("ubpx: ")
        assert problem.count("\n") == 1
        assert words in problem


@pytest.mark.parametrize("tool", [coverage.main, decoders.main], ids=["coverage", "decoders"])
def test_help_offers_the_faults_that_the_tool_finds(
    tool: Callable[[list[str]], int],
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Invariant: all of them, and no other."""
    monkeypatch.setenv("COLUMNS", "1000")  # words are not cut at their hyphens
    with pytest.raises(SystemExit):
        tool(["--help"])
    offered = capsys.readouterr().out.partition("it must be found: ")[2].splitlines()[0].split(", ")
    name = request.node.callspec.id
    assert offered == [fault for fault, plant in PLANTS.items() if name in plant.tools]


def test_the_tools_run_as_modules(odd_code: str) -> None:
    """Invariant: they speak for people, too, and end with their verdict as the exit status."""
    for tool in ("coverage", "decoders"):
        command = [sys.executable, "-W", "error", "-m", f"ubpx.testing.{tool}", odd_code]
        outcome = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert (outcome.returncode, outcome.stderr) == (0, "")
        assert "instructions" in outcome.stdout


# ---- the processor


@pytest.fixture
def processor() -> Iterator[LengthOracle]:
    """Asked, and ended."""
    with LengthOracle() as found:
        yield found


# Code, the length of what it begins with, and what happens.
ASKED = {
    "90": (1, Happened.EXECUTED, True),
    "c3": (1, Happened.EXECUTED, False),
    "4889e5": (3, Happened.EXECUTED, True),
    "e810000000": (5, Happened.EXECUTED, False),
    "ebfe": (2, Happened.EXECUTED, False),
    "488b0500000000": (7, Happened.EXECUTED, True),  # the operand lies in the page behind the code
    "660f1f840000000000": (9, Happened.EXECUTED, True),
    "48b81122334455667788": (10, Happened.EXECUTED, True),
    "0f05": (2, Happened.EXECUTED, True),  # a system call of no number
    "cd80": (2, Happened.EXECUTED, True),
    "cc": (1, Happened.EXECUTED, True),
    "f3a4": (2, Happened.EXECUTED, True),
    "0f0b": (2, Happened.UNDEFINED, None),
    "f4": (1, Happened.FAULTED, None),
    "0f34": (2, Happened.FAULTED, None),  # sysenter comes back with other segments
    "8b00": (2, Happened.FAULTED, None),
    "f30f1ef8": (4, Happened.EXECUTED, True),
}


@needs_processor
def test_processor_says_how_long_instructions_are(processor: LengthOracle) -> None:
    """Invariant: whatever an instruction does, faults or not, the next question is answered as if it were the first."""
    for _ in range(2):
        for code, (length, happened, behind) in ASKED.items():
            assert processor.ask(bytes.fromhex(code) + bytes(15)) == Measured(happened, length, behind), code


@needs_processor
def test_processor_says_when_bytes_are_cut_short(processor: LengthOracle) -> None:
    """Invariant: no length is made up."""
    assert processor.ask(b"\xe9\x00\x00") == Measured(Happened.UNKNOWN)
    assert processor.ask(b"") == Measured(Happened.UNKNOWN)
    assert processor.ask(b"\x66" * 20) == Measured(Happened.FAULTED, 15)  # longer than any instruction may be


@needs_processor
def test_processor_agrees_with_the_decoders_on_every_class(odd_code: str, processor: LengthOracle) -> None:
    """Invariant: three who never saw each other say the same length, where the disassemblers are of one mind."""
    iced, capstone = both_disassemblers(64)
    census = take_census(read_text(odd_code), iced)
    asked = 0
    for specimen in census.specimens:
        other = capstone.opinion(specimen.window, specimen.address)
        if other is not None and other.length == len(specimen.raw):
            assert processor.ask(specimen.window.ljust(15, b"\0")).length == len(specimen.raw), specimen.raw.hex()
            asked += 1
    assert asked > 40


# Where the disassemblers disagree, one for each entry of KNOWN in its order; the length, and whether it runs here.
MEASURED = {
    "0fb9c0": (3, Happened.UNDEFINED),
    "660f8100112233": (7, Happened.EXECUTED),
    "0f1cc0": (3, Happened.EXECUTED),
    "dfc8": (2, Happened.EXECUTED),
    "8e08": (2, Happened.UNDEFINED),
    "0f2008": (3, Happened.UNDEFINED),
    "660f01c0": (4, Happened.UNDEFINED),
    "660f38c800": (5, Happened.UNDEFINED),
    "676300": (3, Happened.FAULTED),
    "62f1fd08d100": (6, Happened.FAULTED),
    "f003c0": (3, Happened.UNDEFINED),
}


@needs_processor
def test_every_known_disagreement_is_one(processor: LengthOracle) -> None:
    """Invariant: the reasons of the table are what the processor says, and its entries are met in its order."""
    entries = [known(bytes.fromhex(code), (length,)) for code, (length, _) in MEASURED.items()]
    assert entries == list(KNOWN)
    for entry, (code, (length, happened)) in zip(KNOWN, MEASURED.items(), strict=True):
        if entry.processors_differ:
            continue  # AMD's processors say otherwise
        verdict = processor.ask(bytes.fromhex(code).ljust(15, b"\x11"))
        if happened is Happened.UNDEFINED or verdict.happened is not Happened.UNDEFINED:  # has this one AVX-512?
            assert (verdict.length, verdict.happened) == (length, happened), code


# The mode, an instruction on which all agree, and neighbours of which an entry of KNOWN tells.
BESIDE = [
    (64, "e800000000", "6690"),
    (64, "c3", "6690"),
    (64, "7405", "660f1f440000"),
    (64, "4889e5", "f0480fb10e"),
    (32, "40", "0f1cc0"),
    (32, "48", "8e08"),
]


@pytest.mark.parametrize(("bits", "code", "behind"), BESIDE)
def test_an_entry_is_about_one_instruction_not_its_neighbours(bits: int, code: str, behind: str) -> None:
    """Invariant: what stands behind an instruction excuses no wrong answer about it."""
    window, length = bytes.fromhex(code + behind), len(code) // 2
    assert known(window, (length, length)) is None
    assert known(window, (None, None)) is None
    name = next(each for each in BITS if BITS[each] == bits)
    text = ProgramText(path="", architecture=name, bits=bits, base=0, pieces=[Piece(VirtAddr(0x1000), window)], gaps=[])
    with planted("length"):
        found = Comparer(text, None).compare().disagreements
    first = next(each for each in found if each.address == 0x1000)
    assert (first.iced.length, first.ours.length) == (length, length + 1)
    assert (first.known, first.wrong) == (None, True)


@pytest.mark.parametrize("code", ["660f8100112233", "2e6670f0", "6648c20000", "f066 01c0", "66f001c0", "f2f04803c0"])
def test_an_entry_is_met_wherever_its_prefix_stands(code: str) -> None:
    """Invariant: the order of an instruction's prefixes means nothing."""
    raw = bytes.fromhex(code)
    assert known(raw, (len(raw),)) is not None


def test_who_is_wrong() -> None:
    """Invariant: a refusal is never wrong; an answer is that nobody gives, or that the processor refutes."""
    on, off = Leads(), Leads(falls_through=False)
    two, three = Answer(2, on), Answer(3, on)
    ran = Measured(Happened.EXECUTED, 3, falls_through=True)
    went = Measured(Happened.EXECUTED, 3, falls_through=False)
    undefined = Measured(Happened.UNDEFINED, 3)
    assert is_wrong(two, (two, three), ran)
    assert not is_wrong(three, (two, three), ran)
    assert not is_wrong(two, (two, three), undefined)
    assert not is_wrong(two, (two, three), None)
    assert is_wrong(Answer(4, on), (two, three), None)
    assert is_wrong(Answer(3, off), (three, three), None)
    assert is_wrong(three, (three, Answer(3, off)), went)
    assert is_wrong(Answer(3, off), (three, Answer(3, off)), ran)
    for leads in (Leads(0x10), Leads(calls=True), Leads(0x10, calls=True)):
        ours = Answer(3, leads)
        assert not is_wrong(ours, (ours, three), went)
        assert is_wrong(ours, (three, three), went)
    assert not is_wrong(Answer(2, on, refused=True), (two, three), ran)
    assert is_wrong(Answer(2, off, refused=True), (two, three), None)
    assert not is_wrong(Answer(2, None), (two, three), None)
    assert not is_wrong(Answer(None), (two, three), ran)


@pytest.mark.parametrize("code", ["9a001000002300", "ea001000002300", "9a000000000700"])
def test_a_far_target_is_no_address(code: str) -> None:
    """Invariant: both disassemblers say of a far branch that it has no target in this code."""
    said = [each.opinion(bytes.fromhex(code), 0x1000) for each in both_disassemblers(32)]
    assert [each and (each.length, each.target) for each in said] == [(7, None), (7, None)]
