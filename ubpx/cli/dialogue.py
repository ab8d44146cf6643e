"""A program of our own that runs beside the command, and the lines that go to and fro."""

import subprocess
import threading
from collections.abc import Sequence
from typing import IO, Final, cast

from ubpx._errors import TargetGone
from ubpx.core.values import ProcessId


class Dialogue:
    """Whoever starts the program ends it; after ``patience_s`` seconds it is killed, whatever happens."""

    def __init__(self, command: Sequence[str], patience_s: float) -> None:
        self.process: Final = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._orders: Final = cast("IO[str]", self.process.stdin)
        self._answers: Final = cast("IO[str]", self.process.stdout)
        self._watchdog: Final = threading.Timer(patience_s, self.process.kill)
        self._watchdog.daemon = True
        self._watchdog.start()

    @property
    def pid(self) -> ProcessId:
        """Its process id."""
        return ProcessId(self.process.pid)

    def say(self, order: str) -> None:
        """Give it a line; raises TargetGone if it has ended."""
        try:
            self._orders.write(f"{order}\n")
            self._orders.flush()
        except BrokenPipeError:
            raise TargetGone(self.pid, self.process.wait()) from None

    def listen(self) -> str:
        """Its next line; raises TargetGone if it ended instead."""
        line = self._answers.readline()
        if not line:
            raise TargetGone(self.pid, self.process.wait())
        return line.rstrip("\n")

    def finish(self) -> int:
        """Let it end: there are no more lines. Its exit status (negative: the signal that killed it)."""
        self._orders.close()
        return self.process.wait()

    def end(self) -> None:
        """Whatever happened, leave nothing behind."""
        self._watchdog.cancel()
        self.process.kill()
        with self.process:  # closes the pipes, and waits
            pass
