"""Bad input through the command line: every error that a command can meet is one line, with its exit status."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import ubpx

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.real.conftest import PluginDirectory, StartProgram

UBPX = str(Path(sys.executable).with_name("ubpx"))
PF_KTHREAD = 0x0020_0000
UNPRIVILEGED = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")


def fails(*command: str, status: int, env: Mapping[str, str] | None = None, within: tuple[str, ...] = ()) -> str:
    """The one line that ``ubpx`` says; it ends with the status, says nothing else, and shows no traceback."""
    line = [*within, UBPX, *command]
    outcome = subprocess.run(line, input="q\n", capture_output=True, text=True, timeout=60, check=False, env=env)
    assert (outcome.returncode, outcome.stdout) == (status, ""), outcome.stderr
    assert outcome.stderr.count("\n") == 1, outcome.stderr
    said = outcome.stderr.rstrip("\n")
    assert said.startswith("ubpx: ")
    assert said.isprintable()
    assert "; " in said, "it says what to do next"
    return said.removeprefix("ubpx: ")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "missing option '-e'"),
        (("-e", "x"), "say what to trace: either -p PID or -- CMD"),
        (("-e", "x", "-p", "1", "--", "true"), "say what to trace: either -p PID or -- CMD"),
        (("-e", "x", "-p", "one"), "invalid value for '-p'"),
        (("-e", "x", "-p", "0"), "invalid value for '-p'"),
        (("-e", "x", "--json", "--format", "text", "--", "true"), "--json and --format text exclude each other"),
        (("-e", "x", "--format", "odd", "--", "true"), "'odd' is no format; there are text, json"),
        (("--colour",), "no such option"),
        (("-e", ":", "--", "true"), "':' is not a probe specification"),
        (("-e", "libc:\x1b[2J", "--", "true"), "'libc:\\x1b[2J' is not a probe specification"),
        (("-e", "libc:write", "--with", "nobody", "--", "true"), "no plugin is named 'nobody'"),
        (("-e", "libc:write", "--with", "symbols", "--", "true"), "plugin 'symbols' implements no client hook"),
    ],
)
def test_words_that_cannot_be_right(arguments: tuple[str, ...], said: str) -> None:
    """Invariant: usage errors, click's and ours, are status 2."""
    assert fails("trace", *arguments, status=2).startswith(said)


def test_an_ancestor_is_not_traced() -> None:
    said = fails("trace", "-e", "libc:write", "-p", str(os.getpid()), status=2)
    assert said.startswith(f"{os.getpid()} is an ancestor of this process")


def test_a_command_that_does_not_exist() -> None:
    assert fails("tracee", status=2).startswith("no such command")


@pytest.mark.parametrize("command", ["/no/such/program", "/etc/passwd"])
def test_a_command_that_cannot_be_started(command: str) -> None:
    said = fails("trace", "-e", "libc:write", "--", command, status=1)
    assert said.startswith(f"cannot start {command!r}: ")


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("anwser", "no symbol for 'anwser'; did you mean answer, "),
        ("some_data", "cannot probe 0x"),
        ("0x10", "cannot probe 0x10: nothing is mapped there; "),
        ("long_insn+1", "cannot probe 0x"),
        ("refused_hlt", "cannot probe 'hlt"),
        ("refused_int3", "a trap that ubpx did not write stands at 0x"),
        ("libc:time", "'libc:time' has several implementations (IFUNC)"),
    ],
)
def test_a_place_that_cannot_be_probed(target_program: StartProgram, spec: str, said: str) -> None:
    """Invariant: the program is not begun (its "ready" is not said), and nothing is left of it."""
    command = ("trace", "-e", "answer", "-e", spec, "--", str(target_program.build("echo")))
    assert fails(*command, status=1).startswith(said)


def test_a_name_with_two_addresses(target_program: StartProgram) -> None:
    said = fails("trace", "-e", "twin", "--", str(target_program.build("twins")), status=1)
    assert said.startswith("'twin' has several addresses: 0x")


