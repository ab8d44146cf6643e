"""Probing code as a whole: a trap on every instruction of it, and for each nothing more before a thread gets there.

In the tracer thread. How a dormant trap becomes a probepoint is in ``sleepers``.
"""

import contextlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from ubpx._errors import (
    AddressRefused,
    ForeignTrap,
    InsnRefused,
    NotExecutable,
    ProbepointBusy,
    SlotsExhausted,
    StrategyRefused,
    UsageError,
)
from ubpx.core import arming, batches, boundaries, proofs
from ubpx.core.clients import Client
from ubpx.core.coordinator import Coordinator
from ubpx.core.leasing import Leasing, all_stays
from ubpx.core.probepoints import Lease, LeaseState
from ubpx.core.sites import Reception, TombSite
from ubpx.core.sleepers import SLOT_NEEDED, CodeProbe, Sleeper, Verdicts, judge, open_tombs, reason_of
from ubpx.core.spaces import AddressSpace, TracedProcess
from ubpx.core.values import MappedRange, Place, VirtAddr

_MANY: Final = 1 << 12
"""Slots: so many are free near code when it is armed."""

_UNPROVED: Final = "it may be data, or be in the middle of another instruction: its function names such places"


class _Piece:
    """Code of one mapping that is about to be probed."""

    def __init__(self, start: int, code: bytes) -> None:
        self.start: Final = start
        self.code: Final = code
        self.marks: Final = bytearray(len(code))
        """1 where an instruction starts that may be dormant."""
        self.single: Final[set[VirtAddr]] = set()
        """Where one starts that needs a slot at once."""

    def has(self, address: VirtAddr) -> bool:
        """Whether an instruction starts there that is to be probed."""
        at = address - self.start
        return (0 <= at < len(self.marks) and self.marks[at] != 0) or address in self.single

    def refuse(self, address: VirtAddr, reason: str, probe: CodeProbe) -> None:
        """It is not to be probed after all."""
        self.marks[address - self.start] = 0
        self.single.discard(address)
        probe.refused[reason] += 1


