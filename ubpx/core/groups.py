"""Many places of one client at once: which stay dormant, and which are armed like any other. In the tracer thread.

Of a dormant one nothing is made but its trap: what is done for each here may be done a million times.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import attrs

from ubpx._errors import ForeignTrap, InsnRefused, InternalError, MemoryFault, UbpxError
from ubpx.core import arming, batches, footing
from ubpx.core.clients import Client, ClientState
from ubpx.core.coordinator import Coordinator
from ubpx.core.dormancy import HEAD_SIZE, DormantGroup, DormantLease, GroupSleeper
from ubpx.core.dormant import BLOCK_SIZE
from ubpx.core.grounds import Mapped, is_rewritable
from ubpx.core.leasing import Leasing, all_stays
from ubpx.core.probepoints import Handler, Lease, LeaseGroup, LeaseState
from ubpx.core.requests import Request
from ubpx.core.sites import Reception, TombSite
from ubpx.core.sleepers import SLEEPS, SLOT_NEEDED, Sleeper, Verdicts, judge, open_tombs
from ubpx.core.spaces import AddressSpace, TracedProcess
from ubpx.core.values import PAGE_SIZE, VirtAddr
from ubpx.core.wanted import Asked, Wanted, by_mapping, check_number, sorted_out, taken

WORTH: Final = 64
"""Fewer places are armed like single ones."""
_MANY: Final = 1 << 12
"""Slots: so many are free near what is armed, or one for each place."""
_SHORT: Final = 4
"""Bytes: most first instructions are no longer, and then what is to become of one is found by these."""

Run = Callable[[Callable[[], None]], None]


@attrs.frozen
class _Piece:
    """Code of one mapping in one block, and which places of it are to be dormant."""

    start: VirtAddr
    code: bytes
    marks: bytearray
    addresses: Sequence[VirtAddr]
    heads: bytes


@attrs.frozen
class _Known:
    """What is to become of instructions."""

    by_kind: Verdicts = attrs.field(factory=dict)
    by_head: Verdicts = attrs.field(factory=dict)
    """By the first bytes of those that are no longer."""


class Groups:
    """All groups of one target of which some places are dormant. Owned by its desk; implements ``dormancy.Keeping``."""

    def __init__(self, coordinator: Coordinator, leasing: Leasing, run: Run) -> None:
        self.reception: Reception = coordinator.reception
        self.run: Final = run
        self._coordinator: Final = coordinator
        self._leasing: Final = leasing
        self._sleepers: Final[dict[GroupSleeper, None]] = {}
        self._known: Final[dict[tuple[str, bool], _Known]] = {}
        """By what they depend on beside the instruction: the architecture, and whether there are slots."""

    # Arming -------------------------------------------------------------------------------

    def probe(
        self, client: Client, process: TracedProcess, wanted: Wanted, request: Request, handler: Handler
    ) -> LeaseGroup | None:
        """See ``Client.probe_many``. None: a handler or an exec has come between; once more, please."""
        client.check_live()
        with all_stays():
            if not isinstance(wanted, str):
                check_number(wanted, len(wanted))
            answers = self._leasing.resolve_many(wanted, process)
            check_number(wanted, len(answers))
            if len(answers) < WORTH or not _may_be_dormant(process, request):
                found = batches.sort_out(wanted, answers, skip_refused=request.skip_refused)
                leases = self._leasing.probe_many(client, process, found, request, handler)
                return None if leases is None else LeaseGroup(client, leases, found.refused)
            return self._probe(client, process, sorted_out(wanted, answers, request), request, handler)

    def _probe(
        self, client: Client, process: TracedProcess, asked: Asked, request: Request, handler: Handler
    ) -> LeaseGroup | None:
        space, found = process.space, asked.found
        sleeper = GroupSleeper(
            self, process, client, request, handler, age=self._leasing.next_age(), spec_of=asked.spec_of
        )
        mapped = Mapped(process.mappings())
        asked.set_apart(taken(space, asked.plain))
        pieces = list(self._pieces(space, asked, mapped))
        asked.plain = [address for piece in pieces for address in piece.addresses]
        found.others = bool(asked.plain)
        found.check_any()
        self._make_room(sleeper, asked, mapped)
        if _something_came_between(client, process, space, asked.plain):  # the program was served meanwhile
            return None
        awake = self._leasing.probe_many(client, process, found, request, handler) if found.places else []
        if awake is None:
            return None
        try:
            if _something_came_between(client, process, space, asked.plain):
                self._leasing.withdraw(awake, LeaseState.RELEASED, process)
                return None
            self._let_stand(sleeper, pieces, mapped)
        except BaseException:
            self._leasing.withdraw(awake, LeaseState.RELEASED, process)
            raise
        by_address = {lease.address: lease for lease in awake if lease.address is not None}
        order = asked.order
        if len(order) > len(asked.plain) + len(by_address):  # some were refused
            known = by_address.keys() | set(asked.plain)
            order = [address for address in order if address in known]
        return DormantGroup(sleeper, order, by_address, found.refused)

    def _make_room(self, sleeper: GroupSleeper, asked: Asked, mapped: Mapped) -> None:
        """All that the program has to do for it, which may be served meanwhile."""
        space, plain = sleeper.space, asked.plain
        for _, first, last in by_mapping(plain, mapped):
            self._coordinator.jumps.clear(space, range(plain[first], plain[last - 1] + 1))
            sleeper.make_room((plain[first], plain[last - 1]), min(_MANY, last - first))
        self._coordinator.keeper.protect(space, len(plain) + len(asked.found.places))

    def _pieces(self, space: AddressSpace, asked: Asked, mapped: Mapped) -> Iterator[_Piece]:
        """What is to be dormant; what cannot is set apart, or refused."""
        plain, apart = asked.plain, list[VirtAddr]()
        for mapping, first, last in by_mapping(plain, mapped):
            if mapping is None or not mapping.executable or is_rewritable(mapping) or not mapping.inode:
                apart += plain[first:last]  # somebody may write beside a trap, which then must be written alone
                continue
            at = first
            while at < last:
                stop = bisect_left(plain, plain[at] - plain[at] % BLOCK_SIZE + BLOCK_SIZE, at, last)
                piece, singly = self._decide(space, asked, plain[at:stop])
                apart += singly
                if piece.addresses:
                    yield piece
                at = stop
        asked.set_apart(apart)

    def _decide(
        self, space: AddressSpace, asked: Asked, addresses: Sequence[VirtAddr]
    ) -> tuple[_Piece, list[VirtAddr]]:
        """Which of them may be dormant; and which need a slot at once."""
        start, end = addresses[0], addresses[-1] + 1
        code = _read(space, start, end).ljust(end - start + HEAD_SIZE, b"\0")
        marks = bytearray(end - start)
        known = self._known_of(space)
        places = [address - start for address in addresses]
        verdicts = [known.by_head.get(code[at : at + _SHORT]) for at in places]
        singly: list[VirtAddr] = []
        if any(verdicts) or None in verdicts:
            dormant, singly = self._decide_others(space, asked, code, addresses, verdicts)
            if len(dormant) < len(addresses):
                addresses, places = dormant, [address - start for address in dormant]
        for at in places:
            marks[at] = 255
        heads = b"".join([code[at : at + HEAD_SIZE] for at in places])
        return _Piece(start, code[: end - start], marks, addresses, heads), singly

    def _decide_others(
        self,
        space: AddressSpace,
        asked: Asked,
        code: bytes,
        addresses: Sequence[VirtAddr],
        verdicts: Sequence[str | None],
    ) -> tuple[Sequence[VirtAddr], list[VirtAddr]]:
        """The same where some have no verdict yet, or another; ``code`` is that from the first address on."""
        start, known = addresses[0], self._known_of(space)
        unknown = [address - start for address, verdict in zip(addresses, verdicts, strict=True) if verdict is None]
        set_apart = {address: verdict for address, verdict in zip(addresses, verdicts, strict=True) if verdict}
        for at, (length, kind) in zip(unknown, space.architecture.kinds(code, unknown), strict=True):
            verdict = known.by_kind.get(kind)
            if verdict is None:
                verdict = judge(space, code[at : at + HEAD_SIZE], VirtAddr(start + at))
                if length:
                    known.by_kind[kind] = verdict
            if 0 < length <= _SHORT:
                known.by_head[code[at : at + _SHORT]] = verdict
            if verdict != SLEEPS:
                set_apart[VirtAddr(start + at)] = verdict
        if not set_apart:
            return addresses, []
        singly: list[VirtAddr] = []
        for address in sorted(set_apart):
            if set_apart[address] == SLOT_NEEDED:
                singly.append(address)
            else:
                at = address - start
                self._refuse(space, asked, code[at : at + HEAD_SIZE], address)
        return [address for address in addresses if address not in set_apart], singly

    def _known_of(self, space: AddressSpace) -> _Known:
        return self._known.setdefault((space.architecture.name, space.slots_allowed), _Known())

    def _refuse(self, space: AddressSpace, asked: Asked, head: bytes, address: VirtAddr) -> None:
        try:
            arming.choose(space, arming.analyze_code(space, head[: HEAD_SIZE - 1], address), None)
        except (InsnRefused, ForeignTrap) as error:
            asked.refuse(address, error)

    def _let_stand(self, sleeper: GroupSleeper, pieces: Sequence[_Piece], mapped: Mapped) -> None:
        """Write all the traps, or none; raises MemoryFault, NotAnInstruction, UsageError."""
        space, dormant = sleeper.space, sleeper.space.dormant
        reception = self.reception
        dormant.tomb = lambda address: TombSite(address, space, reception)
        for piece in pieces:
            space.grounds.note(piece.addresses, mapped, space.memory)
            if space.guard is not None:
                fresh, code, start = dormant.unknown(piece.addresses), piece.code, piece.start
                space.guard.stand([(each, code[each - start : each - start + 1]) for each in fresh], for_good=True)
        sleeper.addresses = [address for piece in pieces for address in piece.addresses]
        sleeper.heads = b"".join(piece.heads for piece in pieces)
        sleeper.pages = frozenset(address // PAGE_SIZE for address in sleeper.addresses)
        open_tombs(space, sleeper.addresses)
        with space.memory.writing:
            try:
                for piece in pieces:
                    dormant.insert(space.raw, piece.start, piece.code, piece.marks, sleeper)
            except BaseException:
                dormant.take_out(space.raw, sleeper)
                raise
        self._sleepers[sleeper] = None

    # Giving back --------------------------------------------------------------------------

    def release(self, group: DormantGroup, process: TracedProcess | None) -> None:
        """End all its leases. Again: does nothing."""
        self._end(group.sleeper, LeaseState.RELEASED, process)
        self._leasing.withdraw(tuple(group.known), LeaseState.RELEASED, process)

    def withdraw(self, leases: Sequence[Lease], state: LeaseState, process: TracedProcess | None) -> Sequence[Lease]:
        """End those of the leases whose probepoints are dormant, without waking one; the others."""
        dormant: dict[GroupSleeper, list[DormantLease]] = {}
        for lease in leases:
            if isinstance(lease, DormantLease) and lease.is_dormant:
                dormant.setdefault(lease.sleeper, []).append(lease)
        if not dormant or process is None or process.ended.is_set():
            return leases
        self.look(process)
        ended = set[Lease]()
        for sleeper, several in dormant.items():
            if sleeper.space is process.space:
                several = [each for each in several if each.is_dormant]  # noqa: PLW2901 - what was changed is woken
                with sleeper.space.memory.writing:
                    addresses = [each.address for each in several if each.address is not None]
                    sleeper.space.dormant.take_out_some(sleeper.space.raw, sleeper, addresses)
                for lease in several:
                    self._leasing.requests.remove(lease)
                    lease.state = state
                ended.update(several)
        return [lease for lease in leases if lease not in ended]

    def release_of(self, client: Client, state: LeaseState, process: TracedProcess | None) -> None:
        """All of a client's; leases that were made are among its requests, and are left to whoever asks."""
        for sleeper in [each for each in self._sleepers if each.probe.client is client]:
            self._end(sleeper, state, process)

    def _end(self, sleeper: GroupSleeper, state: LeaseState, process: TracedProcess | None) -> None:
        if not sleeper.lives:
            return
        space = sleeper.space
        if process is not None and process.space is space and not process.ended.is_set():
            self.look(process)
            with space.memory.writing:
                space.dormant.take_out(space.raw, sleeper)
        sleeper.state = state
        self._sleepers.pop(sleeper, None)

    def end(self, state: LeaseState) -> None:
        """The process is left, or has ended: whoever sees to that takes the traps out."""
        for sleeper in self._sleepers:
            sleeper.state = state
        self._sleepers.clear()

    def suspend(self) -> None:
        """The program is gone: what was given by a spec waits for its module."""
        for sleeper in tuple(self._sleepers):
            for address in tuple(sleeper.dormant()):
                sleeper.lose(address)
        self.end(LeaseState.LOST)

    def forget(self, space: AddressSpace, addresses: range) -> None:
        """What was mapped there is gone: the same, for these addresses."""
        for sleeper in tuple(self._sleepers):
            if sleeper.space is space:
                for address in [each for each in sleeper.dormant() if each in addresses]:
                    sleeper.lose(address)

    # Asking -------------------------------------------------------------------------------

    def make_leases_of(self, client: Client) -> None:
        """Make those of a client's leases that are not made yet, because somebody asks for all of them."""
        for sleeper in tuple(self._sleepers):
            if sleeper.probe.client is client:
                sleeper.make_leases(tuple(sleeper.dormant()))

    def look(self, process: TracedProcess) -> None:
        """Make probepoints where something else stands than was written, so that it is found out what that is."""
        space = process.space
        sleepers = [each for each in self._sleepers if each.space is space]
        if not sleepers or space.taking_turns:
            return
        mapped = Mapped(process.mappings())
        if not mapped.ranges:
            return
        for sleeper in sleepers:
            gone = space.dormant.missing(space.raw, sleeper)
            moved = {page for page in sleeper.pages if not space.grounds.is_same(page * PAGE_SIZE, mapped)}
            if moved:
                gone += [each for each in sleeper.dormant() if each // PAGE_SIZE in moved]
            if gone and not footing.is_dying(space, mapped):
                for address in dict.fromkeys(gone):
                    sleeper.wake_as_it_was(address)

    # What sleepers need -------------------------------------------------------------------

    def map_area(self, space: AddressSpace, reach: Sequence[VirtAddr], size: int) -> None:
        """See ``Keeper.map_area``."""
        self._coordinator.keeper.map_area(space, reach, size)

    def new_lease(self, sleeper: GroupSleeper, spec: str | None) -> DormantLease:
        """One of its leases, which is nobody's request yet."""
        made = self._leasing.new_lease(
            sleeper.probe.client, sleeper.request, sleeper.handler, spec, age=sleeper.age, kind=DormantLease
        )
        if not isinstance(made, DormantLease):
            raise InternalError(f"{made!r} is no lease that sleeps")
        return made

    def add(self, lease: Lease, request: Request) -> None:
        """It is its client's request from now on."""
        self._leasing.requests.add(lease, request)

    def grant(self, sleeper: GroupSleeper, lease: Lease, address: VirtAddr) -> None:
        """Let it share what stands there."""
        self._leasing.grant(lease, sleeper.space, address)

    def let_go(self, lease: Lease, why: UbpxError | None) -> None:
        """Nothing of ours stands at its place any more: given by a spec it waits, else it is lost."""
        if lease.spec:
            self._leasing.wait_for_module(lease, why)
        elif self._leasing.requests.remove(lease):
            lease.state = LeaseState.LOST

    def lease(self, sleeper: Sleeper, address: VirtAddr) -> Lease:
        """See ``sleepers.Services``: a group's sleeper asks for ``grant``."""
        raise InternalError(f"{sleeper!r} asked for a lease at {address:#x}")

    def end_lease(self, process: TracedProcess, lease: Lease) -> bool:
        """See ``Leasing.end_after_hit``."""
        return self._leasing.end_after_hit(process, lease)


def _something_came_between(
    client: Client, process: TracedProcess, space: AddressSpace, plain: Sequence[VirtAddr]
) -> bool:
    """While the program was served: one of them is gone, or something was armed there, or a jump made."""
    stays = process.space is space and not process.ended.is_set() and client.state is ClientState.LIVE
    if not stays or taken(space, plain):
        return True
    return bool(plain and space.registry.jumps_near(range(plain[0], plain[-1] + 1)))


def _may_be_dormant(process: TracedProcess, request: Request) -> bool:
    """Whether what is asked for is the same for a dormant probepoint."""
    space = process.space
    special = request.strategy is not None or request.exclusive or not request.inherited
    # Followed children have leases like these: they are made of leases.
    return not (special or process.follow.forks or len(space.architecture.trap_bytes) > 1 or space.dormant.full)


def _read(space: AddressSpace, start: int, end: int) -> bytes:
    """The program's own bytes, those of the last place's instruction included as far as they can be read."""
    try:
        return space.memory.read(start, end + HEAD_SIZE - start)
    except MemoryFault:
        return space.memory.read(start, -(-end // PAGE_SIZE) * PAGE_SIZE - start)
