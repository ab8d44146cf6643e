"""Keep docs/reference/instructions.md true: its tables of classes and of disagreements come from the code.

Prints the tables; with --write puts them into the page; with --measure NAME=FILE... runs both tools
over the files and puts what they find there. Needs ubpx to be importable: run it with .venv/bin/python.
"""

import argparse
import datetime as dt
import importlib.metadata
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from ubpx._errors import InsnRefused
from ubpx.core.ubp import Architecture, Strategy, architecture
from ubpx.core.values import VirtAddr
from ubpx.testing import coverage, decoders
from ubpx.testing.disagreements import KNOWN
from ubpx.testing.program_text import read_text

PAGE: Final = Path(__file__).resolve().parent.parent / "docs" / "reference" / "instructions.md"
ADDRESS: Final = VirtAddr(0x5655_5000)

# What a reader may look for, and instructions of each: for x86_64, and for i386 (SAME: the same; None: it has none).
SAME: Final = "same"
ROWS: Final[Sequence[tuple[str, str | None, str | None]]] = (
    ("nops of all lengths, with any prefixes; endbr", "90 6690 660f1f840000000000 2e0f1f00 f30f1efa", SAME),
    ("`jmp` to a fixed address", "e910203000 eb10", SAME),
    ("conditional branches (`jcc`)", "7410 0f8400100000", SAME),
    ("`loop`, `loope`, `loopne`, `jrcxz`, `jecxz`", "e2fe e1fe e0fe e3fe 67e3fe", SAME),
    ("`call` to a fixed address", "e810203000", SAME),
    ("`call` through a register or memory", "ffd0 ff10 ff542408", SAME),
    ("`jmp` through a register or memory, `notrack` too", "ffe0 ff20 3effe0", SAME),
    ("`ret`, `ret n`, `rep ret`", "c3 c20400 f3c3", SAME),
    ("`push` of a register", "55 54", SAME),
    ("`push` of a constant", "6a01 6811223344", SAME),
    ("`pop` into a register", "5d 5c", SAME),
    ("`leave`", "c9", SAME),
    ("`pushf`", "9c 669c", SAME),
    ("`popf`", "9d 669d", SAME),
    (
        "moves, arithmetic and whatever else touches registers and memory alone",
        "4889e5 0fafc2 c7800000000000000000",
        "89e5 0fafc2",
    ),
    ("an operand relative to rip", "488b0500000000 0fc70d00000000 c5f81005000000ff", None),
    ("an operand relative to eip (67 prefix)", "67488b0500000000", None),
    ("string instructions, repeated or not", "a4 f3a4 f2ae f348ab", "a4 f3a4 f2ae f3ab"),
    ("`lock` and segment prefixes", "f0ff00 f06548ff00 64488b042500000000 36890424", "f0ff00 65a114000000 36890424"),
    ("SSE, AVX (VEX), AVX-512 (EVEX)", "0f1000 c5f81000 c4e27db800 62f17c481000", SAME),
    ("XOP, 3DNow!", "8fe878c20000 0f0f000c", SAME),
    ("x87 that computes or moves", "dd00 d8c1 dfc8", SAME),
    ("x87 that only controls", "9b d93c24 dbe3 dfe0", SAME),
    ("`mov ss`, `pop ss`, `lss`", "8ed0 0fb200", "8ed0 17 0fb200"),
    ("`str`, `sldt`, `smsw`, `sgdt`, `sidt` (UMIP)", "0f00c8 0f00c0 0f01e0 0f0100 0f0108", SAME),
    ("`syscall`", "0f05", SAME),
    ("`sysenter`", "0f34", SAME),
    ("`int n`, `int 0x80` among them", "cd80 cd03", SAME),
    ("`rdtsc`, `cpuid`, `xgetbv`, `pause`", "0f31 0fa2 0f01d0 f390", SAME),
    ("`xbegin`", "c7f800000000", SAME),
    ("`xend`", "0f01d5", SAME),
    ("`xabort`", "c6f800", SAME),
    ("`pusha`, `popa`, `bound`, BCD arithmetic, `push` and `pop` of a segment", None, "60 61 6200 27 d40a 06 1f"),
    ("`into`", None, "ce"),
    ("`ud2`", "0f0b", SAME),
    ("`ud0`, `ud1`", "0fb9c0 0fffc0", SAME),
    ("`int3`", "cc", SAME),
    ("`int1`", "f1", SAME),
    ("`cli`, `sti`", "fa fb", SAME),
    ("`hlt`, `wrmsr`, `lgdt` and other instructions of the kernel", "f4 0f30 0f0110", SAME),
    ("`in`, `out`, `ins`, `outs`", "ec ee e410 6c 6e", SAME),
    ("far `jmp`, `call`, `ret`", "ff28 ff18 cb ca0400", "ff28 ff18 cb ca0400 ea000000002300 9a000000002300"),
    ("`iret`", "48cf cf", "cf"),
    (
        "near branches with an operand-size prefix",
        "66e910203000 667410 660f8400100000 66ffe0",
        "66e91020 667410 66ffe0",
    ),
    ("`ret n` with an operand-size prefix", "66c20400", SAME),
    ("opcodes that 64-bit mode does not have", "06", None),
    ("APX (REX2 prefix)", "d5009090", None),
    ("APX (EVEX map 4)", "62f47c0801c8", None),
)


