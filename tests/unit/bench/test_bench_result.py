"""What bench makes of its rounds: figures, verdicts, tables, and the README's part."""

from __future__ import annotations

import copy
import datetime as dt
import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

import run as bench
from harness.figures import Demand, Figure, missed
from harness.peers import PEERS, Peer, Run, all_peers
from harness.programs import ROOT, BenchError
from harness.result import as_json
from harness.rounds import YARDSTICK, Row, ratio
from harness.settings import Settings
from harness.table import BEGIN, END, as_markdown, as_text, by_cost, number, replaced
from measures import hits

MACHINE = {
    "processor": "Fast <One>",
    "processors": 2,
    "kernel": "6.18",
    "python": "3.11.7",
    "ubpx": "0.1.0",
    "commit": "abc",
    "load": 0.5,
}


def row(name: str, *spans: float, missing: str = "", invalid: str = "", notes: dict[str, float] | None = None) -> Row:
    """A tool's rounds, in microseconds."""
    peer = Peer(name=name, title=f"the {name}", script=PEERS / f"{name}.py", calls=100)
    yardstick = None if name == "c_one_stop" else row("c_one_stop", 10.0, 8.0, 10.0)
    runs = [Run(span * 1000, 125, 125, "peer", notes or {}) for span in spans]
    return Row(peer, runs, missing, invalid, yardstick)


ROWS = {
    each.peer.name: each
    for each in (
        row("ubpx_counts", 12.0, 16.0, 15.0),
        row("c_one_stop", 10.0, 8.0, 10.0),
        row("lldb_callback", missing="lldb is not installed"),
        row("gdb_python", 100.0, invalid="the gdb_python: 124 hits, 125 calls"),
    )
}
FIGURES = [
    Figure(name="good", title="what is good", value=1.5, demand=Demand(most=1.8, aim=1.4)),
    Figure(name="bad", title="what is bad", value=2.0, demand=Demand(least=4.0)),
    Figure(name="free", title="what is free", value=0.01, unit="ms"),
    Figure(name="none", title="what was not had", value=None, demand=Demand(most=1), missing="for want of it"),
]


@pytest.fixture
def result() -> dict[str, Any]:
    """One run's, as it would be read from its file."""
    made = as_json(
        machine=MACHINE,
        began=dt.datetime(2026, 11, 26, tzinfo=dt.UTC),
        rounds=3,
        rows=ROWS,
        figures=FIGURES,
        failures=["the gdb_python: 124 hits, 125 calls"],
    )
    read: dict[str, Any] = json.loads(json.dumps(made))
    return read


def test_rounds_are_compared_with_each_other() -> None:
    """Invariant: a ratio is the median of what single rounds say, so that what slows the machine slows both."""
    found = ratio(ROWS["ubpx_counts"], ROWS["c_one_stop"])
    assert found is not None
    assert (found.value, found.low, found.high) == (1.5, 1.2, 2.0)


@pytest.mark.parametrize("name", ["lldb_callback", "gdb_python"])
def test_what_is_missing_or_wrong_has_no_number(result: dict[str, Any], name: str) -> None:
    """Invariant: neither the JSON nor a table has a figure for it, but all have the reason."""
    assert ROWS[name].median is None
    assert ratio(ROWS[name], ROWS["c_one_stop"]) is None
    (peer,) = [peer for peer in result["peers"] if peer["name"] == name]
    numbers = ("us", "low_us", "high_us", "over_c_one_stop", "calls", "hits", "counted_by")
    assert [peer[key] for key in numbers] == [None] * len(numbers)
    reason = peer["missing"] or peer["invalid"]
    assert reason in as_text(result)
    assert reason in as_markdown(result, "picture.svg")
    assert f"| the {name} |" not in as_markdown(result, "picture.svg")


def test_both_counts_are_in_the_result(result: dict[str, Any]) -> None:
    (peer,) = [peer for peer in result["peers"] if peer["name"] == "ubpx_counts"]
    assert (peer["calls"], peer["hits"], peer["counted_by"], peer["us"]) == (375, 375, "peer", 15.0)
    assert peer["over_c_one_stop"] == 1.5


