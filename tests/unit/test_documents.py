"""The reference is what the code says: generated pages are current, and no hook changes unnoticed."""

from __future__ import annotations

import inspect
import re
import runpy
import tomllib
from pathlib import Path
from typing import Any

import pytest

import ubpx
from ubpx import _errors, hookspecs
from ubpx.core.ubp import ARCHITECTURES, riscv64_encoding, riscv64_insns
from ubpx.core.ubp.encoding import parse
from ubpx.core.ubp.x86 import InsnClass, insn_class
from ubpx.testing.program_text import BITS

ROOT = Path(__file__).resolve().parents[2]
REFERENCE: dict[str, Any] = runpy.run_path(str(ROOT / "tools" / "reference.py"))
INSTRUCTIONS: dict[str, Any] = runpy.run_path(str(ROOT / "tools" / "instructions.py"))

DESIGN = (ROOT / "docs" / "explanation" / "design.md").read_text()
NOT_WRITTEN_YET = "native"
"""A layer that has its place already, and no module."""

# What installed plugins rely on. An argument may be added, for pluggy hands over those that an implementation names;
# one that is removed or renamed breaks plugins: keep it, and warn (warn_on_impl_args).
SIGNATURES = {
    "ubpx_diagnose": ("pid",),
    "ubpx_diagnose_traced": ("pid",),
    "ubpx_commands": (),
    "ubpx_sinks": (),
    "ubpx_process_attached": ("client", "process"),
    "ubpx_process_detached": ("client", "process"),
    "ubpx_process_exited": ("client", "process", "status"),
    "ubpx_process_execed": ("client", "process", "path"),
    "ubpx_process_forked": ("client", "process", "child"),
    "ubpx_module_loaded": ("client", "process", "path", "base"),
    "ubpx_module_unloaded": ("client", "process", "path", "base"),
    "ubpx_thread_started": ("client", "process", "tid"),
    "ubpx_thread_exited": ("client", "process", "tid", "status"),
    "ubpx_thread_stepped": ("client", "process", "tid", "address"),
    "ubpx_client_joined": ("client", "name"),
    "ubpx_client_left": ("client", "name"),
    "ubpx_client_quarantined": ("client", "name", "reason", "held_s"),
    "ubpx_probepoint_armed": ("client", "address"),
    "ubpx_probepoint_disarmed": ("client", "address"),
    "ubpx_probepoint_lost": ("client", "address", "reason"),
    "ubpx_collision": ("client", "address", "resource", "winner", "loser"),
    "ubpx_signal": ("client", "process", "tid", "signal"),
    "ubpx_syscall_entered": ("client", "process", "tid", "number", "name", "arguments"),
    "ubpx_syscall_exited": ("client", "process", "tid", "number", "name", "result"),
    "ubpx_open_tracer": (),
    "ubpx_resolve_spec": ("spec", "process"),
    "ubpx_resolve_many": ("specs", "process"),
    "ubpx_connect": ("address", "pid", "slots", "read_only", "follow"),
    "ubpx_find_broker": ("pid",),
    "ubpx_find_loader_stop": ("process",),
}


def hooks() -> dict[str, Any]:
    """Every hook, by name."""
    kinds = [kind for name, kind in vars(hookspecs).items() if name.endswith("Hooks")]
    return {name: hook for kind in kinds for name, hook in vars(kind).items() if name.startswith("ubpx_")}


@pytest.mark.parametrize("page", REFERENCE["PAGES"])
def test_generated_pages_are_current(page: str) -> None:
    """Invariant: a page of the reference is what its tool makes of the code (tools/reference.py --write)."""
    assert (ROOT / "docs" / "reference" / page).read_text() == REFERENCE["PAGES"][page]()


def test_the_page_of_instructions_is_current() -> None:
    """Invariant: the tables of classes and reasons say what the code does (tools/instructions.py --write)."""
    page = (ROOT / "docs" / "reference" / "instructions.md").read_text()
    assert page == INSTRUCTIONS["current"](page)


@pytest.mark.parametrize("name", INSTRUCTIONS["X86"])
def test_every_class_of_x86_instructions_has_its_row(name: str) -> None:
    """Invariant: a class that is new, or lost, shows in the page's table."""
    shown = set()
    for _, codes in INSTRUCTIONS["_codes"](name):
        shown |= {insn_class(parse(bytes.fromhex(code), BITS[name])) for code in codes.split()}
    assert shown == set(InsnClass)


def test_every_class_of_riscv64_instructions_has_its_row() -> None:
    """Invariant: a class that is new, or lost, shows in the page's table."""
    codes = [bytes.fromhex(code) for _, row in INSTRUCTIONS["RISCV64_ROWS"] for code in row.split()]
    parsed = [encoding for code in codes if (encoding := riscv64_encoding.parse(code)) is not None]
    assert {riscv64_insns.insn_class(encoding) for encoding in parsed} == {*riscv64_insns.InsnClass, None}
    assert len(parsed) < len(codes)  # what is too long, or a reserved short one


def test_every_architecture_has_its_table() -> None:
    """Invariant: whoever adds an architecture says what is allowed where."""
    assert {*INSTRUCTIONS["X86"], *INSTRUCTIONS["OTHERS"]} == set(ARCHITECTURES)


def test_no_hook_changes_unnoticed() -> None:
    """Invariant: hooks and their arguments are those that SIGNATURES says; who changes one says so there."""
    found = {name: tuple(inspect.signature(hook).parameters)[1:] for name, hook in hooks().items()}
    assert found == SIGNATURES


