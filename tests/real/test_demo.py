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
