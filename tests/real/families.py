"""Client processes of a broker, forked one by one, and what a process holds of the system."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

SCRIPT: Final = Path(__file__).with_name("broker") / "client_processes.py"
PATIENCE_S: Final = 180.0
"""A fork of a process with many mappings has been seen to take more than a minute on a machine that was overloaded."""


class ClientProcesses:
    """The clients that one client_processes.py has forked."""

    def __init__(self, path: str, spec: str) -> None:
        command = [sys.executable, str(SCRIPT), path, spec]
        self._popen = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        self._unread = b""
        self._said: dict[tuple[str, str], list[str]] = {}
        self.pids: Final[dict[str, int]] = {}

    def start(self, name: str, kind: str) -> None:
        """Fork one; it is ready when this returns."""
        self.begin(name, kind)
        self.hear(name, "ready")

    def begin(self, name: str, kind: str) -> None:
        """Fork one."""
        assert self._popen.stdin is not None
        self._popen.stdin.write(f"{name} {kind}\n".encode())
        self.pids[name] = int(self.hear(name, "started")[0])

    def hear(self, name: str, what: str) -> list[str]:
        """What it says of ``what``; whatever others say meanwhile is kept."""
        until = time.monotonic() + PATIENCE_S
        assert self._popen.stdout is not None
        while (name, what) not in self._said:
            assert (name, "failed") not in self._said, self._said[name, "failed"]
            assert select.select([self._popen.stdout], [], [], max(0.0, until - time.monotonic()))[0], (name, what)
            self._read()
        return self._said.pop((name, what))

    def _read(self) -> None:
        assert self._popen.stdout is not None
        data = os.read(self._popen.stdout.fileno(), 65536)
        assert data, "the client processes' parent has ended"
        *lines, self._unread = (self._unread + data).split(b"\n")
        for line in lines:
            who, topic, *rest = line.decode().split()
            self._said[who, topic] = rest

    def count(self, name: str) -> tuple[int, int, int, float]:
        """Its counts: handled, hits, dropped, longest gap. It ends."""
        os.kill(self.pids.pop(name), signal.SIGUSR1)
        handled, hits, dropped, gap = self.hear(name, "counted")
        return int(handled), int(hits), int(dropped), float(gap)

    def visits(self, names: Iterable[str]) -> int:
        """How often these, which come and go, have gone again, as far as is known by now; none has failed."""
        assert self._popen.stdout is not None
        while select.select([self._popen.stdout], [], [], 0)[0]:
            self._read()
        names = list(names)
        assert {name: self._said[name, "failed"] for name in names if (name, "failed") in self._said} == {}
        return sum(int(self._said.pop((name, "left"), ["0"])[0]) for name in names)

    def kill(self, name: str) -> None:
        """SIGKILL; it has no last word."""
        os.kill(self.pids.pop(name), signal.SIGKILL)

    def end(self) -> None:
        """All of them."""
        for pid in self.pids.values():
            os.kill(pid, signal.SIGKILL)
        self._popen.kill()
        self._popen.wait()
        for pipe in (self._popen.stdin, self._popen.stdout):
            assert pipe is not None
            pipe.close()


def held_by(pid: int) -> dict[str, int]:
    """What a process uses of the system."""
    status = Path(f"/proc/{pid}/status").read_text()
    fields = dict(line.split(":", 1) for line in status.splitlines())
    return {
        "descriptors": len(os.listdir(f"/proc/{pid}/fd")),
        "threads": int(fields["Threads"]),
        "rss_kb": int(fields["VmRSS"].split()[0]),
    }
