"""``ubpx list``: asks every broker of this machine, and shows what each answers."""

import json
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import attrs
import msgspec

from ubpx import BrokerGone, NoBroker, PermissionRefused, UsageError
from ubpx.core.values import MOST_JUMP_PAGES, Finding, Severity
from ubpx_froggy import directory
from ubpx_froggy.client.link import Link
from ubpx_froggy.messages import Overview, SlotUseInfo, TargetOverview
from ubpx_froggy.wire import WireError

PATIENCE_S: Final = 10.0
"""How long a broker may take to answer: one that stands still must not keep the others from being shown."""

_decode: Final = msgspec.msgpack.Decoder(list[TargetOverview]).decode


@attrs.frozen(kw_only=True)
class BrokerListing:
    """One broker, as it answered."""

    pid: int
    socket: str
    targets: Sequence[TargetOverview] = ()
    problem: str | None = None
    """Why it did not answer; None if it did."""


def look(path: Path | None) -> Sequence[BrokerListing]:
    """The broker at ``path``, or all that there are; raises what connecting to the one raises."""
    if path is not None:
        return [_ask(str(path))]
    return [_ask_one_of_many(each.broker.pid, str(each.socket)) for each in directory.brokers()]


def _ask(path: str) -> BrokerListing:
    link = Link(path)
    timer = threading.Timer(PATIENCE_S, link.break_off, [f"it has not answered for {PATIENCE_S:g} s"])
    timer.daemon = True
    timer.start()
    try:
        targets: list[TargetOverview] = link.request(Overview(), _decode)
        return BrokerListing(pid=link.broker_pid, socket=path, targets=targets)
    finally:
        timer.cancel()
        link.close("listed")


def _ask_one_of_many(pid: int, path: str) -> BrokerListing:
    try:
        return _ask(path)
    except (NoBroker, BrokerGone, PermissionRefused, UsageError, WireError) as error:
        return BrokerListing(pid=pid, socket=path, problem=str(error))


def findings(path: Path, pid: int) -> Sequence[Finding]:
    """What the broker at ``path`` says of a process that it traces, for ``ubpx doctor``."""
    listed = _ask_one_of_many(0, str(path))
    if listed.problem is not None:
        what, _, remedy = listed.problem.rpartition("; ")
        return [Finding(severity=Severity.WARNING, what=f"its broker does not answer: {what}", remedy=remedy)]
    return [
        Finding(severity=Severity.FINE, what=described(each.slots), remedy="")
        for each in listed.targets
        if each.pid == pid and each.slots is not None
    ]


def as_json_text(brokers: Sequence[BrokerListing]) -> str:
    """One JSON object."""
    return json.dumps({"brokers": [_as_dict(each) for each in brokers]})


def _as_dict(broker: BrokerListing) -> dict[str, Any]:
    return {
        "pid": broker.pid,
        "socket": broker.socket,
        "problem": broker.problem,
        "targets": [_target_as_dict(each) for each in broker.targets],
    }


def _target_as_dict(target: TargetOverview) -> dict[str, Any]:
    return {
        "pid": target.pid,
        "command": target.command,
        "clients": [msgspec.structs.asdict(each) for each in target.clients],
        "probepoints": [
            {
                "address": each.address,
                "strategy": each.strategy,
                "leases": [msgspec.structs.asdict(lease) for lease in each.leases],
            }
            for each in target.probepoints
        ],
        "holds": [msgspec.structs.asdict(each) for each in target.holds],
        "slots": None if target.slots is None else msgspec.structs.asdict(target.slots),
    }


def as_text(brokers: Sequence[BrokerListing]) -> str:
    """For people; names come from programs and clients, so nothing in them reaches the terminal as it is."""
    if not brokers:
        return "no broker runs here; start one with: ubpx serve -p PID"
    return "\n".join(_printable(line) for broker in brokers for line in _lines(broker))


def _lines(broker: BrokerListing) -> Iterator[str]:
    yield f"broker {broker.pid} at {broker.socket}"
    if broker.problem is not None:
        yield f"  does not answer: {broker.problem}"
    elif not broker.targets:
        yield "  no target"
    for target in broker.targets:
        yield f"  process {target.pid}: {target.command}"
        for client in target.clients:
            where = f"process {client.pid}, user {client.uid}" if client.pid else f"user {client.uid}"
            yield f"    client {client.name!r}: {client.state}, {where}, {client.leases} leases"
        for place in target.probepoints:
            yield f"    probepoint {place.address:#x} {place.strategy}"
            for lease in place.leases:
                yield f"      {lease.client!r}: {lease.hits} hits of {lease.spec or hex(place.address)}"
        for hold in target.holds:
            what = "the process" if hold.thread is None else f"thread {hold.thread}"
            yield f"    hold of {what} by {hold.client!r}"
        if target.slots is not None:
            yield f"    {described(target.slots)}"


def described(slots: SlotUseInfo) -> str:
    """For people."""
    retired = f"{slots.retired} retired (nobody leases them, and a thread may still be in one)"
    jumps = f"{slots.jump_pages} of {MOST_JUMP_PAGES} pages for jumps"
    return f"slots: {slots.leased} leased, {retired if slots.retired else '0 retired'}, {slots.free} free, {jumps}"


def _printable(line: str) -> str:
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode("ascii") for each in line)
