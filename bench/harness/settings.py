"""How much is measured."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from harness.peers import JOBS, PEERS, Peer
from harness.programs import BenchError
from harness.rounds import Tell, tell

JOB_S = 240.0
WARM_UP_S = 1.3
"""Each second ubpx looks which probepoints are hot, and has them jump."""


@dataclass(frozen=True)
class Settings:
    """What the command line says, and what was found here."""

    rounds: int
    scale: float
    """So many times as many calls as usual."""
    processors: frozenset[int]
    """All that may be used; at first everything is pinned to one of them."""
    telling: Tell = tell

    @property
    def cpu(self) -> int:
        """The one processor of what is pinned."""
        return min(self.processors)

    def times(self, number: int, *, least: int = 1) -> int:
        """A number of rounds or calls, scaled."""
        return max(int(number * self.scale), least)


def variant(name: str, title: str, *, calls: int, program: Iterable[str] = ("target",), job: str = "variants") -> Peer:
    """Ubpx under some condition, measured as a peer is."""
    return Peer(
        name=name.replace("=", "_"),
        title=title,
        script=JOBS / f"{job}.py",
        calls=calls,
        arguments=(name,),
        program=tuple(program),
        warm_up_s=WARM_UP_S,
    )


def job(name: str, *words: object) -> str:
    """What a job prints. Raises BenchError if it fails."""
    return output([sys.executable, JOBS / f"{name}.py", *words])


def output(command: Iterable[object], *, given: str = "") -> str:
    """What a command prints. Raises BenchError with its last complaint if it fails."""
    words = [str(word) for word in command]
    name = Path(words[1] if words[0] == sys.executable else words[0]).name
    try:
        ended = subprocess.run(
            words,
            input=given,
            capture_output=True,
            text=True,
            check=True,
            timeout=JOB_S,
            env={**os.environ, "PYTHONPATH": str(PEERS)},
        )
    except subprocess.CalledProcessError as error:
        last = error.stderr.strip().splitlines()[-1:]
        raise BenchError(f"{name} ended with status {error.returncode}: {''.join(last)}") from None
    except subprocess.TimeoutExpired:
        raise BenchError(f"{name} took more than {JOB_S:.0f} s") from None
    return ended.stdout
