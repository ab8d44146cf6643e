"""The command line without a process: options, errors, and what the demo makes of what it saw."""

import io
import json
import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any, Self

import attrs
import pytest
from click.testing import CliRunner
from rich.console import Console

import ubpx
from ubpx.cli.app import app
from ubpx.cli.demo.report import as_json_text, print_report
from ubpx.cli.demo.run import PROGRAM, ClientHits, DemoResult, Sharing, client_leases, run_demo, shared_probepoint
from ubpx.cli.text import printable
from ubpx.core.values import VirtAddr

GOOD = DemoResult(
    pid=4711,
    calls=1_000,
    rounds=12,
    clients=(ClientHits("hitcount", 1_000), ClientHits("argwatch", 1_000)),
    sharing=Sharing(
        address=VirtAddr(0x7F00),
        strategy="BOOST",
        slot=VirtAddr(0x6F00),
        clients=("hitcount", "argwatch"),
        holders=(2, 1, 0),
    ),
    exit_status=0,
)


def demo_that(monkeypatch: pytest.MonkeyPatch, outcome: DemoResult | Exception) -> None:
    """Let the command ``demo`` find ``outcome``."""

    def run_demo() -> DemoResult:
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr("ubpx.cli.demo.run.run_demo", run_demo)


def test_version_and_help() -> None:
    assert CliRunner().invoke(app, ["--version"], prog_name="ubpx").output == "ubpx 0.1.0\n"
    helped = CliRunner().invoke(app, ["--help"])
    assert helped.exit_code == 0
    assert "demo" in helped.output


@pytest.mark.contract("import-7")
def test_help_loads_nothing_heavy() -> None:
    """Invariant: --help and shell completion wait for no disassembler, ELF reader, table printer or tracer."""
    code = (
        "import sys, ubpx.cli\n"
        "try: ubpx.cli.main()\n"
        "except SystemExit: pass\n"
        "print(*{'rich', 'capstone', 'iced_x86', 'elftools', 'ptrace'} & set(sys.modules), file=sys.stderr)\n"
    )
    command = [sys.executable, "-c", code, "--help"]
    assert subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stderr == "\n"


@pytest.mark.contract("command-8")
def test_an_error_is_one_line_on_stderr(monkeypatch: pytest.MonkeyPatch) -> None:
    """Invariant: exit status 1, no traceback, and nothing that could control the terminal."""
    demo_that(monkeypatch, ubpx.UnknownSymbol("libc:\x1b[2Jevil\n", []))
    outcome = CliRunner().invoke(app, ["demo"])
    assert outcome.exit_code == 1
    assert outcome.stdout == ""
    assert outcome.stderr.startswith("ubpx: no symbol for 'libc:\\x1b[2Jevil")
    assert outcome.stderr.count("\n") == 1


@pytest.mark.contract("command-8")
def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    error = ubpx.NoTracer()
    demo_that(monkeypatch, error)
    assert CliRunner().invoke(app, ["--debug", "demo"]).exception is error


def test_wrong_usage_is_status_2() -> None:
    assert CliRunner().invoke(app, ["demo", "--no-such-option"]).exit_code == 2


def test_escapes_leave_plain_text_alone() -> None:
    assert printable("naïve (nginx: worker)") == "naïve (nginx: worker)"
    assert printable("a\x1b]0;b\u202e\r\n\x7f") == "a\\x1b]0;b\\u202e\\r\\n\\x7f"


@pytest.mark.parametrize(
    ("result", "missed", "ok"),
    [
        (GOOD, 0, True),
        (attrs.evolve(GOOD, calls=1_003), 6, False),
        (attrs.evolve(GOOD, clients=(ClientHits("hitcount", 990), ClientHits("argwatch", 1_005))), 15, False),
        (attrs.evolve(GOOD, exit_status=-5), 0, False),
        (attrs.evolve(GOOD, sharing=attrs.evolve(GOOD.sharing, holders=(1, 1, 0))), 0, False),
    ],
)
def test_the_demo_is_ok_when_all_is_well(
    monkeypatch: pytest.MonkeyPatch, result: DemoResult, missed: int, ok: bool
) -> None:
    """Invariant: a hit too many does not make up for one that was missed."""
    assert (result.missed, result.ok) == (missed, ok)
    demo_that(monkeypatch, result)
    assert CliRunner().invoke(app, ["demo"]).exit_code == (0 if ok else 1)


