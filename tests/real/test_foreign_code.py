"""``coverage`` on code for processors that this machine is not: Debian's C libraries for them, and files made here."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ubpx._errors import UsageError
from ubpx.core.values import VirtAddr
from ubpx.testing import coverage, decoders
from ubpx.testing.plants import planted
from ubpx.testing.program_text import Piece, ProgramText, read_text

if TYPE_CHECKING:
    from collections.abc import Callable

PACKAGES = {"aarch64": "libc6-arm64-cross", "riscv64": "libc6-riscv64-cross"}
CODE = {
    "aarch64": struct.pack("<5I", 0x9100_0400, 0x5400_0040, 0x9400_0001, 0xD503_201F, 0xD65F_03C0),
    "riscv64": bytes.fromhex("03358100 6304b500 ef004000 0100 8280"),
}
"""A move or a load, a conditional branch, a call, a nop, a return."""


def library(arch: str) -> str:
    path = Path(f"/usr/{arch}-linux-gnu/lib/libc.so.6")
    if not path.exists():
        pytest.skip(f"no C library for {arch} here; apt-get install {PACKAGES[arch]}")
    return str(path)


def text_of(arch: str, code: bytes) -> ProgramText:
    return ProgramText(
        path="", architecture=arch, bits=64, base=0, pieces=[Piece(VirtAddr(0x1_0000), code)], gaps=[]
    )  # fmt: skip


@pytest.mark.parametrize("arch", PACKAGES)
def test_of_the_c_library_hardly_anything_is_refused(arch: str) -> None:
    """Invariant: at most one instruction in a hundred, each with its reason; every copy is right, and leads back."""
    command = [sys.executable, "-m", "ubpx.testing.coverage", "--json", library(arch)]
    outcome = subprocess.run(command, capture_output=True, text=True, timeout=55, check=False)
    assert outcome.returncode == 0, outcome.stdout[:2000] + outcome.stderr
    found: dict[str, Any] = json.loads(outcome.stdout)
    assert found["arch"] == arch
    assert found["differences"] == 0, found["samples"]
    assert found["refused_share"] <= 0.01
    assert sum(found["by_strategy"].values()) + sum(found["refused"].values()) == found["instructions"]
    assert found["instructions"] > 200_000
    assert all(len(reason) > 20 for reason in found["refused"])


@pytest.mark.parametrize("arch", PACKAGES)
def test_a_few_instructions_are_counted_and_proved(arch: str) -> None:
    """Invariant: each is counted once, by its best strategy, and nothing is wrong with any."""
    found = coverage.cover(text_of(arch, CODE[arch]))
    assert found.differences == []
    assert (found.by_strategy["EMULATE"], found.by_strategy["BOOST"]) == (4, 1)
    assert found.cost.by == "capstone"


@pytest.mark.parametrize("arch", PACKAGES)
@pytest.mark.parametrize("fault", ["emulated-landing", "length", "flow-target"])
def test_what_is_planted_is_found(arch: str, fault: str) -> None:
    """Invariant: a tool that proves something fails where it must."""
    with planted(fault):
        assert coverage.cover(text_of(arch, CODE[arch])).differences


def test_a_wrong_way_back_is_found() -> None:
    """Invariant: the branch behind a copy is read again."""
    with planted("jump-back"):
        found = coverage.cover(text_of("aarch64", CODE["aarch64"]))
    assert any("leads back to" in each.what for each in found.differences)


def elf(machine: int, *, bits: int = 64, big: bool = False) -> bytes:
    """An ELF header, of a shared object without anything."""
    order, word = ">" if big else "<", "Q" if bits == 64 else "I"
    ident = b"\x7fELF" + bytes((bits // 32, 2 if big else 1, 1)) + bytes(9)
    sizes = (64, 56, 0, 64, 0, 0) if bits == 64 else (52, 32, 0, 40, 0, 0)
    return ident + struct.pack(f"{order}HHI3{word}I6H", 3, machine, 1, 0, 0, 0, 0, *sizes)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (elf(183, big=True), "it is big-endian; ubpx analyses code of little-endian programs alone"),
        (
            elf(40, bits=32),
            "ubpx cannot analyse code for other with 32 bits; it can for aarch64, i386, ",
        ),
        (elf(183, bits=32), "ubpx cannot analyse code for EM_AARCH64 with 32 bits"),
        (elf(243, bits=32), "ubpx cannot analyse code for EM_RISCV with 32 bits"),
    ],
    ids=["aarch64_be", "arm", "aarch64_ilp32", "riscv32"],
)
def test_other_machines_are_refused_in_words(header: bytes, message: str, tmp_path: Path) -> None:
    """Invariant: big-endian files and those of 32 bits are no files of these architectures."""
    path = tmp_path / "file"
    path.write_bytes(header)
    with pytest.raises(UsageError, match=message):
        read_text(str(path))


@pytest.mark.parametrize("arch", PACKAGES)
def test_decoders_does_not_compare_what_iced_cannot_read(arch: str) -> None:
    """Invariant: no disagreement is made up."""
    compare: Callable[[ProgramText], object] = decoders.compare
    with pytest.raises(UsageError, match=f"iced reads i386 and x86_64 alone, and this is for {arch}"):
        compare(text_of(arch, CODE[arch]))
