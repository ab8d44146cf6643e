"""Where instructions start in one function, as far as its bytes prove it. Functions over values.

Rule 1. Certain is what control can reach: from the function's start, from the starts of other functions in it and
   from what else is known to be jumped to, along fall-through and direct branches.
Rule 2. What lies between is decoded on from where the code before it ends (an indirect jump may lead there), and
   believed only if all that can be reached from there is sound: nothing undecodable, nothing in the middle of
   another instruction, no data. Direct branches of believed code make their targets certain in turn.
Rule 3. Data is what a symbol calls data, what an instruction reads or writes at an address that it says itself, and
   what has its address taken in such a way without being certain to be code.
Rule 4. Where two certain instructions overlap, a trap at the inner one would be read as a part of the outer one:
   the inner start is refused. A trap at the outer one is met by those alone who come that way.
"""

import bisect
from collections.abc import Iterator, Mapping
from typing import Final

import attrs

from ubpx.core.ubp import Architecture, Flow
from ubpx.core.values import VirtAddr

_ASSUME: Final = "pass assume_boundary=True if you know that one starts there"
_ENTANGLED: Final = "its function is too entangled to tell code from data"
_MOST_ROUNDS: Final = 16
"""Each finds data in what the round before took for code; more than three are hardly ever needed."""
_SHOWN_BYTES: Final = 8
MOST_KEPT: Final = 8
"""Proofs of one memory; the largest functions (libpython's interpreter loop) take 5 MB."""


@attrs.frozen
class Objection:
    """Why no probe may stand at an address, and what to do about it."""

    reason: str
    remedy: str


@attrs.frozen(kw_only=True)
class Function:
    """What is to be proved: bytes, and what is known of them beforehand. Addresses are virtual."""

    code: bytes = attrs.field(repr=False)
    start: VirtAddr
    entries: tuple[VirtAddr, ...] = ()
    """Where instructions start besides ``start``."""
    data: tuple[tuple[VirtAddr, VirtAddr], ...] = ()
    """Spans that are known to be data, ascending."""

    @property
    def end(self) -> VirtAddr:
        """The address behind the last byte."""
        return VirtAddr(self.start + len(self.code))

    def __contains__(self, address: object) -> bool:
        return isinstance(address, int) and self.start <= address < self.end

    def shown(self, address: int, end: int | None = None) -> str:
        """The bytes from the address on, for people."""
        stop = address + _SHOWN_BYTES if end is None else end
        return self.code[address - self.start : stop - self.start].hex(" ")


class Proof:
    """Where instructions start in one function. Immutable once made, by ``prove``."""

    def __init__(
        self,
        function: Function,
        found: dict[VirtAddr, Flow],
        used: dict[VirtAddr, str],
        holes: list["_Hole"],
        *,
        longest_insn: int,
    ) -> None:
        self.function: Final = function
        # Among so many instructions up to an address is any that contains it: each starts elsewhere.
        self._near: Final = longest_insn
        self._found = found
        self._starts = sorted(found)
        self._inner = dict(self._overlaps())
        self._used = {flow.start: use for at, use in used.items() for flow in self._containing(at)}
        self._holes = sorted(holes, key=lambda hole: hole.start)

    def objection(self, address: VirtAddr) -> Objection | None:
        """Why no probe may stand there; None where an instruction is proved to start that no other contains."""
        for start, end in self.function.data:
            if start <= address < end:
                return Objection(f"a symbol says that the bytes from {start:#x} to {end:#x} are data", _ASSUME)
        flow = self._found.get(address)
        if flow is not None:
            return self._objection_to(flow)
        around = next(self._containing(address), None)
        if around is not None:
            what = f"it is inside the instruction at {around.start:#x} ({self._bytes(around)})"
            return Objection(what, "probe that instruction's start")
        at = bisect.bisect_right(self._holes, address, key=lambda hole: hole.start) - 1
        known = at >= 0 and address < self._holes[at].end
        return Objection(self._holes[at].reason if known else _ENTANGLED, _ASSUME)

    def _objection_to(self, flow: Flow) -> Objection | None:
        outer = self._inner.get(flow.start)
        if outer is not None:
            return Objection(
                f"two instructions overlap: control comes to it directly, and to the one at {outer.start:#x} "
                f"({self._bytes(outer)}), which a trap here would corrupt",
                f"probe {outer.start:#x}, or the instruction behind both",
            )
        use = self._used.get(flow.start)
        return None if use is None else Objection(use, _ASSUME)

    def _bytes(self, flow: Flow) -> str:
        return self.function.shown(flow.start, flow.end)

    def _containing(self, address: int) -> Iterator[Flow]:
        """The proved instructions that contain the address, the first ones first."""
        at = bisect.bisect_right(self._starts, address)
        near = (self._found[start] for start in self._starts[max(at - self._near, 0) : at])
        return (flow for flow in near if flow.end > address)

    def _overlaps(self) -> Iterator[tuple[VirtAddr, Flow]]:
        """Starts inside other proved instructions, each with the outer one."""
        outer: Flow | None = None
        for start in self._starts:
            if outer is not None and start < outer.end:
                yield start, outer
            else:
                outer = self._found[start]


