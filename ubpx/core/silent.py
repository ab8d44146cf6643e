"""Sites that run no client's handler: at a program's entry, and for children that share a program's memory."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from ubpx.core.ports import Site, TracedThread
from ubpx.core.sites import ProbeSite, Reception, probe_site, set_pc
from ubpx.core.spaces import AddressSpace
from ubpx.core.values import VirtAddr


class EntrySite:
    """The temporary trap at a new program's entry point, where its libraries are mapped."""

    __slots__ = ("_space", "address", "certain", "landing", "landing_word", "reception", "watchful")
    in_slot = False
    express = None

    def __init__(self, address: VirtAddr, space: AddressSpace, reception: Reception) -> None:
        self.address: Final = address
        self._space: Final = space
        self.landing: VirtAddr | None = None
        self.landing_word: Any = None
        self.watchful = 3
        self.certain = True
        self.reception: Final = reception

    def make_safe(self, thread: TracedThread) -> bool:
        """The trap is taken out at once, so the thread can start over."""
        set_pc(self.reception.tracer, thread, self._space, self.address)
        return True

    def arrive(self, thread: TracedThread) -> bool:
        """The program is ready."""
        self.reception.entered(thread)
        return False


class SilentSites(Mapping[int, Site]):
    """What children that share a space's memory meet at its traps: stepped over, not counted.

    Each site is made when one of them first gets there. Owned by the space.
    """

    def __init__(self, sites: Mapping[int, Site]) -> None:
        self._sites: Final = sites
        self._made: Final[dict[int, tuple[Site, Site]]] = {}
        """By PC: the site that it stands for, and the silent one."""

    def __getitem__(self, pc: int) -> Site:
        site = self._sites[pc]
        if isinstance(site, EntrySite):
            raise KeyError(pc)
        if not isinstance(site, ProbeSite):
            return site
        known, silent = self._made.get(pc, (None, site))
        if known is not site:
            silent = probe_site(site.probepoint, site.space, site.reception)
            self._made[pc] = site, silent
        return silent

    def __iter__(self) -> Iterator[int]:
        return iter(self._sites)

    def __len__(self) -> int:
        return len(self._sites)