class CodeProbes:
    """All code of one target that is probed as a whole. Owned by its desk."""

    def __init__(self, coordinator: Coordinator, leasing: Leasing) -> None:
        self._coordinator: Final = coordinator
        self._leasing: Final = leasing
        self.reception: Reception = coordinator.reception
        """What sleepers need of the coordinator, beside the methods below."""
        self._sleepers: Final[dict[CodeProbe, Sleeper]] = {}
        self._verdicts: Final[dict[tuple[str, bool], Verdicts]] = {}
        """By what they depend on beside the instruction: the architecture, and whether there are slots."""

    def probe(
        self, process: TracedProcess, probe: CodeProbe, ranges: Iterable[range], sequences: Sequence[range]
    ) -> None:
        """Probe every instruction of the ``ranges``: each is decoded from its start, and none overlaps another.

        In restartable ``sequences``, and where one is led into, all are refused; so is what another client holds
        exclusively, since a tool takes what it can get of code as a whole: ``probe.refused`` says whose it is.
        Raises NotExecutable, MemoryFault, UsageError, TargetGone; then nothing is armed.
        """
        probe.client.check_live()
        space = process.space
        mappings = [each for each in process.mappings() if each.executable]
        pieces = _by_mapping(mappings, sorted(_checked(ranges), key=lambda each: each.start))
        sleeper = self._sleepers[probe] = Sleeper(self, probe, process, age=self._leasing.next_age())
        space.dormant.tomb = lambda address: TombSite(address, space, self._coordinator.reception)
        try:
            with all_stays():
                for mapping, several in pieces:
                    self._arm(sleeper, mapping, several, sequences)
        except BaseException:
            self.release(probe, LeaseState.RELEASED, process)
            raise

    def _arm(self, sleeper: Sleeper, mapping: MappedRange, ranges: Sequence[range], sequences: Sequence[range]) -> None:
        start, end = ranges[0].start, max(each.stop for each in ranges)
        sleeper.make_room((VirtAddr(start), VirtAddr(end)), _MANY)
        space = sleeper.space
        self._coordinator.jumps.clear(space, range(start, end))
        piece = _Piece(start, space.memory.read(start, end - start))
        self._decide(sleeper, piece, ranges)
        for sequence in sequences:
            self._spare(sleeper, piece, sequence)
        apart = (
            "w" in mapping.permissions or mapping.permissions.endswith("s") or len(space.architecture.trap_bytes) > 1
        )
        single = [*piece.single, *_taken(space, range(start, end), piece.marks)]
        if apart:  # somebody may write beside a trap, which then must be written alone
            single += [VirtAddr(start + at) for at, mark in enumerate(piece.marks) if mark]
        else:
            open_tombs(space, [VirtAddr(start + at) for at, mark in enumerate(piece.marks) if mark])
            self._tell_guard(space, piece)
            with space.memory.writing:
                space.dormant.insert(space.raw, start, piece.code, piece.marks, sleeper)
        self._arm_singly(sleeper, sorted(single))

    def _tell_guard(self, space: AddressSpace, piece: _Piece) -> None:
        """What stood once is known already, until all of the guard is given back."""
        marked = (at for at, mark in enumerate(piece.marks) if mark)
        fresh = [
            (VirtAddr(piece.start + at), piece.code[at : at + 1])
            for at in marked
            if not space.dormant.knows(piece.start + at)
        ]
        self._coordinator.keeper.protect(space, len(fresh))
        if space.guard is not None:
            space.guard.stand(fresh, for_good=True)

    def _decide(self, sleeper: Sleeper, piece: _Piece, ranges: Sequence[range]) -> None:
        """Find out where instructions start, and what is to become of each."""
        space, probe = sleeper.space, sleeper.probe
        verdicts = self._verdicts.setdefault((space.architecture.name, space.slots_allowed), {})
        walk, longest = space.architecture.walk, space.architecture.longest_insn
        start, code, marks = piece.start, piece.code, piece.marks
        named: list[int] = []
        near = range(start, start + len(code))
        for each in ranges:
            at, stop = each.start - start, each.stop - start
            for length, kind in walk(code[at:stop], VirtAddr(each.start), named=named, near=near):
                verdict = verdicts.get(kind)
                if verdict is None:
                    verdict = verdicts[kind] = judge(space, code[at : at + longest], VirtAddr(start + at))
                if not verdict:
                    marks[at] = 255
                elif verdict is SLOT_NEEDED:
                    piece.single.add(VirtAddr(start + at))
                else:
                    probe.refused[verdict] += 1
                    probe.instructions += 1
                at += length
            probe.undecoded += stop - at
        probe.instructions += len(marks) - marks.count(0) + len(piece.single)
        for each in _holding(ranges, named):
            self._doubt(sleeper, piece, each)

    def _doubt(self, sleeper: Sleeper, piece: _Piece, function: range) -> None:
        """Refuse what is not proved in a function that names places in its midst: they may be data."""
        code = piece.code[function.start - piece.start : function.stop - piece.start]
        proof = proofs.prove(sleeper.space.architecture, proofs.Function(code=code, start=VirtAddr(function.start)))
        for address in map(VirtAddr, function):
            if piece.has(address) and proof.objection(address) is not None:
                piece.refuse(address, _UNPROVED, sleeper.probe)

    def _spare(self, sleeper: Sleeper, piece: _Piece, sequence: range) -> None:
        """Refuse what is in a restartable sequence, or leads into it."""
        space = sleeper.space
        atomic = VirtAddr(sequence.start), VirtAddr(sequence.stop)
        for address in map(VirtAddr, range(sequence.start - space.architecture.longest_insn, sequence.stop)):
            if piece.has(address):
                place = Place(address=address, name="", symbol_start=None, symbol_end=None, atomic=atomic)
                try:
                    boundaries.check_interruptible(space, place, arming.analyze(space, address))
                except InsnRefused as error:
                    piece.refuse(address, error.reason, sleeper.probe)

    def _arm_singly(self, sleeper: Sleeper, addresses: Sequence[VirtAddr]) -> None:
        """Those that cannot be dormant: what others have probed already, and what cannot do without a slot."""
        space, probe = sleeper.space, sleeper.probe
        for address in addresses:
            space.dormant.wake(address)
        found = batches.Places(skip_refused=True)
        for address in addresses:
            found.places[address] = Place(address=address, name="", symbol_start=address, symbol_end=None), None
        self._arm_fresh(sleeper, found)
        for refusal in found.refused:
            probe.refused[reason_of(refusal.error)] += 1
        for address in found.places:
            try:
                space.registry.check(address, exclusive=False, strategy=None)
            except ProbepointBusy as busy:
                probe.refused[f"client {busy.holder!r} has it for itself"] += 1
            else:
                sleeper.grant(address)

    def _arm_fresh(self, sleeper: Sleeper, found: batches.Places) -> None:
        """Make probepoints without leases where there are none; what cannot be probed goes to ``found.refused``."""
        space = sleeper.space
        fresh = [place for place, _ in found.places.values() if space.registry.at(place.address) is None]
        prospects: Sequence[batches.Prospect] = ()
        if fresh:  # raised is what nothing but refusals leaves, each of which is noted
            with contextlib.suppress(AddressRefused, InsnRefused, ForeignTrap, StrategyRefused):
                prospects = batches.survey(space, fresh, found, None, assume_boundary=True)
        try:
            while not self._coordinator.batches.arm(space, prospects, sleeper.process.pid):
                prospects = [each for each in prospects if space.registry.at(each.address) is None]
        except (SlotsExhausted, ForeignTrap) as error:
            for each in prospects:
                found.refuse("", error)
                del found.places[each.address]

    def release(self, probe: CodeProbe, state: LeaseState, process: TracedProcess | None) -> None:
        """Take out what is dormant, and give back what was woken. Again: does nothing."""
        sleeper = self._sleepers.pop(probe, None)
        if sleeper is None:
            return
        probe.state = state
        space = sleeper.space
        if process is not None and process.space is space and not process.ended.is_set():
            with space.memory.writing:
                space.dormant.take_out(space.raw, sleeper)
        self._leasing.withdraw(tuple(sleeper.leases), state, process)

    def release_of(self, client: Client, state: LeaseState, process: TracedProcess | None) -> None:
        """All of a client's."""
        for probe in [each for each in self._sleepers if each.client is client]:
            self.release(probe, state, process)

    def end(self, state: LeaseState) -> None:
        """The process is left, has ended or runs another program: whoever sees to that takes the traps out."""
        for probe in self._sleepers:
            probe.state = state
        self._sleepers.clear()

    def wake_all(self, space: AddressSpace) -> None:
        """Make probepoints like any other of all that are dormant."""
        for address in tuple(space.dormant.among(range(2**64))):
            space.dormant.wake(address)

    # What sleepers need -------------------------------------------------------------------

    def map_area(self, space: AddressSpace, reach: Sequence[VirtAddr], size: int) -> None:
        """See ``Keeper.map_area``."""
        self._coordinator.keeper.map_area(space, reach, size)

    def lease(self, sleeper: Sleeper, address: VirtAddr) -> Lease:
        """A lease of the probepoint that stands there."""
        return self._leasing.share(
            sleeper.probe.client, sleeper.space, address, sleeper.request, sleeper.arrived, age=sleeper.age
        )

    def end_lease(self, process: TracedProcess, lease: Lease) -> bool:
        """See ``Leasing.end_after_hit``."""
        return self._leasing.end_after_hit(process, lease)


