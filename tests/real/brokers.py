"""Tests marked ``over_both`` run twice: over ``ubpx.attach``, and over a broker and ``ubpx.connect``."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

import ubpx

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.real.conftest import Program

UBPX: Final = (sys.executable, "-c", "from ubpx.cli import main; main()")
PATIENCE_S: Final = 30.0


class BrokerProcess:
    """``ubpx serve`` in a process of its own."""

    def __init__(self, directory: Path, *arguments: str, **popen_options: Any) -> None:
        self.path: Final = str(directory / "socket")
        command = [*UBPX, "serve", "--socket", self.path, *arguments]
        self.popen: Final = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **popen_options)
        assert self.popen.stderr is not None
        self.greeting: Final = self.popen.stderr.readline().rstrip("\n")
        """What it says first: that it serves, or why not."""

    @property
    def pid(self) -> int:
        """Of the broker."""
        return self.popen.pid

    def end(self) -> str:
        """Have it end, if it has not; the rest of what it has said."""
        self.popen.terminate()
        try:
            said: str = self.popen.communicate(timeout=PATIENCE_S)[1]
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.communicate()
            pytest.fail("the broker did not end upon SIGTERM")
        return said


@pytest.fixture
def start_broker(request: pytest.FixtureRequest) -> Iterator[Any]:
    """``start_broker(*arguments, **popen_options)``: a BrokerProcess that serves; each is ended after the test."""
    request.getfixturevalue("nothing_is_left")  # looks for what is left when these have been ended
    patch = request.getfixturevalue("monkeypatch")  # one for all fixtures: else what is undone last may be old
    with ExitStack() as ending:
        # Unix sockets have short names, and pytest's directories long ones.
        run = Path(ending.enter_context(short_directory()))
        patch.setenv("UBPX_RUN_DIRECTORY", str(run / "run"))

        def start(*arguments: str, **popen_options: Any) -> BrokerProcess:
            directory = Path(ending.enter_context(short_directory()))
            broker = BrokerProcess(directory, *arguments, **popen_options)
            ending.callback(broker.end)
            return broker

        yield start


@pytest.fixture
def serve(start_broker: Callable[..., BrokerProcess]) -> Callable[..., BrokerProcess]:
    """Starts a broker that traces a program."""

    def serve(program: Program, *arguments: str) -> BrokerProcess:
        broker = start_broker("-p", str(program.pid), *arguments)
        assert broker.greeting.startswith("ubpx: serving"), broker.greeting + "\n" + broker.end()
        return broker

    return serve


def short_directory() -> tempfile.TemporaryDirectory[str]:
    """A temporary directory with a short name."""
    return tempfile.TemporaryDirectory(prefix="ubpx-")


class Ways:
    """``attach`` and ``spawn`` as tests call them, gone by way of a broker."""

    def __init__(self, start: Callable[..., BrokerProcess]) -> None:
        self._start: Final = start

    def attach(self, pid: int, *, deadline: float = 1.0, **options: Any) -> ubpx.Target:
        """A broker of its own, which attaches because of this."""
        broker = self._start("--deadline", str(deadline))
        return ubpx.connect(broker.path, pid=pid, **options)

    def spawn(
        self,
        argv: Sequence[str],
        *,
        plugins: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        deadline: float = 1.0,
        **streams: Any,
    ) -> ubpx.Target:
        """A broker that starts the program."""
        broker = self._start("--deadline", str(deadline), "--", *argv, **streams)
        assert env is None
        return ubpx.connect(broker.path, plugins=plugins)


@pytest.fixture(autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How ``ubpx.attach`` and ``ubpx.spawn`` reach their program in this test: ``attach`` or ``connect``."""
    name: str = getattr(request, "param", "attach")
    if name == "connect":
        ways = Ways(request.getfixturevalue("start_broker"))
        monkeypatch.setattr(ubpx, "attach", ways.attach)
        monkeypatch.setattr(ubpx, "spawn", ways.spawn)
    return name


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Have what is marked ``over_both`` run over both, but for what says why it cannot."""
    definition = metafunc.definition
    if definition.get_closest_marker("over_both") and not definition.get_closest_marker("attach_alone"):
        metafunc.parametrize("way", ["attach", "connect"], indirect=True)
