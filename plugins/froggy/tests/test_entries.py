"""What a broker makes of the leases of a group, and when, without a broker."""

from types import SimpleNamespace
from typing import Any

import pytest

from ubpx import Lease, LeaseState, UsageError
from ubpx.core.probepoints import LeaseGroup
from ubpx.core.values import VirtAddr
from ubpx_froggy.broker.entries import EntryGroup
from ubpx_froggy.broker.seats import Seat

ADDRESSES = (0x1010, 0x1020, 0x1030)


def lease_at(address: int) -> Lease:
    """As an in-process client has it."""
    lease = Lease(SimpleNamespace(name="c"), print, priority=3, age=1, spec=f"f_{address:x}", exclusive=False)
    lease.address, lease.state = VirtAddr(address), LeaseState.ARMED
    return lease


class Asleep(LeaseGroup):
    """Leases that are made when somebody asks for them."""

    def __init__(self) -> None:
        super().__init__(SimpleNamespace(name="c"), [], [])
        self.known: dict[int, Lease] = {}

    addresses = tuple(map(VirtAddr, ADDRESSES))
    lost = False

    @property
    def state(self) -> LeaseState:
        return LeaseState.LOST if self.lost else LeaseState.ARMED

    def __len__(self) -> int:
        return len(ADDRESSES)

    def made(self, address: VirtAddr) -> Lease | None:
        if address not in ADDRESSES:
            raise UsageError("as the test said")
        return self.known.get(address)

    def spec_of(self, address: VirtAddr) -> str:
        return f"f_{address:x}"

    def at(self, addresses: Any) -> tuple[Lease, ...]:
        return tuple(self.known.setdefault(each, lease_at(each)) for each in addresses)


@pytest.fixture
def seat() -> Seat:
    """That of a client who is not there."""
    nobody: Any = None
    target: Any = SimpleNamespace(pid=1)
    return Seat("c", 0, target, nobody, priority=0, hooks=())


@pytest.fixture
def asleep() -> Asleep:
    """Three leases, of which none is made."""
    return Asleep()


@pytest.fixture
def group(seat: Seat) -> EntryGroup:
    """Not granted yet."""
    made = EntryGroup(seat, "count", 3)
    seat.groups[made.secret] = made
    return made


def hit_at(lease: Lease) -> Any:
    return SimpleNamespace(lease=lease, pid=1)


def test_what_is_told_of_a_group_makes_nothing(seat: Seat, group: EntryGroup, asleep: Asleep) -> None:
    """Invariant: it is what would be told of its leases, and a handle tells it again."""
    infos = group.grant(asleep)
    assert [(each.address, each.spec, each.state, each.hits) for each in infos] == [
        (address, f"f_{address:x}", "ARMED", 0) for address in ADDRESSES
    ]
    assert [seat.info(each.lease) for each in infos] == infos
    assert (seat.entries, asleep.known, group.unmade) == ({}, {}, 3)
    made = seat.entry(infos[1].lease)
    assert made is not None
    assert made.info() == infos[1]
    assert (list(asleep.known), group.unmade) == ([ADDRESSES[1]], 2)
    assert seat.entry(infos[1].lease) is made


def test_a_hit_makes_the_entry_that_its_handle_names(seat: Seat, group: EntryGroup, asleep: Asleep) -> None:
    infos = group.grant(asleep)
    (lease,) = asleep.at([VirtAddr(ADDRESSES[2])])
    group(hit_at(lease))
    assert list(seat.entries) == [infos[2].lease]
    lease.hits = 7
    found = seat.info(infos[2].lease)
    assert found is not None
    assert found.hits == 7


def test_a_lease_that_is_hit_before_its_group_is_known_has_one_handle(
    seat: Seat, group: EntryGroup, asleep: Asleep
) -> None:
    """Invariant: that by which its hits were told already."""
    (lease,) = asleep.at([VirtAddr(ADDRESSES[0])])
    group(hit_at(lease))
    (handle,) = seat.entries
    infos = group.grant(asleep)
    assert [each.lease == handle for each in infos] == [True, False, False]
    assert len({each.lease for each in infos}) == 3


def test_a_lease_that_the_program_has_moved_keeps_its_handle(seat: Seat, group: EntryGroup, asleep: Asleep) -> None:
    """Invariant: after an exec it is armed elsewhere, and hit there for the first time."""
    infos = group.grant(asleep)
    (lease,) = asleep.at([VirtAddr(ADDRESSES[1])])
    lease.address = VirtAddr(ADDRESSES[2])
    group(hit_at(lease))
    assert list(seat.entries) == [infos[1].lease]


def test_handles_mean_nothing_once_their_leases_have_ended(seat: Seat, group: EntryGroup, asleep: Asleep) -> None:
    """Invariant: nor is anything made for them again; with the last one the group is forgotten."""
    infos = group.grant(asleep)
    seat.make([each.lease for each in infos])
    assert (len(seat.entries), group.unmade) == (3, 0)
    for number, info in enumerate(infos):
        assert len(seat.groups) == 1
        entry = seat.entry(info.lease)
        assert entry is not None
        seat.forget(entry)
        assert (seat.entry(info.lease), seat.info(info.lease)) == (None, None)
        assert len(seat.entries) == 2 - number
    assert seat.groups == {}


@pytest.mark.parametrize("forged", ["address", "short", "long", "huge", "empty"])
def test_a_handle_that_was_not_given_out_means_nothing(
    seat: Seat, group: EntryGroup, asleep: Asleep, forged: str
) -> None:
    handle = group.grant(asleep)[0].lease
    wrong = {
        "address": handle[:8] + bytes(8),
        "short": handle[:9],
        "long": handle + b"\0",
        "huge": handle[:8] + b"\xff" * 9,
        "empty": b"",
    }[forged]
    assert (seat.entry(wrong), seat.info(wrong), seat.entries) == (None, None, {})


def test_all_are_made_for_who_lists_them(seat: Seat, group: EntryGroup, asleep: Asleep) -> None:
    infos = group.grant(asleep)
    assert [entry.handle for entry in seat.alive()] == [each.lease for each in infos]


def test_leases_that_an_exec_has_moved_count_on(group: EntryGroup, asleep: Asleep) -> None:
    """Invariant: what is alive counts against the quota, also once its group sleeps no more."""
    group.grant(asleep)
    for lease in asleep.at(asleep.addresses[:2]):
        lease.state = LeaseState.PENDING
    asleep.lost = True
    assert group.unmade == 2
