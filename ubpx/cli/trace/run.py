"""What ``ubpx trace`` does between the first probe and the last line.

Handlers run in the tracer thread and only hand over what they saw; the main thread makes text of it and
writes. Where the reader is slower than the program, threads of the program are held until it has caught up.
"""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from queue import Empty, SimpleQueue
from typing import Any, Final

import attrs

from ubpx._errors import LeftAtExec, MemoryFault, UbpxError
from ubpx.cli.text import printable
from ubpx.cli.trace.interrupts import Relay, caught
from ubpx.cli.trace.output import Output, OutputFailed
from ubpx.core.clients import Client, ClientState
from ubpx.core.events import Verdict
from ubpx.core.hits import Hit
from ubpx.core.ports import Sink
from ubpx.core.probepoints import Lease, LeaseState
from ubpx.core.values import Follow, HitRecord
from ubpx.target import Target, attach, spawn

CLIENT: Final = "ubpx trace"
MOST_WAITING: Final = 50_000
"""Hits that were seen and not written yet; a thread that brings one more is held."""
ARGUMENTS: Final = range(6)


@attrs.frozen(kw_only=True)
class TraceRequest:
    """What the command line asks for."""

    specs: Sequence[str]
    pid: int | None
    """To attach to; None: start ``command``."""
    command: Sequence[str]
    plugins: Sequence[str]
    """Client plugins to activate on the target."""
    counting: bool
    """Not every hit, only how many."""
    join: bool = False
    """Go by way of the broker that traces the process."""
    follow: Follow = Follow.EXEC


@attrs.frozen
class _Ended:
    """The program has ended, or cannot be waited for any more."""

    error: BaseException | None


class Trace:
    """One trace of one target. Owned by ``run_trace``; the handlers run in the tracer thread."""

    def __init__(self, request: TraceRequest, sink: Sink, output: Output) -> None:
        self._request: Final = request
        self._sink: Final = sink
        self._output: Final = output
        self._mail: Final[SimpleQueue[Any]] = SimpleQueue()
        """Arguments of HitRecord, numbers of signals, and _Ended."""
        self._holding = False
        self._leases: dict[str, Lease] = {}
        self._clients: Sequence[Client] = ()

    @property
    def counts(self) -> dict[str, int]:
        """Hits so far, by spec."""
        return {spec: lease.family_hits for spec, lease in self._leases.items()}

    def run(self) -> None:
        """Until the program has ended, or we are told to leave it. Raises an UbpxError, BrokenPipeError."""
        request = self._request
        with ExitStack() as ending:
            ending.enter_context(caught(self._mail.put, also_ignored=request.pid is not None))
            relay = None
            if request.pid is None:
                relay = Relay()
                ending.callback(relay.close)
            target = ending.enter_context(self._start())  # what is refused now ends a program that has not begun
            self._probe(target)
            target.resume()
            try:
                self._follow(target, relay)
                target.detach()
                self._write_waiting()
            except (BrokenPipeError, OutputFailed):
                self._leave_alone(target, relay)
                raise
            finally:
                target.detach()  # and whatever happens now, it lives on

    def _start(self) -> Target:
        request = self._request
        if request.pid is not None:
            return attach(request.pid, plugins=request.plugins, join=request.join, follow=request.follow.value)
        return spawn(request.command, plugins=request.plugins, kill_on_exit=True, follow=request.follow.value)

    def _probe(self, target: Target) -> None:
        name = f"{CLIENT} {os.getpid()}" if self._request.join else CLIENT
        client = target.client(name)
        for spec in self._request.specs:
            handler = _count if self._request.counting else self._handler(spec)
            self._leases[spec] = client.probe(spec, handler)
        self._clients = [each for each in target.clients() if each.name in {name, *self._request.plugins}]

    def _handler(self, spec: str) -> Callable[[Hit], Verdict | None]:
        put, waiting = self._mail.put, self._mail.qsize

        def hand_over(hit: Hit) -> Verdict | None:
            put((time.time(), hit.pid, hit.tid, spec, hit.address, tuple(_arguments(hit))))
            if waiting() < MOST_WAITING:
                return None
            self._holding = True
            return Verdict.HOLD

        return hand_over

    # The main thread ----------------------------------------------------------------------

    def _follow(self, target: Target, relay: Relay | None) -> None:
        self._await(lambda: _wait_for_all(target))
        while True:
            mail = self._next_mail(target)
            if isinstance(mail, tuple):
                self._write_hit(mail)
            elif isinstance(mail, _Ended):
                if mail.error is not None:
                    raise mail.error
                return
            elif relay is None:
                return
            else:
                relay.pass_on(mail, target.pid)

    def _leave_alone(self, target: Target, relay: Relay | None) -> None:
        """Nothing can be written: the program runs on without us, and a program that we started is still waited for."""
        target.detach()
        if relay is None or target.popen is None:
            return
        self._await(target.popen.wait)
        while not isinstance(mail := self._mail.get(), _Ended):
            if isinstance(mail, int):
                relay.pass_on(mail, target.pid)

    def _await(self, wait: Callable[[], object]) -> None:
        def watch() -> None:
            try:
                wait()
            except UbpxError as error:
                self._mail.put(_Ended(error))
            else:
                self._mail.put(_Ended(None))

        threading.Thread(target=watch, name="ubpx-trace-end", daemon=True).start()

    def _next_mail(self, target: Target) -> Any:
        try:
            return self._mail.get_nowait()
        except Empty:
            self._output.flush()
        if self._holding:
            self._holding = False
            for each in (target, *target.family):
                with contextlib.suppress(UbpxError):  # it ends, or is left, just now
                    _let_go(each)
        return self._mail.get()

    def _write_hit(self, seen: tuple[Any, ...]) -> None:
        moment, pid, tid, symbol, address, args = seen
        record = HitRecord(time=moment, pid=pid, tid=tid, symbol=symbol, address=address, args=args)
        self._output.write(self._sink.hit(record))

    def _write_waiting(self) -> None:
        """What was seen until the detach; no handler runs any more."""
        while not self._mail.empty():
            mail = self._mail.get()
            if isinstance(mail, tuple):
                self._write_hit(mail)

    def losses(self) -> list[str]:
        """What was asked for and not seen, one line each."""
        missed = [loss for spec, lease in self._leases.items() if (loss := _loss(printable(spec), lease))]
        return missed + [
            f"plugin {client.name!r} was quarantined: {client.reason}; mend it, or leave --with out"
            for client in self._clients
            if client.state == ClientState.QUARANTINED and client.name in self._request.plugins
        ]


