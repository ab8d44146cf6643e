"""Whole programs with a probe on every instruction: they must be what they are without."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.real.conftest import build
from ubpx.testing.plants import PLANTS

LONG_S = 600


def torture(*words: object, timeout: float = 100) -> tuple[int, dict[str, Any]]:
    """The tool's exit status and its report."""
    command = [sys.executable, "-m", "ubpx.testing.torture", "--json", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    assert done.stderr == ""
    report: dict[str, Any] = json.loads(done.stdout)
    return done.returncode, report


def assert_equal(status: int, report: dict[str, Any]) -> None:
    """The program could not tell, and each of its instructions is accounted for."""
    assert report["differences"] == []
    assert (status, report["equal"], report["problems"], report["not_probed"]) == (0, True, [], {})
    assert report["probed"] + report["refused"] == report["instructions"] > 0
    assert sum(report["refused_reasons"].values()) == report["refused"]
    assert report["hits"] >= report["reached"] > 0


def test_a_small_program_with_its_libraries() -> None:
    """Invariant: some 400,000 probes in one program and its libraries change nothing that can be seen."""
    status, report = torture("--objects", "all", "--", "expr", "5", "*", "7")
    assert_equal(status, report)
    assert report["status"] == 0
    assert any("libc.so" in path for path in report["modules"])
    assert any("ld-linux" in path for path in report["modules"])
    assert report["instructions"] > 300_000
    assert report["refused"] < report["instructions"] / 200


@pytest.mark.parametrize("flags", [(), ("-m32",)], ids=["x86_64", "i386"])
def test_threads_children_signals_faults_memory_and_an_exec(flags: tuple[str, ...]) -> None:
    """Invariant: whatever a program does, it gets the same results, and the same addresses too."""
    status, report = torture("--first-hits", 2, "--", build("ways", *flags))
    assert_equal(status, report)
    assert report["status"] == 7
    assert len(report["modules"]) == 2, "the program before its exec, and after it"


def test_probes_that_never_end(tmp_path: Path) -> None:
    """Invariant: with 0 for the number of first hits each arrival counts."""
    text = tmp_path / "text"
    text.write_text("some\nlines\n" * 20)
    few, many = (torture("--first-hits", number, "--stdin", text, "--", "wc")[1] for number in (1, 0))
    assert few["equal"] is many["equal"] is True
    assert few["hits"] == few["reached"] == many["reached"] < many["hits"]


@pytest.mark.parametrize("fault", sorted(name for name, plant in PLANTS.items() if "torture" in plant.tools))
def test_a_planted_fault_is_found(fault: str) -> None:
    """Invariant: what is broken in ubpx shows in the program, and in time, whatever it does to that."""
    status, report = torture("--plant", fault, "--timeout", 20, "--", build("ways"))
    assert (status, report["equal"]) == (1, False)
    assert report["differences"]


def test_a_program_that_does_not_end_is_ended() -> None:
    status, report = torture("--timeout", 1, "--", "sleep", 30)
    assert (status, report["equal"], report["status"]) == (1, False, None)
    assert [each.partition(":")[0] for each in report["differences"]] == ["by itself", "probed"]


@pytest.mark.parametrize("words", [(), ("--",), ("--first-hits", "-1", "--", "true"), ("--", "/nonexistent/program")])
def test_misuse_is_said(words: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "ubpx.testing.torture", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr


# For hours when nobody waits ---------------------------------------------------------------------

SHELL = """
for i in 1 2 3; do x=$(echo "number $i" | tr a-z A-Z); echo "$x" "$(expr $i + 40)"; done
( exit 3 ); echo status $?
trap 'echo signal' USR1; kill -USR1 $$
ls /usr | sort | head -3
exec echo last
"""
PYTHON = """
import collections, decimal, hashlib, json, re, subprocess, threading
def fib(n): return n if n < 2 else fib(n - 1) + fib(n - 2)
print(fib(12), json.dumps({"a": [1, 2.5, None, "x"] * 3}, sort_keys=True), object())
print(re.findall(r"(\\w+)@(\\w+)", "me@here you@there"), hashlib.sha256(b"abc").hexdigest())
print(decimal.Decimal(1) / decimal.Decimal(7), collections.Counter("mississippi"))
threads = [threading.Thread(target=lambda: sum(range(1000))) for _ in range(3)]
for each in threads: each.start()
for each in threads: each.join()
print(subprocess.run(["echo", "child"], capture_output=True).stdout)
try: 1 / 0
except ZeroDivisionError as error: print(error)
"""

COREUTILS = {
    "cat": ["TEXT"], "sort": ["-r", "TEXT"], "wc": ["TEXT"], "head": ["TEXT"], "tail": ["TEXT"],
    "cut": ["-d ", "-f1,3", "TEXT"], "uniq": ["-c", "TEXT"], "sha256sum": ["TEXT"], "md5sum": ["TEXT"],
    "base64": ["TEXT"], "seq": ["1", "200"], "factor": ["1234567890123"], "date": ["-u", "-d", "@0"],
    "expr": ["5", "*", "7"], "env": ["FOO=1", "echo", "x"], "timeout": ["20", "echo", "x"], "stat": ["-c%s", "TEXT"],
    "od": ["-c", "TEXT"], "nl": ["TEXT"], "tac": ["TEXT"], "ls": ["-l", "/usr/share/doc/gzip"],
}  # fmt: skip
OTHERS = {
    "gzip": ["-c", "TEXT"], "bzip2": ["-c", "TEXT"], "xz": ["-c", "TEXT"], "gawk": ["{s+=$1} END {print s}", "TEXT"],
    "sed": ["-n", "s/fox/cat/p", "TEXT"], "grep": ["-c", "9.*fox", "TEXT"], "tar": ["cf", "-", "TEXT"],
    "perl": ["-e", 'print join(",", map {$_*2} 1..50), "\\n"'], "find": ["/usr/share/doc/gzip"],
    "bash": ["-c", SHELL], "openssl": ["sha256", "TEXT"], "/usr/bin/python3": ["-c", PYTHON], "gdb": ["--version"],
}  # fmt: skip


@pytest.mark.torture
@pytest.mark.parametrize("program", [*COREUTILS, *OTHERS])
def test_everyday_programs(program: str, tmp_path: Path) -> None:
    """Invariant: programs as they are, their libraries included, do not notice that all of their code is probed."""
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    text = tmp_path / "text"
    text.write_text("".join(f"{number} the quick brown fox jumps\n" for number in range(1000)))
    words = [word.replace("TEXT", str(text)) for word in {**COREUTILS, **OTHERS}[program]]
    assert_equal(*torture("--objects", "all", "--", program, *words, timeout=LONG_S))


@pytest.mark.torture
@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("faults", ("load", 5)), ("faults", ("store", 5)), ("faults", ("divide", 5)), ("exits", (20,)),
        ("self_exec", ("leader", 5)), ("self_exec", ("other", 5)), ("children", (2, 3)), ("rep_movs", (20,)),
        ("guard_push", (5,)), ("exec_storm", (5, 5)), ("vfork_in_flight", ()), ("ways", ()),
    ],
)  # fmt: skip
def test_programs_that_do_what_is_hard_to_probe(program: str, words: tuple[object, ...], tmp_path: Path) -> None:
    """Invariant: all of them check their own results, in probed libraries too."""
    go = tmp_path / "go"
    go.write_text("g" * 8192)
    assert_equal(*torture("--objects", "all", "--stdin", go, "--", build(program), *words, timeout=LONG_S))
