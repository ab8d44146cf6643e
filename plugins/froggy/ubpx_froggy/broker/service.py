"""What each request does. Everything here is the public API of ubpx, called on behalf of a connection."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from ubpx import MemoryFault, Target, TargetGone, UbpxError, UsageError
from ubpx.core.ports import Memory
from ubpx.core.values import Follow, MappedRange, parse_maps
from ubpx_froggy import messages as m
from ubpx_froggy.broker import leasing
from ubpx_froggy.broker.access import Right
from ubpx_froggy.broker.guests import Guest
from ubpx_froggy.broker.host import Host
from ubpx_froggy.broker.hosted import BROKER, Hosted
from ubpx_froggy.broker.layouts import layouts_from
from ubpx_froggy.broker.overview import overview_of, slot_use_of
from ubpx_froggy.broker.seats import member_with

LONGEST_NAME: Final = 256
"""Characters of a client's name."""
LONGEST_PLACE: Final = 8192
"""Characters of a spec or glob: a path, and a symbol of C++."""
_RESERVED: Final = frozenset({BROKER, "ubpx"})
"""The other one holds programs that have not started."""
_WORD: Final = 8


class Service:
    """Does what connections ask. Its methods run in worker threads, or in the tracer thread for a handler that asks."""

    def __init__(self, host: Host, *, deadline_s: float) -> None:
        self._host: Final = host
        self._deadline_s: Final = deadline_s
        self._operations: Final[Mapping[type, Callable[[Guest, Any], Any]]] = {
            m.Overview: self._overview,
            m.Join: self._join,
            m.Attach: self._attach,
            m.Leave: self._leave,
            m.Threads: lambda guest, call: list(self._target(guest, call).threads()),
            m.ReadRegisters: self._read_registers,
            m.ReadMemory: self._read_memory,
            m.WriteMemory: self._write_memory,
            m.Mappings: self._mappings,
            m.Clients: self._clients,
            m.Probepoints: self._probepoints,
            m.Holds: self._holds,
            m.Stops: lambda guest, call: self._target(guest, call).stops,
            m.Slots: lambda guest, call: slot_use_of(self._target(guest, call)),
            m.Resume: lambda guest, call: self._target(guest, call, Right.CHANGE).resume(),
            m.Wait: _wait_elsewhere,
            m.OpenClient: self._open_client,
            m.CloseClient: lambda guest, call: guest.close_seat(guest.seat(call.client, Right.CHANGE)[1]),
            m.Probe: self._probe,
            m.ProbeMany: self._probe_many,
            m.Watch: lambda guest, call: leasing.watch(guest, guest.seat(call.client, Right.CHANGE)[1], call),
            m.Leases: self._leases,
            m.ReadLeases: lambda guest, call: [guest.lease_info(each) for each in call.leases],
            m.Release: lambda guest, call: leasing.release(guest, call.leases),
            m.TakeHold: self._take_hold,
            m.ReleaseHold: self._release_hold,
            m.Step: self._step,
            m.Catch: self._catch,
        }

    def perform(self, guest: Guest, call: m.Call) -> msgspec.Raw:
        """Do it, and give the reply's value; raises an UbpxError."""
        return m.as_raw(self._operations[type(call)](guest, call))

    # Targets --------------------------------------------------------------------------------

    def _overview(self, guest: Guest, _call: m.Overview) -> list[m.TargetOverview]:
        seen = []
        for each in self._host.all():
            with contextlib.suppress(UbpxError):  # one that is left, or ends, just now
                if guest.stranger(each) is None:
                    seen.append(overview_of(each))
        return seen

    def _join(self, guest: Guest, call: m.Join) -> m.TargetInfo:
        return self._use(guest, self._host.find(call.pid), read_only=call.read_only)

    def _attach(self, guest: Guest, call: m.Attach) -> m.TargetInfo:
        if call.slots not in ("auto", "none"):
            raise UsageError(f"slots={call.slots!r}; choose 'auto' or 'none'")
        if call.follow not in list(Follow):
            raise UsageError(f"follow={call.follow!r}; choose {', '.join(map(repr, map(str, Follow)))}")
        refusal = guest.refusal(call.pid)
        if refusal is not None:
            raise refusal
        with self._host.kept():
            hosted = self._host.attach(call.pid, slots=call.slots, follow=call.follow)
            try:
                return self._use(guest, hosted, read_only=call.read_only)
            finally:
                self._host.tidy(hosted)

    def _use(self, guest: Guest, hosted: Hosted, *, read_only: bool) -> m.TargetInfo:
        used = guest.use(hosted, Right.READ if read_only else Right.CHANGE)
        its, others = layouts_from(hosted.target.architecture)
        return m.TargetInfo(
            target=used.handle,
            pid=hosted.pid,
            architecture=its.architecture,
            registers=its.registers,
            pc=its.pc,
            deadline_s=self._deadline_s,
            spawned=hosted.spawned,
            others=others,
        )

    def _leave(self, guest: Guest, call: m.Leave) -> None:
        used = guest.used(call.target, Right.LOOK)
        guest.leave(used)
        self._host.tidy(used.hosted)

    def _target(self, guest: Guest, call: Any, right: Right = Right.LOOK) -> Target:
        return guest.used(call.target, right).hosted.target

    def _read_registers(self, guest: Guest, call: m.ReadRegisters) -> m.Registers:
        used = guest.used(call.target, Right.READ)
        home = member_with(used.hosted.target, call.thread)
        if home is not used.hosted.target:
            home = guest.child(used, home.pid)
        registers = dict(home.registers(call.thread))
        guest.confirm(used)
        return registers

    def _read_memory(self, guest: Guest, call: m.ReadMemory) -> bytes:
        used, memory = guest.memory(call.target, Right.READ)
        _check_size(call.size)
        if call.process:
            memory = guest.child(used, call.process).memory
        if guest.has_less_rights:
            return _read_guarded(memory, call.address, call.size)
        return memory.read(call.address, call.size)

    def _write_memory(self, guest: Guest, call: m.WriteMemory) -> None:
        used, memory = guest.memory(call.target, Right.CHANGE)
        _check_size(len(call.data))
        if call.process:
            memory = guest.child(used, call.process).memory
            (memory.patch if call.through_protection else memory.write)(call.address, call.data)
        elif call.through_protection:
            memory.patch(call.address, call.data)
        elif guest.has_less_rights:
            _write_guarded(memory, used.hosted, call.address, call.data)
        else:
            memory.write(call.address, call.data)

    def _mappings(self, guest: Guest, call: m.Mappings) -> list[m.MappingInfo]:
        used = guest.used(call.target, Right.READ)
        mapped = _mappings_of(used.hosted)
        guest.confirm(used)
        return [
            m.MappingInfo(
                start=each.start,
                end=each.end,
                permissions=each.permissions,
                offset=each.offset,
                device=each.device,
                inode=each.inode,
                path=each.path.encode(errors="surrogateescape").decode(errors="replace"),
            )
            for each in mapped
        ]

    def _clients(self, guest: Guest, call: m.Clients) -> list[m.NamedClient]:
        clients = (each for each in self._target(guest, call).clients() if each.name != BROKER)
        return [m.NamedClient(each.name, each.priority, each.state, each.reason) for each in clients]

    def _probepoints(self, guest: Guest, call: m.Probepoints) -> list[m.ProbepointInfo]:
        return [
            m.ProbepointInfo(each.address, each.strategy, list(each.clients), each.slot, each.why)
            for each in self._target(guest, call).probepoints()
            if call.address in (None, each.address)
        ]

    def _holds(self, guest: Guest, call: m.Holds) -> list[m.HoldInfo]:
        target = self._target(guest, call)
        found = list(target.holds())
        for child in target.family:
            with contextlib.suppress(UbpxError):  # it ends, or is left, just now
                found += child.holds()
        infos = []
        for hold in found:
            seat = guest.owns(hold)
            if seat is None:
                infos.append(m.HoldInfo(None, hold.owner, hold.process, hold.thread))
            elif not seat.stands_for_an_answer(hold, found):
                infos.append(m.HoldInfo(guest.add_hold(hold, seat), hold.owner, hold.process, hold.thread))
        return infos

    # Clients, holds ---------------------------------------------------------------------------

    def _open_client(self, guest: Guest, call: m.OpenClient) -> m.ClientInfo:
        if call.name in _RESERVED:
            raise UsageError(f"{call.name!r} is a name of the broker's own; choose another")
        _check_length("a client's name", call.name, LONGEST_NAME)
        used = guest.used(call.target, Right.CHANGE)
        seat = guest.open_seat(used, call.name, call.priority, call.hooks)
        return m.ClientInfo(seat.handle, [entry.info() for entry in seat.alive()])

    def _probe(self, guest: Guest, call: m.Probe) -> m.LeaseInfo:
        _, seat = guest.seat(call.client, Right.CHANGE)
        _check_places(call.place)
        return leasing.probe(guest, seat, call)

    def _probe_many(self, guest: Guest, call: m.ProbeMany) -> m.GroupInfo:
        _, seat = guest.seat(call.client, Right.CHANGE)
        _check_places(*([call.places] if isinstance(call.places, str) else call.places))
        return leasing.probe_many(guest, seat, call)

    def _leases(self, guest: Guest, call: m.Leases) -> list[m.LeaseInfo]:
        _, seat = guest.seat(call.client, Right.LOOK)
        return [entry.info() for entry in seat.alive()]

    def _take_hold(self, guest: Guest, call: m.TakeHold) -> m.HoldInfo:
        _, seat = guest.seat(call.client, Right.CHANGE)
        hold = seat.take_hold(call.thread)
        return m.HoldInfo(guest.add_hold(hold, seat), hold.owner, hold.process, hold.thread)

    def _release_hold(self, guest: Guest, call: m.ReleaseHold) -> None:
        guest.hold(call.hold).release(call.registers, signal=call.signal)
        guest.drop_hold(call.hold)

    def _step(self, guest: Guest, call: m.Step) -> None:
        _, seat = guest.seat(call.client, Right.CHANGE)
        seat.client_of(call.thread).step(call.thread, call.registers, signal=call.signal)

    def _catch(self, guest: Guest, call: m.Catch) -> None:
        _, seat = guest.seat(call.client, Right.CHANGE)
        match call.what:
            case "signals":
                seat.client.catch_signals(call.wanted)  # type: ignore[arg-type]
            case "syscalls":
                seat.client.catch_syscalls(call.wanted)
            case _:
                raise UsageError(f"{call.what!r} cannot be caught; choose signals or syscalls")


