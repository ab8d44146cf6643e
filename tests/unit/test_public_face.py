"""What is public means what docs/reference/contract.md says; errors that no real kernel gives, over a fake tracer."""

from __future__ import annotations

import ast
import errno
import importlib
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from enum import StrEnum
from importlib.metadata import entry_points, requires
from pathlib import Path
from typing import Any

import pluggy
import pytest

import ubpx
from ubpx.core import events
from ubpx.core.values import Place, ProcessId, VirtAddr
from ubpx.hookspecs import hookimpl
from ubpx.testing import FakeMemory, FakeTracer

ROOT = Path(__file__).resolve().parents[2]
ERRORS = {
    "UsageError", "NoSuchProcess", "KernelThread", "PermissionRefused", "AlreadyTraced", "TargetGone", "UnknownSymbol",
    "AmbiguousSymbol", "UnknownModule", "NotExecutable", "NotAnInstruction", "InsnRefused", "StrategyRefused",
    "ProbepointBusy", "ForeignTrap", "SlotsExhausted", "MemoryFault", "PtraceFailed", "PluginFailed", "NoTracer",
    "ClientQuarantined", "InternalError",
}  # fmt: skip
HEAVY = {"capstone", "elftools", "rich", "ptrace", "iced_x86"}


# Names --------------------------------------------------------------------------------------


@pytest.mark.contract("error-1")
def test_every_error_of_the_contract_is_public_and_of_one_tree() -> None:
    for name in ERRORS:
        assert issubclass(getattr(ubpx, name), ubpx.UbpxError), name
    assert issubclass(ubpx.StaleHit, ubpx.UsageError)


@pytest.mark.contract("error-1", "error-6", "error-8", "error-15")
def test_errors_that_others_make_take_what_the_contract_says() -> None:
    """Invariant: plugins raise these too, with exactly these arguments."""
    traced = ubpx.AlreadyTraced(pid=5, tracer_pid=6, tracer_command="gdb", broker="/run/broker")
    assert (traced.pid, traced.tracer_pid, traced.tracer_command, traced.broker) == (5, 6, "gdb", "/run/broker")
    assert "--join" in str(traced)
    unknown = ubpx.UnknownSymbol(spec="libc:wrote", nearest=["write"])
    assert (unknown.spec, unknown.nearest) == ("libc:wrote", ("write",))
    busy = ubpx.ProbepointBusy(address=VirtAddr(0x1000), holder="a")
    assert (busy.address, busy.holder) == (0x1000, "a")


@pytest.mark.contract("lease-5")
def test_strategies_are_words_in_json_too() -> None:
    assert issubclass(ubpx.Strategy, StrEnum)
    assert list(ubpx.Strategy) == ["EMULATE", "JUMP", "BOOST", "STEP", "INLINE"]
    assert json.dumps({"strategy": ubpx.Strategy.BOOST}) == '{"strategy": "BOOST"}'


@pytest.mark.contract("failure-9")
def test_blocking_calls_in_handlers_are_documented_as_forbidden() -> None:
    text = " ".join((ROOT / "docs" / "how-to" / "embed.md").read_text().split())
    assert re.search(r"blocking C call \([^)]*\) in a handler is forbidden", text)


# Who imports whom ---------------------------------------------------------------------------


@pytest.mark.contract("import-1")
def test_what_plugins_may_import() -> None:
    """Invariant: the public modules are those that the import contract lets plugins use, and each can be imported."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (contract,) = [each for each in contracts if each["name"] == "plugins use the public modules of ubpx alone"]
    allowed = {each.removeprefix("** -> ") for each in contract["ignore_imports"]}
    promised = {"ubpx.core.ports", "ubpx.core.values", "ubpx.core.events", "ubpx.core.ubp", "ubpx.testing"}
    assert allowed == promised | {"ubpx.hookspecs"}
    for name in ("ubpx", *allowed):
        assert importlib.import_module(name).__doc__, name


def imports_of(file: Path) -> Iterator[str]:
    """Every module, or name of a module, that the file imports, wherever it does so."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{each.name}" for each in node.names)


@pytest.mark.contract("import-2", "import-3")
def test_nothing_in_ubpx_imports_the_package_itself() -> None:
    """Invariant: inside, everything comes from where it is made; attach, spawn, Session and Target from ubpx.target."""
    for name in ("attach", "spawn", "Session", "Target"):
        assert getattr(ubpx, name).__module__ == "ubpx.target"
    public = {"ubpx", *(f"ubpx.{name}" for name in ubpx.__all__)}
    files = [file for file in (ROOT / "ubpx").rglob("*.py") if file != ROOT / "ubpx" / "__init__.py"]
    assert [(file.name, name) for file in files for name in imports_of(file) if name in public] == []
    assert len(files) > 30


@pytest.mark.contract("import-4", "import-5")
def test_the_core_knows_no_symbols() -> None:
    """Invariant: hookspecs take their Protocols from ports; neither the core nor target.py imports a resolver."""
    assert "ubpx.core.ports.ProcessView" in set(imports_of(ROOT / "ubpx" / "hookspecs.py"))
    files = [ROOT / "ubpx" / "target.py", *(ROOT / "ubpx" / "core").rglob("*.py")]
    assert [name for file in files for name in imports_of(file) if name.startswith("ubpx.symbols")] == []