def test_verdicts_say_what_is_met_and_what_is_missed(result: dict[str, Any]) -> None:
    """Invariant: what was not measured has not been reached; where nothing is demanded nothing is said."""
    assert [each.verdict for each in FIGURES] == ["met", "MISSED", "", "not measured"]
    assert [each.name for each in missed(FIGURES)] == ["bad", "none"]
    assert result["missed"] == ["bad", "none"]
    assert result["values"] == {"good": 1.5, "bad": 2.0, "free": 0.01, "none": None}
    lines = as_text(result).splitlines()
    (good,) = [line.split() for line in lines if line.startswith("what is good")]
    assert good == ["what", "is", "good", "1.50", "x", "at", "most", "1.8", "(aim", "1.4)", "met"]
    (bad,) = [line.split() for line in lines if line.startswith("what is bad")]
    assert bad == ["what", "is", "bad", "2.00", "x", "at", "least", "4", "missed"]
    assert "NOT VALID: the gdb_python: 124 hits, 125 calls" in lines
    assert lines[-1] == "missed: bad, none"


@pytest.mark.parametrize(("value", "met"), [(1.79, True), (1.8, True), (1.81, False)])
def test_a_limit_is_still_within(value: float, met: bool) -> None:
    assert Demand(most=1.8).met_by(value) is met
    assert Demand(least=1.8).met_by(value) is (not met or value == 1.8)


def test_the_cheapest_comes_first(result: dict[str, Any]) -> None:
    assert [peer["name"] for peer in by_cost(result)][:2] == ["c_one_stop", "ubpx_counts"]


@pytest.mark.parametrize(("value", "shown"), [(0.456, "0.46"), (12.34, "12.3"), (123.4, "123"), (2345.6, "2,346")])
def test_numbers_have_three_digits(value: float, shown: str) -> None:
    assert number(value) == shown


def test_the_readme_keeps_all_but_the_table() -> None:
    page = f"above\n{BEGIN}\nold\n{END}\nbelow\n"
    assert replaced(page, "new") == f"above\n{BEGIN}\nnew\n{END}\nbelow\n"
    for broken in ("no marks", f"{END}\n{BEGIN}", f"{BEGIN}\n{BEGIN}\n{END}"):
        with pytest.raises(ValueError, match="each once"):
            replaced(broken, "new")


def test_the_readme_and_the_manual_have_their_places() -> None:
    """Invariant: there is where to put the table, and the manual says of every peer what it is."""
    page = (ROOT / "README.md").read_text()
    assert "the table" in replaced(page, "the table")
    assert bench.PICTURE in page
    assert ET.parse(ROOT / bench.PICTURE).getroot().tag.endswith("svg")
    manual = (ROOT / "docs" / "how-to" / "benchmarks.md").read_text()
    assert [peer.name for peer in all_peers() if f"| `{peer.name}` |" not in manual] == []


def test_every_peer_says_what_it_is() -> None:
    """Invariant: a title of its own, calls to make, and for each that is demanded of a peer there is that peer."""
    peers = {peer.name: peer for peer in all_peers()}
    assert len({peer.title for peer in peers.values()}) == len(peers)
    assert min(peer.calls for peer in peers.values()) >= 100
    assert {*hits.FASTER, YARDSTICK, hits.COUNTING, "c_stub", "ubpx_registers"} <= peers.keys()
    assert peers["gdbserver_condition"].stops == 2
    assert peers["frida_interceptor"].packages == ("frida",)


def pretend(monkeypatch: pytest.MonkeyPatch, figures: list[Figure], error: str = "") -> None:
    """Let bench measure nothing, and find this."""

    def measure(_: Settings) -> list[Figure]:
        if error:
            raise BenchError(error)
        return figures

    monkeypatch.setattr(bench, "MEASURES", {"threads": measure, "arming": lambda _: [FIGURES[0]]})
    monkeypatch.setattr("run.os.sched_setaffinity", lambda *_: None)