def test_every_hook_and_every_error_has_its_place_in_the_reference() -> None:
    """Invariant: nothing that a user can meet is left out, and every part of a hook's docstring is shown."""
    shown = (ROOT / "docs" / "reference" / "hooks.md").read_text()
    for name, hook in hooks().items():
        section = shown.partition(f"### {name}\n")[2].partition("\n### ")[0]
        parts = [part for part in REFERENCE["PARTS"] if f"\n{part}: " in (inspect.getdoc(hook) or "")]
        assert [part for part in REFERENCE["PARTS"] if f"- **{part}**: " in section] == parts, name
    errors = (ROOT / "docs" / "reference" / "errors.md").read_text()
    assert [name for name in _errors.__all__ if f"\n## {name}\n" not in errors] == []
    raised = [name for name in ubpx.__all__ if issubclass(type(getattr(ubpx, name)), type)]
    assert [name for name in raised if issubclass(getattr(ubpx, name), Exception) and name not in errors] == []


def rooms() -> set[str]:
    """The paths in the first column of the design page's table, in full."""
    table = DESIGN.partition("## The rooms")[2].partition("\n## ")[0]
    paths: set[str] = set()
    directory = package = ""
    for cell in re.findall(r"^\| (`[^|]+) \|", table, re.MULTILINE):
        for name in re.findall("`([^`]+)`", cell):
            path = re.sub("^[.]{3}", package, name) if "/" in name else directory + name
            directory = path.rpartition("/")[0] + "/"
            paths.add(path)
            if plugin := re.fullmatch("plugins/([^/]*)/", path):
                package = f"{path}ubpx_{plugin[1]}"
    return paths


def test_every_module_has_its_row_in_the_design() -> None:
    """Invariant: each module of ubpx is in the table or lies under a directory that is, and nothing else is in it."""
    rows = rooms()
    assert [row for row in sorted(rows) if not (ROOT / row).exists()] == []
    modules = [path.relative_to(ROOT) for path in sorted((ROOT / "ubpx").rglob("*.py"))]
    assert len(modules) > 100
    roomless = [
        str(path)
        for path in modules
        if str(path) not in rows and not any(f"{above}/" in rows for above in path.parents)
        if path.name != "__init__.py"  # its directory's
    ]
    assert roomless == []


def test_the_design_says_who_may_import_whom_as_the_contract_does() -> None:
    """Invariant: line by line the page's list is the layers of pyproject.toml, the other way round."""
    block = DESIGN.partition("## Who may import whom")[2].partition("\n    ")[2].partition("\n\n")[0]
    lines = [re.split("  +", line.strip())[0] for line in block.split("\n")]
    shown = [set(line.split(", ")) for line in lines if "/" not in line]  # paths are other contracts' matter
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = contracts[0]["layers"]
    names = [re.sub(r"ubpx\.(core\.)?|[()]", "", layer).split(" | ") for layer in reversed(layers)]
    assert shown == [{name for name in layer if name != NOT_WRITTEN_YET} for layer in names]
    assert len(shown) > 20


NOT_SETTLED_YET: set[str] = set()
"""Rows of the table of faults without a test."""


def test_every_test_in_the_table_of_faults_exists() -> None:
    """Invariant: each row says what ubpx does and names tests that are there, or is listed above."""
    page = (ROOT / "docs" / "explanation" / "faults.md").read_text()
    rows = [line.strip("| ").split(" | ") for line in page.partition("|---|")[2].splitlines()[1:]]
    unsettled = set()
    for fault, behaviour, shown in rows:
        named = re.findall("`([^`]+)`", shown)
        if (behaviour, shown) == ("-", "-"):
            unsettled.add(fault)
            continue
        assert named, fault
        assert len(behaviour) > 20, fault
        for each in named:
            path, _, test = each.partition("::")
            assert (ROOT / path).is_file(), each
            assert re.search(rf"^(async )?def {test}\(", (ROOT / path).read_text(), re.MULTILINE), each
    assert unsettled == NOT_SETTLED_YET
    assert len(rows) > 28


def test_the_glossary_is_in_order() -> None:
    """Invariant: a word is found where the alphabet has it, and stands there once."""
    table = (ROOT / "docs" / "reference" / "glossary.md").read_text().partition("|---|")[2].partition("\n\n")[0]
    words = [line.split("|")[1].strip().casefold() for line in table.split("\n")[1:]]
    assert words == sorted(set(words))
    assert len(words) > 80


def test_every_link_of_the_documents_leads_somewhere() -> None:
    """Invariant: a link to a file of ours names one that is there."""
    documents = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("*/*/README.md")]
    pattern = re.compile(r"\]\(([^)#:\s]+)(?:#[^)\s]*)?\)")
    links = [(each, link) for each in documents for link in pattern.findall(each.read_text())]
    assert [f"{each.name}: {link}" for each, link in links if not (each.parent / link).exists()] == []
    assert len(links) > 10


def test_what_an_error_carries_is_there() -> None:
    """Invariant: each argument that an error is made of can be read from it, under the same name."""
    every: dict[str, Any] = {name: getattr(_errors, name) for name in _errors.__all__}
    for name, error in every.items():
        if "__init__" not in vars(error):
            continue
        parameters = inspect.signature(error).parameters
        given = {each: ANY_VALUE.get(each, "thing") for each in parameters}
        made = error(**given)
        assert {each: getattr(made, each) for each in parameters} == given, name


ANY_VALUE: dict[str, Any] = {
    "address": 0x1000, "pid": 5, "status": -9, "tid": 6, "tracer_pid": 7, "size": 8, "found": b"\xcc",
    "candidates": ("a", "b"), "holders": ("a",), "nearest": ("a",), "known": ("rax",), "allowed": ("STEP",),
    "error": OSError(1, "no"), "insn": None,
}  # fmt: skip
