"""Whole programs with a probe on every instruction: they must be what they are without."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.real.conftest import build
from ubpx.testing import twins
from ubpx.testing.plants import PLANTS
from ubpx.testing.torture import Verdict, _print
from ubpx.testing.twins import ProbedRun, Run

if TYPE_CHECKING:
    from collections.abc import Callable

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


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "name a program"),
        (("--",), "name a program"),
        (("--", "/nonexistent/program"), "cannot start '/nonexistent/program'"),
        (("--first-hits", "-1"), "'-1': give a number from 0 on"),
        (("--first-hits", "many"), "'many': give a number from 0 on"),
        (("--plant", "stack-segment"), "fault stack-segment is found by differential alone"),
        (("--plant", "nosuch"), "there is no fault 'nosuch' to plant"),
        (("--stdin", "/nonexistent/file"), "cannot read stdin from '/nonexistent/file': No such file"),
        (("--stdin", "/"), "cannot read stdin from '/' twice"),
        (("--stdin", "/dev/zero"), "cannot read stdin from '/dev/zero' twice"),
        *((("--timeout", text), "give seconds") for text in ("-1", "nan", "inf", "1e300", "0")),
    ],
)
def test_misuse_is_said(words: tuple[str, ...], said: str, tmp_path: Path) -> None:
    """Invariant: what is wrong is said in one line, and no program has run."""
    trace = tmp_path / "it ran"
    program = () if not words or "--" in words else ("--", "touch", str(trace))
    command = [sys.executable, "-m", "ubpx.testing.torture", *words, *program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr.splitlines()[-1]
    assert not trace.exists()


def test_stdin_is_no_pipe(tmp_path: Path) -> None:
    """Invariant: one who reads what can be read once only is told, and does not wait for a writer."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    command = [sys.executable, "-m", "ubpx.testing.torture", "--stdin", str(pipe), "--", "cat"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        done.stderr == f"ubpx: cannot read stdin from '{pipe}' twice: it is no regular file; save its contents in one\n"
    )


def alive(pid: int) -> bool:
    """Whether it is there, and has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except OSError:
        return False


@pytest.mark.parametrize("waits", [True, False], ids=["killed", "ended"])
def test_what_a_program_leaves_is_ended(waits: bool, tmp_path: Path) -> None:
    """Invariant: of what the two runs started nothing lives on, sessions of its own or not."""
    pids = tmp_path / "pids"
    script = f"setsid sleep 77 >&- 2>&- & echo $! >>{pids}; sleep 77 >&- 2>&- & echo $! >>{pids}"
    limit = 6 if waits else 60  # seconds; the first is used up twice
    status, report = torture("--timeout", limit, "--", "sh", "-c", script + ("; wait" if waits else ""))
    started = [int(line) for line in pids.read_text().split()]
    assert len(started) == 4
    assert not [pid for pid in started if alive(pid)]
    assert (status, report["problems"]) == (int(waits), [])


def test_a_descendant_that_keeps_the_output_open_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Invariant: a run whose output was not over when it was taken says so."""
    monkeypatch.setattr(twins, "_LAST_WORDS_S", 0.5)
    run = twins.run_plain(["sh", "-c", "sleep 77 & echo here"], stdin=os.devnull, timeout=50)
    told = "0.5 s after its end what the program has left still had its output open; it was ended"
    assert (run.status, run.out, run.problems) == (0, b"here\n", [told])


@pytest.mark.parametrize("run", [1, 2], ids=["by itself", "probed"])
def test_an_interrupt_ends_the_program(run: int, tmp_path: Path) -> None:
    """Invariant: whichever of the two runs, no traceback and nobody left."""
    pids = tmp_path / "pids"
    script = f"echo $$ >>{pids}; test $(wc -l <{pids}) = {run} && exec sleep 77"
    command = [sys.executable, "-m", "ubpx.testing.torture", "--", "sh", "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as tool:
        await_that(lambda: pids.exists() and pids.read_text().count("\n") == run)
        tool.send_signal(signal.SIGINT)
        out, err = tool.communicate(timeout=60)
    assert (tool.returncode, out, err) == (130, "", "ubpx: interrupted; the program was ended\n")
    assert not [line for line in pids.read_text().split() if alive(int(line))]


def await_that(condition: Callable[[], bool]) -> None:
    """Polls; fails after a minute."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_program_that_differs_by_itself_is_told_from_one_that_does_not(tmp_path: Path) -> None:
    """Invariant: a difference that is there without probes says nothing of them."""
    status, report = torture("--", "sh", "-c", "echo $$")
    assert (status, report["equal"], report["differs_by_itself"]) == (1, False, True)
    assert report["differences"][-1].startswith("the program differs by itself")
    once = f"test -e {tmp_path}/b || {{ test -e {tmp_path}/a && touch {tmp_path}/b && echo no; touch {tmp_path}/a; }}"
    status, report = torture("--", "sh", "-c", once)
    assert (status, report["equal"], report["differs_by_itself"]) == (1, False, False)
    assert len(report["differences"]) == 1


def test_people_are_told_how_it_ended_and_what_was_probed() -> None:
    command = [sys.executable, "-m", "ubpx.testing.torture", "--", str(build("ways"))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
    lines = done.stdout.splitlines()
    assert (done.returncode, done.stderr, lines[-1]) == (0, "", "equal")
    assert lines[1] == "  status 7"
    assert f"  probed: {build('ways')}" in lines


def test_people_are_told_what_was_not_probed(capsys: pytest.CaptureFixture[str]) -> None:
    run = ProbedRun(status=0, seconds={"run": 0.0}, not_probed={"/lib/odd.so": "it is odd"})
    report = Verdict(plain=Run(status=0, seconds={"run": 0.0}), probed=run).report()
    _print(report, as_json=False)
    *_, verdict, last = capsys.readouterr().out.splitlines()
    assert (verdict, last) == ("equal", "1 files with code were not probed: this says nothing of them")


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