X86: Final = ("x86_64", "i386")
RISCV64_ROWS: Final[Sequence[tuple[str, str]]] = (
    ("`nop`, hints, arithmetic that is written to x0, `pause`", "13000000 0100 13005500 0f000001 2e80"),
    ("`jal`, `j`, `c.j`", "ef001000 41a0"),
    ("`jalr`, `jr`, `ret`, `c.jr`, `c.jalr`", "e7800001 67800000 8280 8290"),
    ("`beq`, `bne`, `blt`, `bge`, `bltu`, `bgeu`, `c.beqz`, `c.bnez`", "6300b504 21c1 61f1"),
    ("`auipc`", "17553412"),
    ("loads, stores, arithmetic, `lui`, short or long", "03358100 2334a100 13051500 37553412 2265 0505"),
    ("multiplication and division (M)", "3b85c502"),
    ("floating point (F, D), and its own registers (`fflags`, `frm`, `fcsr`)", "53f5c502 43f5c568 73251000 73102500"),
    ("atomic operations on memory (`amo*`)", "2f356b00"),
    ("`rdcycle`, `rdtime`, `rdinstret`", "732500c0 732510c0 732520c0"),
    ("`lr`, `sc`", "2fa50510 2fa5c518"),
    ("`fence`, `fence.tso`, `fence.i`", "0f00f00f 0f003083 0f100000"),
    ("`ecall`", "73000000"),
    ("`ebreak`, `c.ebreak`", "73001000 0290"),
    ("other control registers; `sret`, `wfi`, `mret`", "73250010 73002010 73005010 73002030"),
    ("`unimp`", "731000c0"),
    ("the vector extension", "57700000 07040502"),
    ("all bits zero", "0000 00000000"),
    ("reserved encodings, other extensions", "0280 3325b520"),
    ("formats of more than 32 bits", "3f010020"),
)
AARCH64_ROWS: Final[Sequence[tuple[str, str]]] = (
    ("`nop`", "1f2003d5"),
    ("`b`", "02000014"),
    ("`b.cond`, `bc.cond`", "80000054 90000054"),
    ("`cbz`, `cbnz`, `tbz`, `tbnz`", "400000b4 40000035 40001836 400018b7"),
    ("`bl`, `blr`", "02000094 00023fd6"),
    ("`br`, `ret`", "00021fd6 c0035fd6"),
    ("`adr`, `adrp`", "20000010 000000b0"),
    ("`ldr`, `ldrsw` of a literal", "40000018 40000058 40000098"),
    ("`ldr` of a literal to a vector register", "4000001c 4000005c 4000009c"),
    ("`prfm` of a literal", "400000d8"),
    ("loads, stores, arithmetic, vectors", "200040f9 00040091 2028621e"),
    ("atomic operations on memory (LSE), `casp` among them", "417ca0c8 827c2048"),
    ("`pac*`, `aut*`, `xpaclri`, `bti`", "3f2303d5 bf2303d5 ff2003d5 5f2403d5"),
    ("`dmb`, `dsb`, `isb`, `clrex`", "bf3b03d5 9f3f03d5 df3f03d5 5f3f03d5"),
    ("`dc`, `ic` that a program may execute", "20740bd5 20750bd5"),
    (
        "system registers of programs: `tpidr_el0`, `nzcv`, `fpcr`, `fpsr`, `cntvct_el0`, `ctr_el0`, `dczid_el0`",
        "40d03bd5 40d01bd5 00423bd5 00443bd5 20443bd5 40e03bd5 20003bd5 e0003bd5",
    ),
    ("identification registers, which the kernel answers for", "000038d5"),
    ("`ldxr`, `ldaxr`, `ldxp`, `ldaxp`", "207c5fc8 20fc5fc8 20087fc8"),
    ("`stxr`, `stlxr`, `stxp`, `stlxp`", "207c02c8 617c22c8"),
    ("`svc`", "010000d4"),
    ("`hvc`, `smc`", "020000d4 030000d4"),
    ("`brk`, `hlt`, `udf`", "000020d4 000040d4 00000000"),
    ("`eret`, `drps`, `dcps1` to `dcps3`", "e0039fd6 e003bfd6 0100a0d4"),
    ("`wfe`, `wfi`, `yield` and other hints", "5f2003d5 7f2003d5 3f2003d5"),
    ("`braa`, `blraa`, `retaa` and kin", "01081fd7 1f083fd6 ff0b5fd6"),
    ("`cpy*`, `set*` (MOPS)", "40040119 4004c119"),
    (
        "`mrs` of `daif`, other system registers, `msr` to a part of PSTATE, `tlbi`",
        "20423bd5 001018d5 df4203d5 1f8708d5",
    ),
    ("transactions (TME)", "603023d5"),
)
OTHERS: Final[Mapping[str, Sequence[tuple[str, str]]]] = {"aarch64": AARCH64_ROWS, "riscv64": RISCV64_ROWS}
"""Architectures that share no row with x86: what a reader may look for, and instructions of each."""