def _checked(ranges: object) -> Sequence[range]:
    """Raises UsageError unless they are ranges of code."""
    found: list[range] = []
    for each in ranges if isinstance(ranges, Iterable) else (ranges,):
        if not isinstance(each, range) or not each or each.step != 1:
            raise UsageError(f"{each!r}: ranges of code are range(start, end), not empty, step 1")
        found.append(each)
    return found


def _by_mapping(
    mappings: Sequence[MappedRange], ranges: Sequence[range]
) -> Iterator[tuple[MappedRange, Sequence[range]]]:
    """The ranges of each mapping; raises NotExecutable, UsageError."""
    starts = [each.start for each in mappings]
    found: dict[int, list[range]] = {}
    end = 0
    for each in ranges:
        number = bisect_right(starts, each.start) - 1
        if number < 0 or each.stop > mappings[number].end:
            reason = f"the code up to {each.stop:#x} is not mapped in one piece, executable"
            raise NotExecutable(VirtAddr(each.start), reason, "see /proc/PID/maps for what is")
        if each.start < end:
            raise UsageError(f"two ranges of code overlap at {each.start:#x}; each instruction is probed once")
        end = each.stop
        found.setdefault(number, []).append(each)
    return ((mappings[number], several) for number, several in found.items())


def _holding(ranges: Sequence[range], named: Iterable[int]) -> list[range]:
    """The ranges that hold some of the addresses behind their starts."""
    starts = [each.start for each in ranges]
    places = ((bisect_right(starts, address) - 1, address) for address in set(named).difference(starts))
    found = {at for at, address in places if at >= 0 and address in ranges[at]}
    return [ranges[at] for at in sorted(found)]


def _taken(space: AddressSpace, addresses: range, marks: bytearray) -> list[VirtAddr]:
    """Marked places at which a trap of ours stands already; they are marked no more."""
    taken = {patch.address for patch in space.patches.overlapping(addresses.start, len(addresses))}
    taken.update(space.dormant.among(addresses))
    found = [address for address in taken if address in addresses and marks[address - addresses.start]]
    for address in found:
        marks[address - addresses.start] = 0
    return found