@pytest.mark.contract("import-6")
def test_the_resolver_is_a_plugin_of_ubpx_itself() -> None:
    (entry,) = [each for each in entry_points(group="ubpx") if each.name == "symbols"]
    assert entry.dist is not None
    assert (entry.dist.name, entry.value.partition(":")[0]) == ("ubpx", "ubpx.symbols.plugin")


@pytest.mark.contract("import-7")
def test_what_is_heavy_is_loaded_at_first_use() -> None:
    """Invariant: importing ubpx, every name of it and its plugins loads no disassembler, ELF reader, rich or ptrace."""
    script = (
        "import sys, ubpx\nfrom importlib.metadata import entry_points\n"
        "for name in ubpx.__all__: getattr(ubpx, name)\n"
        "for entry in entry_points(group='ubpx'): entry.load()\n"
        f"print(sorted({HEAVY!r} & sys.modules.keys()))"
    )
    outcome = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert outcome.stdout == "[]\n"


@pytest.mark.contract("command-9")
def test_ubpx_depends_on_no_plugin() -> None:
    required = {re.split(r"[^\w-]", each)[0] for each in requires("ubpx") or ()}
    assert "pluggy" in required
    assert [each for each in required if each.startswith("ubpx")] == []


# Errors over a fake tracer ------------------------------------------------------------------

PID, OTHER, TEXT, STACK = 100, 101, 0x40_1000, 0x7FFE_0000


class Faulty(FakeTracer):
    """A tracer that goes wrong on demand."""

    def __init__(self) -> None:
        super().__init__(patience=5)
        memory = FakeMemory()
        memory.map(TEXT, b"\x90" * 0x1000, permissions="r-xp", path="/bin/program")
        memory.map(STACK, bytes(0x1000), permissions="rw-p", path="[stack]")
        self.process(PID, memory, entry=TEXT)
        self.thread(OTHER, PID)
        self.refuses_interrupts = False
        self.out_of_turn: list[events.StopEvent] = []

    def interrupt(self, thread: Any) -> None:
        """As a kernel that refuses what it should not."""
        if self.refuses_interrupts:
            raise ubpx.PtraceFailed("PTRACE_INTERRUPT", thread.tid, OSError(errno.EIO, "Input/output error"))
        super().interrupt(thread)

    def wait(self) -> Any:
        """What could not have happened, or what has."""
        return self.out_of_turn.pop() if self.out_of_turn else super().wait()


class FaultyPlugin:
    """Offers it, and resolves what it is asked, or fails."""

    def __init__(self) -> None:
        self.tracer = Faulty()

    @hookimpl
    def ubpx_open_tracer(self) -> Faulty:
        return self.tracer

    @hookimpl
    def ubpx_resolve_spec(self, spec: object) -> Place:
        at = VirtAddr({"start": TEXT}[str(spec)])
        return Place(address=at, name="start", symbol_start=at, symbol_end=VirtAddr(at + 16))


@pytest.fixture
def faulty() -> FaultyPlugin:
    return FaultyPlugin()


@pytest.fixture
def target(faulty: FaultyPlugin) -> Iterator[ubpx.Target]:
    """A scripted process, attached by the public call."""
    host = pluggy.PluginManager("application")
    host.register(faulty, "faulty")
    with ubpx.attach(PID, host=host) as attached:
        yield attached
    if faulty.tracer.failure is not None:
        raise faulty.tracer.failure


@pytest.mark.contract("error-19")
def test_a_request_that_the_kernel_refuses_reaches_the_caller(target: ubpx.Target, faulty: FaultyPlugin) -> None:
    """Invariant: PtraceFailed says which request of which thread and why; afterwards the target works."""
    client = target.client("one")
    faulty.tracer.refuses_interrupts = True
    with pytest.raises(ubpx.PtraceFailed) as failed:
        client.hold(OTHER)
    assert (failed.value.request, failed.value.tid, failed.value.error.errno) == ("PTRACE_INTERRUPT", OTHER, errno.EIO)
    faulty.tracer.refuses_interrupts = False
    assert target.holds() == (), "a hold that nobody has could not be released"
    assert client.probe("start", lambda _: None).state is ubpx.LeaseState.ARMED


@pytest.mark.contract("error-20")
def test_a_plugin_that_fails_is_named(target: ubpx.Target) -> None:
    """Invariant: what an ask hook raises that is no error of ours reaches the caller as PluginFailed."""
    with pytest.raises(ubpx.PluginFailed) as failed:
        target.client("one").probe("nowhere", lambda _: None)
    assert (failed.value.plugin, "KeyError" in failed.value.reason) == ("ubpx_resolve_spec", True)
    assert target.probepoints() == ()


@pytest.mark.contract("error-23")
def test_what_cannot_happen_is_an_internal_error(target: ubpx.Target, faulty: FaultyPlugin) -> None:
    """Invariant: an event that no thread in that state can have is told to whoever waits, as a bug; others go on."""
    client = target.client("one")
    with client.hold(OTHER):
        faulty.tracer.out_of_turn.append(events.Interrupted(faulty.tracer.thread(OTHER)))
        with pytest.raises(ubpx.InternalError, match="a thread that is PARKED cannot have INTERRUPTED; this is a bug"):
            client.hold(PID)
    assert target.holds() == (), "a hold that nobody has could not be released"
    assert client.probe("start", lambda _: None).state is ubpx.LeaseState.ARMED
    assert ProcessId(PID) == target.pid