def _answers(made: Architecture, codes: str) -> Iterator[str]:
    for code in codes.split():
        try:
            analysis = made.analyze(bytes.fromhex(code), ADDRESS)
        except InsnRefused as refused:
            yield f"refused: {refused.reason.partition(' [')[0]}"  # without the bytes
        else:
            yield ", ".join(analysis.strategies)


def _codes(name: str) -> Iterator[tuple[str, str]]:
    """Each row's title, and its instructions for this architecture where it has any."""
    for title, wide, narrow in ROWS:
        codes = wide if name == "x86_64" or narrow == SAME else narrow
        if codes is not None:
            yield title, codes


def classes() -> str:
    """What is allowed where."""
    names = X86
    cells = {
        name: {title: "; or ".join(dict.fromkeys(_answers(architecture(name), codes))) for title, codes in _codes(name)}
        for name in names
    }
    lines = [f"| instructions | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
    for title, *_ in ROWS:
        row = [cells[name].get(title, "there is none") for name in names]
        shown = row if len(set(row)) > 1 or len(row) == 1 else [row[0], "the same"]
        lines.append(f"| {title} | {' | '.join(shown)} |")
    return "\n".join(lines)


def reasons() -> str:
    """Why a strategy is not allowed, for the classes that are not refused altogether."""
    found: dict[tuple[Strategy, str], list[str]] = {}
    for name in X86:
        made = architecture(name)
        for title, codes in _codes(name):
            try:
                refusals = made.analyze(bytes.fromhex(codes.split()[0]), ADDRESS).refusals
            except InsnRefused:
                continue
            for strategy, reason in refusals.items():
                titles = found.setdefault((strategy, reason), [])
                if title not in titles:
                    titles.append(title)
    lines = ["| strategy | is not allowed because | at |", "|---|---|---|"]
    for (strategy, reason), titles in sorted(found.items(), key=lambda item: list(Strategy).index(item[0][0])):
        where = "; ".join(titles) if len(titles) <= 6 else "all that are shown without it"
        lines.append(f"| {strategy} | {reason} | {where} |")
    return "\n".join(lines)


def other_classes(name: str) -> str:
    """What is allowed where, on an architecture that is not x86."""
    made = architecture(name)
    lines = [f"| instructions | {name} |", "|---|---|"]
    lines += [f"| {title} | {'; or '.join(dict.fromkeys(_answers(made, codes)))} |" for title, codes in OTHERS[name]]
    return "\n".join(lines)


def disagreements() -> str:
    """What iced and capstone are known not to agree about."""
    lines = ["| where they disagree | who is right |", "|---|---|"]
    lines += [f"| {each.what} | {each.reason} |" for each in KNOWN]
    return "\n".join(lines)


GENERATED: Final[Mapping[str, Callable[[], str]]] = {
    "classes": classes,
    "reasons": reasons,
    "disagreements": disagreements,
    **{f"classes of {name}": partial(other_classes, name) for name in OTHERS},
}


def measured(files: Mapping[str, str]) -> str:
    """What both tools find in these files, by what the page calls them."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("iced-x86", "capstone"))
    today = dt.datetime.now(tz=dt.UTC).date()
    lines = [
        f"Measured on {today} with {versions}.",
        "",
        "| file | instructions | EMULATE | BOOST | STEP | INLINE | refused | no step | in gaps | disagreements |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, path in files.items():
        found = coverage.cover(read_text(path))
        if found.differences:
            raise SystemExit(f"{path}: {len(found.differences)} differences; run python -m ubpx.testing.coverage")
        lines.append(_measured_row(name, found, decoders.compare(read_text(path))))
    return "\n".join(lines)


def _measured_row(name: str, found: coverage.Coverage, compared: decoders.Comparison) -> str:
    total = found.census.instructions
    refused = sum(found.refused.values())
    shares = [found.by_strategy[each] for each in ("EMULATE", "BOOST", "STEP", "INLINE")]
    functions = sum(not each.in_gap for each in compared.disagreements)
    cells = [
        name,
        f"{total:,}",
        *(f"{share / total:.2%}" for share in shares),
        f"{refused:,} ({refused / total:.3%})",
        f"{found.without_step / total:.2%}",
        f"{found.text.gap_bytes:,} bytes",
        f"{functions} in functions, {len(compared.disagreements) - functions} in gaps",
    ]
    return f"| {' | '.join(cells)} |"


def replaced(page: str, parts: Mapping[str, str]) -> str:
    """The page with these parts put between their marks."""
    for name, text in parts.items():
        begin, end = f"<!-- {name}: by tools/instructions.py -->\n", f"<!-- end of {name} -->\n"
        before, began, rest = page.partition(begin)
        _, ended, behind = rest.partition(end)
        if not (began and ended):
            raise SystemExit(f"{PAGE}: it must have a part {name!r}")
        page = f"{before}{begin}{text}\n{end}{behind}"
    return page


def current(page: str) -> str:
    """The page as it should be; what was measured stays."""
    return replaced(page, {name: make() for name, make in GENERATED.items()})


def main(arguments: Sequence[str] | None = None) -> None:
    """See above."""
    parser = argparse.ArgumentParser(
        prog="tools/instructions.py", description="Keep docs/reference/instructions.md true."
    )
    parser.add_argument("--write", action="store_true", help="into the page")
    parser.add_argument(
        "--measure", nargs="+", metavar="NAME=FILE", help="run both tools over these files, into the page"
    )
    chosen = parser.parse_args(arguments)
    if chosen.measure:
        files = {name: path for name, _, path in (each.rpartition("=") for each in chosen.measure)}
        PAGE.write_text(replaced(PAGE.read_text(), {"measured": measured(files)}))
    if chosen.write:
        PAGE.write_text(current(PAGE.read_text()))
    elif not chosen.measure:
        print("\n\n".join(make() for make in GENERATED.values()))


if __name__ == "__main__":
    main()
