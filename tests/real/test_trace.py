"""``ubpx trace``, as a user runs it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ubpx.cli.trace.run import MOST_WAITING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.real.conftest import PluginDirectory, StartProgram

UBPX = str(Path(sys.executable).with_name("ubpx"))
PATIENCE_S = 60


@pytest.fixture
def built(target_program: StartProgram) -> Callable[[str], str]:
    """The path of a target program, which is built if need be."""
    return lambda name: str(target_program.build(name))


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts ``ubpx trace`` with pipes, as the leader of a process group; ends it after the test."""
    started: list[subprocess.Popen[str]] = []

    def start_trace(*arguments: str) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        command = [UBPX, "trace", *arguments]
        trace = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, process_group=0)
        started.append(trace)
        return trace

    yield start_trace
    for trace in started:
        with trace:
            if trace.poll() is None:
                trace.terminate()
                try:
                    trace.wait(PATIENCE_S)
                except subprocess.TimeoutExpired:
                    os.killpg(trace.pid, signal.SIGKILL)


def trace(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run it to its end."""
    return subprocess.run(
        [UBPX, "trace", *arguments], capture_output=True, text=True, timeout=PATIENCE_S, check=False, **options
    )


@pytest.mark.contract("command-4")
def test_a_shim_that_execs_several_times_is_counted_through_them_all() -> None:
    """Invariant: leases arm again at each exec; the one object is the last line of stdout; CMD's output is its own."""
    script = "exec sh -c 'exec sh -c \"echo one; echo two\"'"
    outcome = trace("-e", "libc.so.6:write", "--count", "--json", "--", "sh", "-c", script)
    assert (outcome.returncode, outcome.stderr) == (0, "")
    *output, counts = outcome.stdout.splitlines()
    assert output == ["one", "two"]
    assert json.loads(counts) == {"counts": {"libc.so.6:write": 2}}


def test_python_is_traced_whatever_starts_it() -> None:
    outcome = trace("-e", "libc.so.6:write", "--count", "--json", "--", "python3", "-c", "print(1)")
    assert (outcome.returncode, outcome.stderr) == (0, "")
    printed, counts = outcome.stdout.splitlines()
    assert printed == "1"
    assert json.loads(counts)["counts"]["libc.so.6:write"] >= 1


@pytest.mark.contract("command-1", "command-5")
def test_lines_go_to_stderr_and_the_programs_output_stays_clean() -> None:
    """Invariant: stdin, stdout and stderr of CMD are ours; exit status 0 whatever it returned."""
    outcome = trace("-e", "libc:write", "--", "sh", "-c", "read line; echo $line; echo e >&2; exit 3", input="in\n")
    assert outcome.returncode == 0
    assert outcome.stdout == "in\n"
    ours = [line for line in outcome.stderr.splitlines() if "libc:write(" in line]
    assert [line for line in outcome.stderr.splitlines() if line not in ours] == ["e"]
    assert len(ours) == 2


@pytest.mark.contract("command-1", "command-3")
def test_json_lines_have_the_fields_of_a_hit(built: Callable[[str], str], tmp_path: Path) -> None:
    """Invariant: with -o the lines are in the file, whole; each has exactly the promised fields."""
    file = tmp_path / "lines"
    outcome = trace("-e", "answer", "--json", "-o", str(file), "--", built("echo"), input="4\n5\nx 9\n")
    assert (outcome.returncode, outcome.stderr) == (0, "")
    assert outcome.stdout.splitlines() == ["ready", "answer=5", "answer=6"]
    records = [json.loads(line) for line in file.read_text().splitlines()]
    assert [record["args"][0] for record in records] == [4, 5]
    for record in records:
        assert list(record) == ["time", "pid", "tid", "symbol", "address", "args"]
        assert record["symbol"] == "answer"
        assert record["pid"] == record["tid"]
        assert isinstance(record["time"], float)
        assert [type(each) for each in (record["address"], *record["args"])] == [int] * 7
    assert records[0]["time"] <= records[1]["time"]


def test_several_specs_and_options_of_the_command(built: Callable[[str], str]) -> None:
    """Invariant: -e may be repeated, also with the same; what follows CMD is CMD's, -- or not."""
    arguments = ("-e", "answer", "-e", "long_insn", "-e", "answer", "--count", "--json", built("echo"), "0", "-e", "--")
    outcome = trace(*arguments, input="1\n2\nq\n")
    assert outcome.returncode == 0, outcome.stderr
    assert json.loads(outcome.stdout.splitlines()[-1]) == {"counts": {"answer": 2, "long_insn": 0}}


def test_counts_for_people_and_in_a_file(built: Callable[[str], str], tmp_path: Path) -> None:
    outcome = trace("-e", "answer", "-e", "long_insn", "--count", "--", built("echo"), input="1\n2\nq\n")
    assert outcome.stderr == "2 answer\n0 long_insn\n"
    assert outcome.stdout == "ready\nanswer=2\nanswer=3\n"
    file = tmp_path / "counts"
    outcome = trace("-e", "answer", "--count", "--json", "-o", str(file), "--", built("echo"), input="q\n")
    assert outcome.stdout.splitlines()[-1] == file.read_text().rstrip("\n") == '{"counts": {"answer": 0}}'


def test_nothing_is_lost_behind_a_slow_reader(built: Callable[[str], str], start: Any) -> None:
    """Invariant: a reader slower than the program slows the program; every call is in a line of its own."""
    calls = MOST_WAITING // 2
    running = start("-e", "probed_lea", "--json", "--", built("hot_calls"), "probed_lea", "4", str(calls))
    assert running.stdout.readline() == "ready\n"
    running.stdin.write("gq")
    running.stdin.flush()
    first = running.stderr.readline()
    assert running.poll() is None
    records = [json.loads(line) for line in (first, *running.stderr)]
    assert len(records) == 4 * calls
    assert len({record["tid"] for record in records}) == 4
    assert running.stdout.read() == f"calls={4 * calls}\n"
    assert running.wait(PATIENCE_S) == 0


COUNTS_SIGINT = """
import signal, sys, time
got = []
signal.signal(signal.SIGINT, lambda *_: got.append(1))
print("ready", flush=True)
while not got:
    time.sleep(0.01)
time.sleep(0.5)  # for a second one
print(len(got), flush=True)
if len(sys.argv) > 1:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    print("again", flush=True)
    time.sleep(100)
sys.exit(7)
"""


def to_group(running: subprocess.Popen[str]) -> None:
    os.killpg(running.pid, signal.SIGINT)


def to_us_alone(running: subprocess.Popen[str]) -> None:
    running.send_signal(signal.SIGINT)


@pytest.mark.contract("command-6")
@pytest.mark.parametrize("send", [to_group, to_us_alone])
def test_ctrl_c_reaches_the_command_once_and_the_trace_ends_with_it(start: Any, send: Any) -> None:
    """Invariant: whether sent to the group (by a terminal) or to us alone, CMD gets the signal exactly once."""
    running = start("-e", "libc:write", "--count", "--", sys.executable, "-c", COUNTS_SIGINT)
    assert running.stdout.readline() == "ready\n"
    send(running)
    assert running.stdout.read() == "1\n"
    assert running.wait(PATIENCE_S) == 0
    assert running.stderr.read().endswith(" libc:write\n")


@pytest.mark.parametrize("send", [to_group, to_us_alone])
def test_ctrl_c_ends_a_command_that_does_not_catch_it(start: Any, send: Any) -> None:
    """Invariant: a second signal is passed on like the first; killed by one, CMD ends the trace with status 0."""
    running = start("-e", "libc:write", "--count", "--json", "--", sys.executable, "-c", COUNTS_SIGINT, "die")
    assert running.stdout.readline() == "ready\n"
    send(running)
    assert running.stdout.readline() == "1\n"
    assert running.stdout.readline() == "again\n"
    send(running)
    assert json.loads(running.stdout.read())["counts"]["libc:write"] >= 3
    assert running.wait(PATIENCE_S) == 0


@pytest.mark.contract("command-2", "command-7")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_running_process_is_traced_live_and_left_unharmed(
    start: Any, target_program: StartProgram, number: int
) -> None:
    """Invariant: with -p lines go to stdout as hits happen; the signal detaches, with status 0, and nothing is left."""
    program = target_program("echo", 2)
    maps = program.maps()
    running = start("-e", "answer", "-e", "0x10", "-p", str(program.pid))
    assert running.wait(PATIENCE_S) == 1
    program.assert_untouched(maps)
    running = start("-e", "busy", "-e", "answer", "--json", "-p", str(program.pid))
    assert json.loads(running.stdout.readline())["symbol"] == "busy"
    assert program.answer(41) == 42
    assert any(json.loads(line)["args"][0] == 41 for line in iter(running.stdout.readline, ""))
    running.send_signal(number)
    rest = running.stdout.read()
    assert all(json.loads(line)["symbol"] == "busy" for line in rest.splitlines())
    assert running.wait(PATIENCE_S) == 0
    assert running.stderr.read() == ""
    program.assert_untouched(maps)
    assert program.answer(1) == 2


def test_a_process_that_ends_ends_the_trace(start: Any, target_program: StartProgram) -> None:
    program = target_program("echo", 1)
    running = start("-e", "busy", "-p", str(program.pid))
    assert "busy(" in running.stdout.readline()
    program.tell("x 6\n")
    assert running.wait(PATIENCE_S) == 0
    assert program.wait() == 6


def test_an_output_that_nobody_reads_any_more_ends_it_quietly(start: Any, target_program: StartProgram) -> None:
    """Invariant: as with | head -1: no complaint; a process of others is left alone, CMD runs to its end."""
    program = target_program("echo", 2)
    maps = program.maps()
    running = start("-e", "busy", "-p", str(program.pid))
    assert "busy(" in running.stdout.readline()
    running.stdout.close()
    assert running.wait(PATIENCE_S) == 0
    assert running.stderr.read() == ""
    program.assert_untouched(maps)
    script = "for i in 1 2 3 4; do echo $i; sleep 0.01; done; echo over"
    running = start("-e", "libc:write", "--", "sh", "-c", script)
    assert "libc:write(" in running.stderr.readline()
    running.stderr.close()
    assert running.stdout.read() == "1\n2\n3\n4\nover\n"
    assert running.wait(PATIENCE_S) == 0


def test_an_output_that_cannot_be_written_leaves_the_command_alone(tmp_path: Path) -> None:
    """Invariant: one line, status 1; CMD runs to its end if it had begun, and is not begun if it had not."""
    script = "for i in 1 2 3; do echo $i; done"
    outcome = trace("-e", "libc:write", "-o", "/dev/full", "--", "sh", "-c", script)
    assert (outcome.returncode, outcome.stdout) == (1, "1\n2\n3\n")
    assert outcome.stderr.startswith("ubpx: cannot write: /dev/full (No space left on device); ")
    outcome = trace("-e", "libc:write", "-o", str(tmp_path / "no" / "file"), "--", "sh", "-c", script)
    assert (outcome.returncode, outcome.stdout) == (1, "")
    assert "no/file (No such file or directory); " in outcome.stderr


@pytest.mark.contract("command-5")
def test_a_spec_whose_module_never_came_is_told(built: Callable[[str], str]) -> None:
    """Invariant: what never armed is status 1, by name and with the reason; the others are counted."""
    outcome = trace("-e", "libnone:f", "-e", "answer", "--count", "--", built("echo"), input="1\nq\n")
    assert outcome.returncode == 1
    assert outcome.stderr.splitlines()[:2] == ["1 answer", "0 libnone:f"]
    assert outcome.stderr.splitlines()[2].startswith(
        "ubpx: libnone:f never armed: module 'libnone' is not mapped in the process; mapped are "
    )


def test_a_spec_waits_for_its_module() -> None:
    """Invariant: a module that the program loads later is probed from its first call on."""
    file = getattr(import_module("_ctypes"), "__file__", None)
    if file is None:
        pytest.skip("this Python has _ctypes built in")
    spec = f"{Path(file).name}:PyInit__ctypes"
    outcome = trace("-e", spec, "--count", "--json", "--", sys.executable, "-c", "import ctypes")
    assert (outcome.returncode, outcome.stderr) == (0, "")
    assert json.loads(outcome.stdout) == {"counts": {spec: 1}}


HALF = """
    from ubpx.hookspecs import hookimpl
    class Sink:
        def begin(self): return "begin\\n"
        def hit(self, record): return f"{record.symbol} {record.args[0]}\\n"
        def counts(self, counts): return f"{dict(counts)}\\n"
        def end(self): return "end\\n"
    class Plugin:
        @hookimpl
        def ubpx_sinks(self):
            return {"half": Sink, "json": None or Sink}
"""


def test_a_plugin_brings_a_format(built: Callable[[str], str], plugin_directory: PluginDirectory) -> None:
    """Invariant: the hook ubpx_sinks fires; its text is written as it is; ours cannot be replaced."""
    plugin_directory.install("halves", HALF)
    command = ("-e", "answer", "--format", "half", "--", built("echo"))
    outcome = trace(*command, input="1\n2\nq\n", env=plugin_directory.environment)
    warned, *lines = outcome.stderr.splitlines()
    assert outcome.returncode == 0
    assert warned == "ubpx: plugin 'halves' offers 'json', which there is already; its own is left out"
    assert lines == ["begin", "answer 1", "answer 2", "end"]
    outcome = trace("--count", *command, input="1\n2\nq\n", env=plugin_directory.environment)
    assert outcome.stderr.splitlines()[1:] == ["{'answer': 2}"]


def test_client_plugins_are_activated_by_name(built: Callable[[str], str]) -> None:
    """Invariant: a plugin acts beside the trace when --with names it."""
    environment = {**os.environ, "UBPX_HITCOUNT_SPEC": "answer"}
    command = ("-e", "answer", "--count", "--with", "hitcount", "--", built("echo"))
    outcome = trace(*command, input="1\n2\nq\n", env=environment)
    assert outcome.returncode == 0
    assert "hitcount: 2 hits in process" in outcome.stderr
    assert "2 answer\n" in outcome.stderr


FAULTY = """
    from ubpx.hookspecs import hookimpl
    class Plugin:
        @hookimpl
        def ubpx_process_attached(self, client, process):
            client.probe("answer", self.fail)
        def fail(self, hit):
            raise ValueError("on purpose")
"""


def test_a_plugin_that_is_quarantined_is_something_missed(
    built: Callable[[str], str], plugin_directory: PluginDirectory
) -> None:
    plugin_directory.install("faulty", FAULTY)
    command = ("-e", "answer", "--count", "--json", "--with", "faulty", "--", built("echo"))
    outcome = trace(*command, input="1\n2\n3\n4\nq\n", env=plugin_directory.environment)
    assert outcome.returncode == 1
    assert json.loads(outcome.stdout.splitlines()[-1]) == {"counts": {"answer": 4}}
    assert "Traceback" not in outcome.stderr
    assert outcome.stderr.splitlines()[-1].startswith("ubpx: plugin 'faulty' was quarantined: 3 exceptions in a row")


def test_a_program_file_that_is_spoilt(built: Callable[[str], str], tmp_path: Path) -> None:
    """Invariant: UnreadableModule on the command line: one line, status 1, and the program never began."""
    path = tmp_path / "spoilt"
    shutil.copy(built("echo"), path)
    data = bytearray(path.read_bytes())
    data[40:48] = b"\xff" * 7 + b"\x7f"  # e_shoff
    path.write_bytes(data)
    outcome = trace("-e", "answer", "--", str(path), input="q\n")
    assert (outcome.returncode, outcome.stdout, outcome.stderr.count("\n")) == (1, "", 1)
    assert outcome.stderr.startswith(f"ubpx: cannot read the symbols of '{path}': ")