def test_json_is_one_object_with_exactly_these_keys() -> None:
    assert json.loads(as_json_text(GOOD)) == {
        "calls": 1000,
        "clients": [{"name": "hitcount", "hits": 1000}, {"name": "argwatch", "hits": 1000}],
        "missed": 0,
        "holders": [2, 1, 0],
        "exit": 0,
        "ok": True,
    }


def report(result: DemoResult) -> str:
    console = Console(width=120, file=io.StringIO())
    with console.capture() as captured:
        print_report(result, console)
    return captured.get()


def test_the_report_tells_strategy_slot_and_holders() -> None:
    for expected in ("hitcount", "1,000", "BOOST", "0x6f00", "2 -> 1 -> 0", "exit status 0"):
        assert expected in report(GOOD)
    emulated = attrs.evolve(GOOD, sharing=attrs.evolve(GOOD.sharing, strategy="EMULATE", slot=None))
    assert "no slot" in report(emulated)


def test_a_client_without_its_lease_is_told_by_name() -> None:
    """Invariant: a plugin whose hook failed never passes for one that counted nothing."""
    lease: Any = SimpleNamespace(state="PENDING", probepoint=None)
    target: Any = SimpleNamespace(clients=lambda: (SimpleNamespace(name="hitcount", leases=(lease,)),))
    with pytest.raises(ubpx.PluginFailed, match="argwatch"):
        client_leases(target)
    with pytest.raises(ubpx.PluginFailed, match="PENDING"):
        shared_probepoint([lease, lease])


class PretendedTarget:
    """As much of a target as the demo uses; its two clients count 40 hits each."""

    def __init__(self) -> None:
        self.places = {name: os.environ[f"UBPX_{name.upper()}_SPEC"] for name in ("hitcount", "argwatch")}
        self._shared = SimpleNamespace(address=VirtAddr(64), strategy="BOOST", slot=VirtAddr(128), clients=())
        self._leases = {name: self._lease(name) for name in self.places}

    def _lease(self, name: str) -> SimpleNamespace:
        self._shared.clients += (name,)
        return SimpleNamespace(hits=40, probepoint=self._shared, release=lambda: self._release(name))

    def _release(self, name: str) -> None:
        self._shared.clients = tuple(each for each in self._shared.clients if each != name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        assert not self._shared.clients

    def clients(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(name=name, leases=(lease,)) for name, lease in self._leases.items()]

    def probepoints(self) -> list[SimpleNamespace]:
        return [self._shared] if self._shared.clients else []


def test_the_demo_compares_with_what_the_program_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Invariant: calls come from the program, holders from the target, and our environment is as before."""
    monkeypatch.setattr("ubpx.cli.demo.run.attach", lambda pid, plugins: PretendedTarget())
    monkeypatch.setenv("UBPX_HITCOUNT_SPEC", "libc:write")
    monkeypatch.delenv("UBPX_ARGWATCH_SPEC", raising=False)
    result = run_demo(threads=2, calls=20)
    assert result.calls == 40
    assert result.sharing.clients == ("hitcount", "argwatch")
    assert result.sharing.holders == (2, 1, 0)
    assert result.ok
    assert os.environ["UBPX_HITCOUNT_SPEC"] == "libc:write"
    assert "UBPX_ARGWATCH_SPEC" not in os.environ


def test_the_program_counts_its_own_calls() -> None:
    """Invariant: what the demo compares with is right when nobody watches."""
    command = [sys.executable, "-I", str(PROGRAM), "3", "50"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
        out, _ = program.communicate("go\n", timeout=60)
    assert program.returncode == 0
    ready, answer = out.splitlines()
    assert ready == "ready"
    assert json.loads(answer)["calls"] == 150
