"""The ``ubpx demo`` command, as a user runs it."""

import json
import subprocess
import sys
from pathlib import Path

UBPX = Path(sys.executable).with_name("ubpx")


def test_two_plugins_share_one_probepoint_and_miss_nothing() -> None:
    """Invariant: both clients count what the program counts, and the program ends unharmed."""
    outcome = subprocess.run([UBPX, "demo", "--json"], capture_output=True, text=True, timeout=180, check=False)
    assert outcome.returncode == 0, outcome.stderr
    (line,) = outcome.stdout.splitlines()
    answer = json.loads(line)
    assert answer == {
        "calls": 10_000,
        "clients": [{"name": "hitcount", "hits": 10_000}, {"name": "argwatch", "hits": 10_000}],
        "missed": 0,
        "holders": [2, 1, 0],
        "exit": 0,
        "ok": True,
    }


def test_the_report_for_people() -> None:
    outcome = subprocess.run([UBPX, "demo"], capture_output=True, text=True, timeout=180, check=False)
    assert outcome.returncode == 0, outcome.stderr
    assert "holders     2 -> 1 -> 0" in outcome.stdout
    assert "hitcount: 10,000 hits" in outcome.stderr
    assert "argwatch: argument 0 of 10,000 calls" in outcome.stderr


def test_three_client_processes_share_one_address_and_one_is_killed() -> None:
    """Invariant: who is killed -9 amid its hits is swept; the others, and the program, miss nothing."""
    command = [str(Path(sys.executable).with_name("ubpx")), "demo", "--broker", "--json"]
    outcome = subprocess.run(command, capture_output=True, text=True, timeout=150, check=False)
    assert (outcome.returncode, outcome.stderr) == (0, "")
    said = json.loads(outcome.stdout)
    assert said["calls"] == 10_000
    counts = {each["name"]: each for each in said["clients"]}
    assert counts.keys() == {"tracer", "coverage", "arguments"}
    assert counts["tracer"] == {"name": "tracer", "hits": 10_000, "dropped": 0, "killed": False}
    assert counts["coverage"]["hits"] + counts["coverage"]["dropped"] == 10_000
    assert counts["arguments"]["killed"]
    assert 0 < counts["arguments"]["hits"] < 10_000
    for moment, names in (("before", set(counts)), ("after", {"tracer", "coverage"})):
        ((target,),) = [broker["targets"] for broker in said[moment]["brokers"]]
        assert {each["name"] for each in target["clients"]} == names
        (place,) = target["probepoints"]
        assert {lease["client"] for lease in place["leases"]} == names
        assert target["holds"] == []
    assert (said["missed"], said["exit"], said["ok"]) == (0, 0, True)
