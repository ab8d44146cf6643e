"""The share of real functions whose first instruction can be probed: of libc, libpython and libstdc++."""

import struct
import sys
import sysconfig
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import attrs
import pytest
from elftools.elf.elffile import ELFFile

from ubpx._errors import InsnRefused
from ubpx.core.ubp.decode import CapstoneDecoder, Decoder, IcedDecoder
from ubpx.core.ubp.plans import InsnAnalysis
from ubpx.core.ubp.x86_64 import X86_64
from ubpx.core.values import VirtAddr

LIBRARY_DIRECTORIES = (
    Path("/lib/x86_64-linux-gnu"),
    Path("/usr/lib/x86_64-linux-gnu"),
    Path("/lib64"),
    Path("/usr/lib64"),
)
SYMBOL = struct.Struct("<IBBHQQ")  # Elf64_Sym: name, info, other, section, value, size
FUNCTION, EXECUTABLE, UNDEFINED = 2, 1, 0

Entries = Mapping[VirtAddr, bytes]


def library(name: str) -> Path | None:
    if name == "libpython":
        shared = Path(sysconfig.get_config_var("LIBDIR") or "") / str(sysconfig.get_config_var("INSTSONAME"))
        return shared if shared.is_file() else Path(sys.executable).resolve()
    found = (directory / name for directory in LIBRARY_DIRECTORIES if (directory / name).is_file())
    return next(found, None)


def function_addresses(elf: ELFFile) -> Iterator[int]:
    for section in elf.iter_sections():
        if section["sh_type"] in {"SHT_SYMTAB", "SHT_DYNSYM"}:
            for _, info, _, index, value, _ in SYMBOL.iter_unpack(section.data()):
                if info & 0xF == FUNCTION and index != UNDEFINED:
                    yield value


def entries_of(path: Path) -> Entries:
    """The first bytes of every function, up to the longest instruction; fewer at the end of its segment."""
    with path.open("rb") as file:
        elf = ELFFile(file)
        if elf["e_machine"] != "EM_X86_64":
            pytest.skip(f"{path} is for another processor: {elf['e_machine']}")
        segments = [
            (segment["p_vaddr"], segment.data())
            for segment in elf.iter_segments("PT_LOAD")
            if segment["p_flags"] & EXECUTABLE
        ]
        return {
            VirtAddr(address): code[address - start : address - start + 15]
            for address in sorted(set(function_addresses(elf)))
            for start, code in segments
            if start <= address < start + len(code)
        }


@pytest.fixture(scope="module", params=["libc.so.6", "libpython", "libstdc++.so.6"])
def entries(request: pytest.FixtureRequest) -> Entries:
    path = library(request.param)
    if path is None:
        pytest.skip(f"{request.param} is not in {', '.join(map(str, LIBRARY_DIRECTORIES))}")
    return entries_of(path)


def outcomes(decoder: Decoder, entries: Entries) -> Iterator[tuple[VirtAddr, InsnAnalysis | InsnRefused]]:
    x86 = X86_64(decoder)
    for address, code in entries.items():
        try:
            yield address, x86.analyze(code, address)
        except InsnRefused as refused:
            yield address, refused


def test_at_least_98_of_100_functions_can_be_probed(
    decoder: Decoder, entries: Entries, request: pytest.FixtureRequest, record_property: Callable[[str, object], None]
) -> None:
    """Invariant: nearly every function's entry is accepted, and every refusal says why."""
    answers = [answer for _, answer in outcomes(decoder, entries)]
    refused = [answer for answer in answers if isinstance(answer, InsnRefused)]
    share = 1 - len(refused) / len(answers)
    record_property("accepted_share", f"{share:.4%}")
    print(f"\n{request.node.callspec.id}: {len(answers)} function entries, {share:.3%} accepted")  # noqa: T201
    for reason, count in Counter(answer.reason for answer in refused).most_common():
        print(f"{count:7} refused: {reason}")  # noqa: T201
    assert all(answer.reason for answer in refused)
    assert len(answers) > 1000
    assert share >= 0.98


def test_both_decoders_lead_to_equal_analyses(entries: Entries) -> None:
    """Invariant: which disassembler is installed changes the text for people and nothing else."""

    def comparable(answer: InsnAnalysis | InsnRefused) -> object:
        if isinstance(answer, InsnRefused):
            return answer.reason
        return attrs.evolve(answer, insn=attrs.evolve(answer.insn, text=""))

    by_iced, by_capstone = (outcomes(make(), entries) for make in (IcedDecoder, CapstoneDecoder))
    for (address, one), (_, other) in zip(by_iced, by_capstone, strict=True):
        assert comparable(one) == comparable(other), f"{address:#x}: {one} / {other}"