def prove(architecture: Architecture, function: Function) -> Proof:
    """Find out where instructions start."""
    search = _Search(architecture, function)
    search.run()
    return Proof(function, search.found, search.used, search.holes, longest_insn=architecture.longest_insn)


class Proofs:
    """The proofs made last of one memory, by the functions' starts. Owned by its AddressSpace."""

    def __init__(self) -> None:
        self._kept: dict[VirtAddr, Proof] = {}

    def get(self, start: VirtAddr) -> Proof | None:
        """The one of the function that starts there; its bytes may have changed since."""
        return self._kept.get(start)

    def keep(self, start: VirtAddr, proof: Proof) -> None:
        """Keep it, and drop the oldest."""
        self._kept.pop(start, None)
        self._kept[start] = proof
        while len(self._kept) > MOST_KEPT:
            del self._kept[next(iter(self._kept))]


@attrs.frozen
class _Hole:
    """Bytes in which nothing is proved."""

    start: VirtAddr
    end: VirtAddr
    reason: str


@attrs.frozen
class _Unsound:
    """What speaks against an attempt: where it came to, and what is wrong there."""

    address: VirtAddr
    why: str


class _Search:
    """Finds instructions by the rules above. Owned by one call of ``prove``."""

    def __init__(self, architecture: Architecture, function: Function) -> None:
        self.found: dict[VirtAddr, Flow] = {}
        self.used: dict[VirtAddr, str] = {}
        """Where data begins that an instruction uses, and who says so."""
        self.holes: list[_Hole] = []
        self._architecture, self._function = architecture, function
        self._decoded: dict[VirtAddr, Flow | None] = {}
        self._certain: dict[VirtAddr, Flow] = {}
        self._covered = bytearray()
        self._budget = 8 * len(function.code)

    def run(self) -> None:
        """Round after round, until no data turns up in what was believed."""
        self._explore_certain()
        for _ in range(_MOST_ROUNDS):
            self._begin()
            while self._fill():
                self.holes = []
            if not self._data_in_believed():
                return
        self._begin()

    def _begin(self) -> None:
        self.found, self.holes = {}, []
        self._covered = bytearray(len(self._function.code))
        self._believe(self._certain)

    def _believe(self, flows: Mapping[VirtAddr, Flow]) -> None:
        self.found.update(flows)
        base = self._function.start
        for flow in flows.values():
            self._covered[flow.start - base : flow.end - base] = b"\1" * (flow.end - flow.start)
            operand = flow.operand
            if operand is None or operand not in self._function or operand in self.used:
                continue
            if flow.touches:
                self.used[operand] = f"the instruction at {flow.start:#x} reads or writes what stands there, as data"
            elif operand not in self._certain:
                self.used[operand] = f"the instruction at {flow.start:#x} takes its address, perhaps that of data"

    def _data_in_believed(self) -> bool:
        """Whether data stands in an instruction that is only believed."""
        longest = self._architecture.longest_insn
        for at in self.used:
            around = (self.found.get(VirtAddr(start)) for start in range(at - longest + 1, at + 1))
            if any(flow is not None and flow.end > at and flow.start not in self._certain for flow in around):
                return True
        return False

    def _explore_certain(self) -> None:
        """Rule 1."""
        function, work = self._function, [self._function.start, *self._function.entries]
        while work:
            at = work.pop()
            while at in function and at not in self._certain and (flow := self._decode(at)) is not None:
                self._certain[at] = flow
                work += self._targets(flow)
                if not self._goes_on(flow):
                    break
                at = flow.end

    def _fill(self) -> bool:
        """Rule 2, once over all that is not covered; True if that has made certain what stood in a hole given up."""
        at, changed, base = 0, False, self._function.start
        while (at := self._covered.find(0, at)) >= 0:
            end = self._covered.find(1, at)
            end = len(self._covered) if end < 0 else end
            attempt = self._attempt(VirtAddr(base + at))
            if isinstance(attempt, _Unsound):
                self.holes.append(_Hole(VirtAddr(base + at), VirtAddr(base + end), _reason(base + at, attempt)))
                at = end
            else:
                self._believe(attempt)
                changed = changed or any(start < base + at for start in attempt)
        return changed and bool(self.holes)

    def _attempt(self, first: VirtAddr) -> dict[VirtAddr, Flow] | _Unsound:
        """All that can be reached from ``first`` and is not covered, if it is sound."""
        function, work = self._function, [first]
        attempt: dict[VirtAddr, Flow] = {}
        inside: dict[int, Flow] = {}
        while work:
            at = work.pop()
            while at in function and at not in attempt and at not in self.found:
                flow = self._decode(at)
                if flow is None:
                    return _Unsound(at, f"the bytes ({function.shown(at)}) are no instruction that is known")
                wrong = self._wrong(flow, attempt, inside)
                if wrong is not None:
                    return _Unsound(at, wrong)
                attempt[at] = flow
                inside.update((byte, flow) for byte in range(flow.start + 1, flow.end))
                work += self._targets(flow)
                if not self._goes_on(flow):
                    break
                at = flow.end
        return attempt

    def _wrong(self, flow: Flow, attempt: Mapping[VirtAddr, Flow], inside: Mapping[int, Flow]) -> str | None:
        """What is wrong with an instruction of an attempt, given those before it."""
        function, span = self._function, range(flow.start, flow.end)
        self._budget -= 1
        if self._budget < 0:
            return "the search was given up"
        if self.used and any(byte in self.used for byte in span):
            return "data begins"
        if any(start < flow.end and flow.start < end for start, end in function.data):
            return "a symbol says that there is data"
        if self._covered.find(1, flow.start - function.start, flow.end - function.start) >= 0:
            return f"the bytes ({function.shown(flow.start, flow.end)}) overlap a proved instruction"
        outer = inside.get(flow.start)
        skips_prefixes = outer is None or flow.start - outer.start <= outer.prefixes
        if not skips_prefixes or any(at in attempt and at - flow.start > flow.prefixes for at in span):
            return "two instructions would overlap"
        return None

    def _decode(self, at: VirtAddr) -> Flow | None:
        if at not in self._decoded:
            offset = at - self._function.start
            code = self._function.code[offset : offset + self._architecture.longest_insn]
            self._decoded[at] = next(self._architecture.flow(code, at), None)
        return self._decoded[at]

    def _targets(self, flow: Flow) -> list[VirtAddr]:
        return [flow.target] if flow.target is not None and flow.target in self._function else []

    def _goes_on(self, flow: Flow) -> bool:
        """Whether the instruction behind is sure to be one; a call over bytes of the same function may skip data."""
        skips = flow.calls and flow.target is not None and flow.end < flow.target < self._function.end
        return flow.falls_through and not skips


def _reason(first: int, unsound: _Unsound) -> str:
    if unsound.address == first:
        return f"at {first:#x} {unsound.why}, and what follows is reached by no direct branch"
    return (
        f"no direct branch leads there, and decoding on from {first:#x} comes to {unsound.address:#x}, "
        f"where {unsound.why}"
    )
