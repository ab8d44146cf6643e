"""What one ``probe_many`` asks for: which places are known to hold an instruction, and which take more to say."""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import attrs

from ubpx._errors import UbpxError, UsageError
from ubpx.core import batches
from ubpx.core.grounds import Mapped
from ubpx.core.ports import FunctionPlaces, Refusal
from ubpx.core.requests import Request
from ubpx.core.spaces import AddressSpace
from ubpx.core.values import MappedRange, Place, VirtAddr

MOST_PLACES: Final = 1_000_000
"""That one call arms."""

Wanted = str | Sequence[str | int]


@attrs.define
class Asked:
    """What is asked for, sorted into what may be dormant and what may not. Owned by one call."""

    found: batches.Places
    """What may not be, and what is refused."""
    plain: Sequence[VirtAddr]
    """What may; ascending, each once."""
    order: Sequence[VirtAddr]
    """All, as the client gets them."""
    describe: Callable[[VirtAddr], Place]
    """Of a plain one."""
    spec_of: Callable[[VirtAddr], str | None]
    """The same: by which spec it can be found again."""

    def set_apart(self, addresses: Sequence[VirtAddr]) -> None:
        """These plain ones may not be dormant after all."""
        apart = set(addresses)
        for address in addresses:
            self.found.places[address] = self.describe(address), self.spec_of(address)
        self.plain = [address for address in self.plain if address not in apart]

    def refuse(self, address: VirtAddr, error: UbpxError) -> None:
        """One of the plain ones cannot be probed; raises, unless that is to be left out."""
        self.found.refuse(self.describe(address).name, error)


def check_number(wanted: Wanted, number: int) -> None:
    """Raises UsageError if it is too much for one call."""
    if number > MOST_PLACES:
        what = repr(wanted) if isinstance(wanted, str) else "the list"
        raise UsageError(
            f"{what} leads to {number} places, and one call arms {MOST_PLACES} at most; nothing was armed: "
            "narrow it, or probe in several calls"
        )


def sorted_out(wanted: Wanted, answers: Sequence[Place | Refusal], request: Request) -> Asked:
    """Which of the answers are just instructions that are known to start there. Raises the first refusal."""
    if isinstance(answers, FunctionPlaces):
        found = batches.sort_out(wanted, answers.others, skip_refused=request.skip_refused, others=bool(answers.starts))
        order = sorted([*answers.starts, *found.places]) if found.places else answers.starts
        describe = answers.describe
        return Asked(found, answers.starts, order, describe, lambda address: describe(address).name)
    found = batches.sort_out(wanted, answers, skip_refused=request.skip_refused)
    order = list(found.places)
    plain, specs = dict[VirtAddr, Place](), dict[VirtAddr, str | None]()
    for address, (place, spec) in found.places.items():
        proved = request.assume_boundary or (place.symbol_start == address and place.gap is None)
        if proved and place.atomic is None:
            plain[address], specs[address] = place, spec
    for address in plain:
        del found.places[address]
    return Asked(found, sorted(plain), order, plain.__getitem__, specs.get)


def taken(space: AddressSpace, plain: Sequence[VirtAddr]) -> Sequence[VirtAddr]:
    """Those places that have to do with what stands already."""
    if not plain:
        return ()
    near = range(plain[0], plain[-1] + 1)
    taken = set(space.dormant.among(near))
    for patch in space.patches.overlapping(near.start, len(near)):
        taken.update(map(VirtAddr, range(patch.address, patch.address + len(patch.trap))))
    for probepoint in space.registry.relying_on(near):
        taken.update(map(VirtAddr, probepoint.relied_on))
    return sorted(taken.intersection(plain)) if taken else ()


def by_mapping(addresses: Sequence[VirtAddr], mapped: Mapped) -> Iterator[tuple[MappedRange | None, int, int]]:
    """Which of the ascending addresses lie in one mapping, as indices: the first, and behind the last."""
    first = 0
    while first < len(addresses):
        mapping = mapped.at(addresses[first])
        last = first + 1 if mapping is None else bisect_left(addresses, mapping.end, first)
        yield mapping, first, last
        first = last