def test_a_process_that_is_not_there(target_program: StartProgram) -> None:
    """Invariant: NoSuchProcess, and TargetGone for one that has ended and was not reaped."""
    program = target_program("brief", 0, 7, ready=False)
    os.waitid(os.P_PID, program.pid, os.WEXITED | os.WNOWAIT)
    said = fails("trace", "-e", "main", "-p", str(program.pid), status=1)
    assert said.startswith(f"process {program.pid} has ended; ")
    assert program.wait() == 7
    said = fails("trace", "-e", "main", "-p", str(program.pid), status=1)
    assert said.startswith(f"no process has pid {program.pid}; ")


def test_a_kernel_thread() -> None:
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            flags = int(stat.read_text().rpartition(")")[2].split()[6])
        except OSError:
            continue
        if flags & PF_KTHREAD:
            assert "is a kernel thread; " in fails("trace", "-e", "main", "-p", stat.parent.name, status=1)
            return
    pytest.skip("no kernel thread is visible in this PID namespace")


def test_a_process_that_is_traced(target_program: StartProgram) -> None:
    tracer = target_program("own_tracer", ready=False)
    child = tracer.number("child")
    tracer.expect("ready")
    said = fails("trace", "-e", "main", "-p", str(child), status=1)
    assert said.startswith(f"cannot attach to {child}: already traced by {tracer.pid} (")
    assert tracer.tell("q").wait() == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has privileges to drop")
def test_a_process_that_may_not_be_traced(target_program: StartProgram) -> None:
    """Invariant: PermissionRefused says why, and what would help."""
    program = target_program("echo")
    said = fails("trace", "-e", "answer", "-p", str(program.pid), status=1, within=UNPRIVILEGED)
    assert said.startswith(f"may not trace {program.pid}: it has capabilities that ubpx has not; give ubpx the cap")
    assert program.answer(1) == 2


HOLDER = """
    from ubpx.hookspecs import hookimpl
    class Plugin:
        @hookimpl
        def ubpx_process_attached(self, client):
            client.probe("answer", lambda hit: None, exclusive=True)
"""
FAILING_TRACER = """
    from ubpx.hookspecs import hookimpl
    class Plugin:
        @hookimpl(tryfirst=True)
        def ubpx_open_tracer(self):
            raise ValueError("out of order")
"""


def test_a_place_that_somebody_holds(target_program: StartProgram, plugin_directory: PluginDirectory) -> None:
    """Invariant: ProbepointBusy names the holder."""
    plugin_directory.install("holder", HOLDER)
    command = ("trace", "-e", "answer", "--with", "holder", "--", str(target_program.build("echo")))
    assert " is held by client 'holder'; " in fails(*command, status=1, env=plugin_directory.environment)


def test_a_plugin_that_fails(plugin_directory: PluginDirectory) -> None:
    """Invariant: PluginFailed, whether the plugin cannot answer or cannot even be loaded."""
    plugin_directory.install("failing", FAILING_TRACER)
    command = ("trace", "-e", "libc:write", "--", "true")
    said = fails(*command, status=1, env=plugin_directory.environment)
    assert said.startswith("plugin 'ubpx_open_tracer' failed: ValueError: out of order; ")


def test_no_tracer(plugin_directory: PluginDirectory) -> None:
    """Invariant: without the tracer's distribution the error says what to install; doctor says the same."""
    plugin_directory.hide("ubpx_ptracepp")
    environment = plugin_directory.environment
    said = fails("trace", "-e", "libc:write", "--", "true", status=1, env=environment)
    assert said == str(ubpx.NoTracer())
    assert fails("doctor", "-p", str(os.getpid()), status=1, env=environment) == said
    outcome = subprocess.run([UBPX, "doctor"], env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert outcome.returncode == 1
    assert "no tracer is installed" in outcome.stdout
    assert "pip install ubpx-ptracepp" in outcome.stdout


@pytest.mark.parametrize("command", ["plugins", "doctor", "--help"])
def test_a_reader_that_has_gone_is_no_error(command: str) -> None:
    """Invariant: as with | head: nothing is said of it."""
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "wb") as nobody:
        outcome = subprocess.run([UBPX, command], stdout=nobody, stderr=subprocess.PIPE, timeout=60, check=False)
    assert outcome.stderr == b""