def _mappings_of(hosted: Hosted) -> Sequence[MappedRange]:
    """What is mapped; raises TargetGone. A leader that has exited shows nothing, and the other threads do."""
    for tid in dict.fromkeys((hosted.pid, *hosted.target.threads())):
        with contextlib.suppress(OSError):
            text = Path(f"/proc/{hosted.pid}/task/{tid}/maps").read_text(errors="surrogateescape")
            if text and hosted.status is None:  # else it may be another's by now
                return parse_maps(text)
    raise TargetGone(hosted.pid, hosted.status)


# The memory of an AddressSpace stays the same one when its process execs as long as it is reached by /proc/PID/mem.
# ubpx-ptracepp reads eight bytes, and writes where protections hold, by process_vm_readv and _writev instead: they
# reach the memory that the process has by then, and the new program may be one that the peer may not trace.


def _read_guarded(memory: Memory, address: int, size: int) -> bytes:
    if size != _WORD:
        return memory.read(address, size)
    try:
        return memory.read(address, _WORD // 2) + memory.read(address + _WORD // 2, _WORD // 2)
    except MemoryFault:
        raise MemoryFault(address, size, "read") from None


def _write_guarded(memory: Memory, hosted: Hosted, address: int, data: bytes) -> None:
    """Where a new program's mappings are asked by mistake, the write is still into the old one's memory."""
    reached, end = address, address + len(data)
    for each in _mappings_of(hosted):
        if each.start <= reached < each.end and "w" in each.permissions:
            reached = each.end
    if reached < end:
        raise MemoryFault(address, len(data), "write")
    memory.patch(address, data)


def _check_places(*places: str | int) -> None:
    for place in places:
        if isinstance(place, str):
            _check_length("a place", place, LONGEST_PLACE)


def _check_length(what: str, text: str, longest: int) -> None:
    """Texts are kept, and shown to others."""
    if len(text) > longest:
        raise UsageError(f"{what} has {len(text)} characters, and may have {longest}; make it shorter")


def _check_size(size: int) -> None:
    if size > m.MEMORY_BYTES:
        raise UsageError(f"{size} bytes of memory; ask for at most {m.MEMORY_BYTES} at a time")


def _wait_elsewhere(_guest: Guest, _call: m.Wait) -> None:
    raise UsageError("a handler that waits for the end of its program would wait for itself; return a verdict instead")