def ended(tmp_path: Path, *words: str) -> tuple[int, dict[str, Any]]:
    """Exit status and written result of a run of the two parts that ``pretend`` has left."""
    file = tmp_path / "deep" / "result.json"
    asked = ["--only", "threads", "--only", "arming", "--json", str(file), "--svg", str(tmp_path / "x.svg"), *words]
    status = bench.main(asked)
    return status, json.loads(file.read_text())


@pytest.mark.parametrize(
    ("index", "words", "wanted"),
    [(0, [], 0), (1, [], 0), (1, ["--strict"], 1), (0, ["--strict"], 0), (3, ["--strict"], 1), (2, ["--strict"], 0)],
)
def test_what_is_missed_counts_if_asked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, index: int, words: list[str], wanted: int
) -> None:
    """Invariant: the exit status is 0 where all was valid; with --strict also what is demanded counts."""
    pretend(monkeypatch, [FIGURES[index]])
    status, written = ended(tmp_path, *words)
    assert (status, written["valid"]) == (wanted, True)
    assert [figure["name"] for figure in written["figures"]] == [FIGURES[index].name, "good"]


def test_a_part_that_fails_keeps_no_other_from_being_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Invariant: the run is not valid, its status 1, and the result has what there is, and why."""
    pretend(monkeypatch, [], "12 hits, 13 calls")
    status, written = ended(tmp_path)
    assert (status, written["valid"], written["failures"]) == (1, False, ["threads: 12 hits, 13 calls"])
    assert [figure["name"] for figure in written["figures"]] == ["good"]
    assert "NOT VALID: threads: 12 hits, 13 calls" in capsys.readouterr().out


def test_a_result_is_shown_and_published_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, result: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """Invariant: what the README shows is made from the file; what is not valid is not published."""
    readme, file = tmp_path / "README.md", tmp_path / "result.json"
    (tmp_path / "docs").mkdir()
    monkeypatch.setattr(bench, "ROOT", tmp_path)
    monkeypatch.setattr(bench, "README", readme)
    words = ["--from", str(file), "--svg", str(tmp_path / "x.svg"), "--publish"]
    for valid in (False, True):
        readme.write_text(f"head\n{BEGIN}\n{END}\ntail\n")
        file.write_text(json.dumps({**copy.deepcopy(result), "valid": valid}))
        assert bench.main(words) == (0 if valid else 1)
        assert ("| **the ubpx_counts** | 15.0 | 1.50 x |" in readme.read_text()) is valid
        assert (tmp_path / bench.PICTURE).exists() is valid
    assert f"![What one hit costs, by tool, on a logarithmic scale]({bench.PICTURE})" in readme.read_text()
    assert "Measured on 2026-11-26, Fast <One>, 2 processors" in readme.read_text()
    assert "| what is bad | 2.00 x | at least 4 | missed |" in readme.read_text()
    assert "| what is free |" not in readme.read_text()
    told = capsys.readouterr()
    assert "what is bad" in told.out
    assert told.err.count("the README stays as it is") == 1


@pytest.mark.parametrize(
    "words", [["--rounds", "0"], ["--scale", "0"], ["--only", "nothing"], ["--publish", "--only", "host"]]
)
def test_a_command_line_that_cannot_be_right(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        bench.main(words)
    assert ended.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_the_thousandth_client_is_a_slope() -> None:
    """Invariant: what 900 more clients add, each, by the call of Python that the same run has measured."""
    few, many = row("clients_100", 100.0, 120.0), row("clients_1000", 190.0, 210.0, notes={"bare_call_ns": 50.0})
    figure = hits.thousandth({"clients_100": few, "clients_1000": many})
    assert (figure.value, figure.details) == (2.0, {"added_ns": 100.0, "bare_call_ns": 50.0})
    absent = hits.thousandth({"clients_100": few, "clients_1000": row("clients_1000", missing="not here")})
    assert (absent.value, absent.missing) == (None, "the clients_1000: not here")