def _loss(spec: str, lease: Lease) -> str:
    """What was missed at one place; "" if nothing was."""
    if lease.address is None:
        return f"{spec} never armed: {lease.obstacle}"
    if lease.state in {LeaseState.LOST, LeaseState.QUARANTINED}:
        return f"{spec} was {lease.state} at {lease.address:#x}: its later hits were missed; trace it again"
    lost = lease.family_errors
    return f"{lost} hits of {spec} were lost; run again with ubpx --debug" if lost else ""


def _wait_for_all(target: Target) -> None:
    """Until the program and all that was followed from it have ended, or been left at an exec.

    A program that we started is waited for in any case.
    """
    try:
        target.wait()
    except LeftAtExec:
        if target.popen is not None:
            target.popen.wait()
    while family := target.family:
        with contextlib.suppress(LeftAtExec):
            family[0].wait()


def _let_go(target: Target) -> None:
    """The threads that were held because nobody had read what they brought."""
    for hold in target.holds():
        if hold.owner == CLIENT:
            hold.release()


def _arguments(hit: Hit) -> Iterator[int]:
    """Those that a line has; fewer where they lie on a stack that cannot be read."""
    args = hit.args
    with contextlib.suppress(MemoryFault):
        for index in ARGUMENTS:
            yield args[index]


def _count(_: Hit) -> None:
    """The lease itself counts."""


def run_trace(request: TraceRequest, sink: Sink, output: Output, *, counts_to: Sequence[Output]) -> list[str]:
    """Trace as asked, to the end; what was lost, one line each.

    Raises an UbpxError if it cannot be done; a reader of the output that goes away ends it quietly.
    """
    trace = Trace(request, sink, output)
    try:
        if request.counting:
            trace.run()
            for each in counts_to:
                each.write(sink.counts(trace.counts))
                each.flush()
        else:
            output.write(sink.begin())
            trace.run()
            output.write(sink.end())
            output.flush()
    except BrokenPipeError:
        return []
    return trace.losses()
