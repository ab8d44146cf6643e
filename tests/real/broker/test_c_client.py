"""A client in C, written after docs/reference/protocol.md alone, on a real program."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:
    from tests.real.conftest import StartProgram

SOURCE: Final = Path(__file__).parents[3] / "plugins" / "froggy" / "tests" / "client.c"
MOST_LINES: Final = 150
CALLS: Final = 500


@pytest.fixture(scope="session")
def c_client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program."""
    program = tmp_path_factory.mktemp("c") / "client"
    subprocess.run(["gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-o", program, SOURCE], check=True)
    return program


def test_it_is_short() -> None:
    """Invariant: the protocol can be spoken in a page or three."""
    assert len(SOURCE.read_text().splitlines()) <= MOST_LINES


@pytest.mark.parametrize("mode", ["sync", "notify"])
def test_it_counts_what_the_program_calls(
    c_client: Path, target_program: StartProgram, start_broker: Any, mode: str
) -> None:
    """Invariant: every hit of four threads reaches it, with the right registers."""
    program = target_program("hot_calls", "probed_lea", 4, CALLS)
    broker = start_broker("-p", str(program.pid))
    command = [c_client, broker.path, "probed_lea", str(4 * CALLS), mode]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as client:
        assert client.stdout is not None
        try:
            assert client.stdout.readline() == "ready\n"
            program.tell("g")
            assert program.number("calls") == 4 * CALLS
            said, _ = client.communicate(timeout=30)
        finally:
            client.kill()
    total = sum(range(4 * CALLS))  # each call has a number of its own
    assert said == f"hits={4 * CALLS} sum={total} broker={4 * CALLS}\n"
    assert client.returncode == 0
    assert program.tell("q").wait() == 0


def test_it_says_what_the_broker_refuses(c_client: Path, target_program: StartProgram, start_broker: Any) -> None:
    program = target_program("hot_calls", "probed_lea", 1, 1)
    broker = start_broker("-p", str(program.pid))
    command = [c_client, broker.path, "nosuch", "1", "sync"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert "no symbol for 'nosuch'" in done.stderr
