"""``ubpx demo --broker``: three processes share one probepoint of a fourth, and one of them is killed."""

import json
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, Final, cast

import attrs

from ubpx._errors import BrokerGone, UbpxError
from ubpx.cli.demo.run import CALLS, PATIENCE_S, PLACE, THREADS, DemoProgram

CLIENT: Final = Path(__file__).with_name("client.py")
NAMES: Final = ("tracer", "coverage", "arguments")
VICTIM: Final = "arguments"
_UBPX: Final = (sys.executable, "-c", "from ubpx.cli import main; main()")


@attrs.frozen(kw_only=True)
class ProcessHits:
    """What one client process counted."""

    name: str
    pid: int
    killed: bool
    hits: int
    """In its handler; of the one that was killed, when it last said something."""
    dropped: int
    """Those that it was told to have missed."""


@attrs.frozen(kw_only=True)
class BrokerDemoResult:
    """What the program, the clients and the broker each say about one run."""

    pid: int
    calls: int
    """Counted by the program itself."""
    clients: tuple[ProcessHits, ...]
    before: Any
    """What ``ubpx list --json`` said with all clients there."""
    after: Any
    """And when one had been killed, and the program had run on."""
    exit_status: int

    @property
    def survivors(self) -> tuple[ProcessHits, ...]:
        """Those that were not killed."""
        return tuple(each for each in self.clients if not each.killed)

    @property
    def missed(self) -> int:
        """By how much the survivors' counts differ from the program's, all together."""
        return sum(abs(self.calls - each.hits - each.dropped) for each in self.survivors)

    @property
    def ok(self) -> bool:
        """Whether the survivors missed nothing, the killed one was swept, and the program was unharmed."""
        names = sorted(each.name for each in self.survivors)
        return (
            self.missed == 0
            and holders(self.before, self.pid) == sorted(NAMES)
            and holders(self.after, self.pid) == names
            and self.exit_status == 0
        )


def holders(listed: Any, pid: int) -> list[str]:
    """Who shares the probepoints of a process, as ``ubpx list --json`` has it; by name."""
    targets = [each for broker in listed["brokers"] for each in broker["targets"] if each["pid"] == pid]
    places = [place for target in targets for place in target["probepoints"]]
    return sorted(lease["client"] for place in places for lease in place["leases"])


class ClientProcess:
    """One of the clients. Ended when the demo is."""

    def __init__(self, name: str, path: str) -> None:
        self.name: Final = name
        command = [sys.executable, "-I", str(CLIENT), name, path, PLACE]
        self.popen: Final = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._orders: Final = cast("IO[str]", self.popen.stdin)
        self._answers: Final = cast("IO[str]", self.popen.stdout)

    def listen(self) -> str:
        """Its next line; raises BrokerGone if it ended instead."""
        readable, _, _ = select.select([self._answers], [], [], PATIENCE_S)
        line = self._answers.readline() if readable else ""
        if not line:
            raise BrokerGone("the demo", f"its client {self.name} has ended, or says nothing")
        return line.rstrip("\n")

    def counts(self) -> Any:
        """What it has counted; everything that was under way has come."""
        self._orders.write("counts\n")
        self._orders.flush()
        return json.loads(self.listen())

    def end(self) -> None:
        """Whatever happened, leave nothing behind."""
        self.popen.kill()
        with self.popen:  # closes the pipes, and waits
            pass


def run_broker_demo(*, threads: int = THREADS, calls: int = CALLS) -> BrokerDemoResult:
    """Start the program, a broker and three clients; kill one while its hits flow; compare the counts.

    Raises an UbpxError if something of it cannot be started.
    """
    with ExitStack() as ending:
        program = DemoProgram(threads=threads, calls=calls)
        ending.callback(program.end)
        program.listen()
        path = ending.enter_context(broker(program.pid))
        clients = [ClientProcess(name, path) for name in NAMES]
        for client in clients:
            ending.callback(client.end)
        for client in clients:
            client.listen()
        before = listing(path)
        program.open_gate()
        killed = kill_amid_its_hits(next(each for each in clients if each.name == VICTIM))
        made, _ = program.await_gate()
        after = listing(path)
        found = [killed if each.name == VICTIM else survivor(each) for each in clients]
        for client in clients:
            client.end()
        return BrokerDemoResult(
            pid=program.pid, calls=made, clients=tuple(found), before=before, after=after, exit_status=program.finish()
        )


def kill_amid_its_hits(client: ClientProcess) -> ProcessHits:
    """SIGKILL it as soon as it is busy; it gets no word in any more."""
    busy = client.listen()
    client.popen.send_signal(signal.SIGKILL)
    client.popen.wait()
    hits = json.loads(busy)["hits"]
    return ProcessHits(name=client.name, pid=client.popen.pid, killed=True, hits=hits, dropped=0)


def survivor(client: ClientProcess) -> ProcessHits:
    """One that lives, and tells what it has counted."""
    client.listen()  # that it was busy
    counts = client.counts()
    return ProcessHits(
        name=client.name, pid=client.popen.pid, killed=False, hits=counts["handled"], dropped=counts["dropped"]
    )


@contextmanager
def broker(pid: int) -> Iterator[str]:
    """``ubpx serve -p PID`` in a process of its own; the path of its socket."""
    with tempfile.TemporaryDirectory(prefix="ubpx-demo-") as directory:
        path = f"{directory}/socket"
        command = [*_UBPX, "serve", "-p", str(pid), "--socket", path]
        serving = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        try:
            greeting = cast("IO[str]", serving.stderr).readline().rstrip("\n")
            if not greeting.startswith("ubpx: serving"):
                raise UbpxError(greeting.removeprefix("ubpx: ") or "the broker could not be started")
            yield path
        finally:
            serving.terminate()
            with serving:
                pass


def listing(path: str) -> Any:
    """What ``ubpx list --json`` says."""
    return json.loads(run([*_UBPX, "list", "--json", "--socket", path]))


def run(command: Sequence[str]) -> str:
    """A command's output; raises UbpxError with what it complains of."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    if done.returncode:
        raise UbpxError(done.stderr.strip().removeprefix("ubpx: "))
    return done.stdout
