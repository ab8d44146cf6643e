"""Many cases on one processor: each in place and by every strategy, and what came of it."""

import contextlib
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping
from typing import Any, Final

import attrs

from ubpx._errors import InsnRefused, TargetGone, UbpxError, UsageError
from ubpx.core.ubp import architecture as make_architecture
from ubpx.core.ubp.decode import CapstoneDecoder, IcedDecoder
from ubpx.core.ubp.plans import InsnAnalysis, Strategy
from ubpx.testing.oracle.cases import ANYWHERE, Aim, Case, Cases
from ubpx.testing.oracle.comparison import Differences, compare
from ubpx.testing.oracle.forms import Fields, Form, Length
from ubpx.testing.oracle.layout import INT3, layout_of
from ubpx.testing.oracle.opinion import Opinion, can_be_asked
from ubpx.testing.oracle.processor import REGISTERS, Processor, Watchdog
from ubpx.testing.oracle.routes import LANDED, End, Routes

_MOST_SAMPLES: Final = 100
_MOST_IN_VAIN: Final = 3000
_SAMPLES_PER_KIND: Final = 2
_REPEATS: Final = 4
TRIES_PER_FORM: Final = 4
"""Numbers that each form has in the systematic part."""
_SIGILL: Final = 4
_HUNG: Final = "hung"
_REACH: Final = 2**31 - 64
_OUT_OF_LINE: Final = frozenset({Strategy.BOOST, Strategy.STEP})


@attrs.define(kw_only=True)
class Tally:
    """What a share of a campaign has found. Owned by its Campaign."""

    cases: int = 0
    executed: int = 0
    undefined_here: int = 0
    differences: int = 0
    left_to_another: int = 0
    """Arrivals that emulation would have left to a slot."""
    unsettled: int = 0
    """Cases that did not end in place, so that there was nothing to compare with."""
    forms: set[Hashable] = attrs.field(factory=set)
    by_strategy: Counter[str] = attrs.field(factory=Counter)
    refused: Counter[str] = attrs.field(factory=Counter)
    varying: Counter[str] = attrs.field(factory=Counter)
    """By mnemonic and what varied from one run in place to the next; all else of these cases was compared."""
    varying_samples: list[dict[str, Any]] = attrs.field(factory=list)
    kinds: Counter[str] = attrs.field(factory=Counter)
    """Differences by strategy, mnemonic and what differed."""
    samples: list[dict[str, Any]] = attrs.field(factory=list)
    opinions: int = 0
    disagreements: Counter[str] = attrs.field(factory=Counter)
    opinion_samples: list[dict[str, Any]] = attrs.field(factory=list)
    length_disagreements: list[str] = attrs.field(factory=list)

    def add(self, other: "Tally") -> None:
        """Put the other share to this one."""
        for name in ("cases", "executed", "undefined_here", "differences", "left_to_another", "unsettled", "opinions"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.forms |= other.forms
        for counts, more in (
            (self.by_strategy, other.by_strategy),
            (self.refused, other.refused),
            (self.varying, other.varying),
            (self.kinds, other.kinds),
            (self.disagreements, other.disagreements),
        ):
            counts.update(more)
        self.samples += other.samples
        self.varying_samples += other.varying_samples
        self.opinion_samples += other.opinion_samples
        self.length_disagreements += other.length_disagreements


def length_by_decoder(bits: int) -> Length:
    """What the decoder says; to find out which bytes are an instruction."""
    decode = IcedDecoder(bits).decode

    def length(code: bytes) -> int:
        decoded = decode(code, 0)
        return decoded.length if decoded is not None else 0

    return length


class Campaign:
    """One share: its own processor, its own architecture object. Owned by one thread, who closes it."""

    def __init__(self, name: str, seed: int, known: Mapping[Form, Fields] | None = None, aim: Aim = ANYWHERE) -> None:
        self.architecture: Final = make_architecture(name)
        bits = 8 * self.architecture.word_size
        names = self.architecture.register_names
        self.processor: Final = Processor(layout_of(name), names, self.architecture.pc_name)
        self.cases: Final = Cases(self.processor, length_by_decoder(bits), seed, known, aim)
        self.tally: Final = Tally()
        self._seed: Final = seed
        self._routes: Final = Routes(self.processor, self.architecture)
        self._decoders: Final = IcedDecoder(bits), CapstoneDecoder(bits)
        self._opinion: Opinion | None = None
        with contextlib.suppress(ImportError):  # unicorn is installed with the tests alone
            self._opinion = Opinion(self.processor.layout, tuple(names))

    def close(self) -> None:
        """End the processor's program."""
        self.processor.close()

    def each_form(self, forms: Iterable[tuple[int, Form]]) -> None:
        """Every form, given with its place in the list of all, until it has been executed, a few times at most."""
        for number, form in forms:
            for attempt in range(TRIES_PER_FORM):
                case = self.cases.of_form(number * TRIES_PER_FORM + attempt, form)
                if case is None or self.check(case):
                    break

    def random(self, count: int, numbers: Iterator[int]) -> None:
        """Random cases until so many have been executed.

        Raises UsageError if of very many in a row none is: all refused, or undefined on this processor.
        """
        wanted, in_vain = self.tally.executed + count, 0
        for number in numbers:
            if self.tally.executed >= wanted:
                return
            before = self.tally.executed
            self.check(self.cases.draw(number))
            in_vain = in_vain + 1 if self.tally.executed == before else 0
            if in_vain == _MOST_IN_VAIN:
                raise UsageError(f"{in_vain} cases in a row cannot be executed: {dict(self.tally.refused)} refused")

    def check(self, case: Case) -> bool:
        """Run one case by every way; whether the processor executed it (or the architecture refuses it)."""
        tally = self.tally
        tally.cases += 1
        try:
            analysis = self.architecture.analyze(case.code.ljust(self.architecture.longest_insn, INT3), case.origin)
        except InsnRefused as error:
            tally.refused[error.reason] += 1
            return True
        expected = self._in_place(case)
        if expected is None:
            tally.unsettled += 1
            return False
        undefined = expected.stop.signal == _SIGILL
        if undefined:
            tally.undefined_here += 1
            self._check_by_decoders(case, analysis)
        else:
            tally.executed += 1
            tally.forms.add(case.form)
        for strategy in analysis.strategies:
            if strategy in _OUT_OF_LINE and not self._reachable(analysis):
                continue
            found = self._differences(strategy, case, analysis, expected)
            if found:
                tally.differences += 1
                self._sample(strategy, case, analysis, found)
        if not undefined and (
            tally.executed % 64 == 0 or (Strategy.EMULATE in analysis.strategies and tally.executed % 8 == 0)
        ):
            self._ask_opinion(case, analysis, expected)
        return not undefined

    def _in_place(self, case: Case) -> End | None:
        try:
            return self._routes.in_place(case)
        except TargetGone:
            self.processor.start()
            return None

    def _differences(self, strategy: Strategy, case: Case, analysis: InsnAnalysis, expected: End) -> Differences:
        found = self._compared(strategy, case, analysis, expected)
        if not found:
            if found is not None:
                self.tally.by_strategy[strategy] += 1
            return {}
        # What differs from one run in place to the next is nobody's fault.
        varying: dict[str, tuple[str, str]] = {}
        for _ in range(_REPEATS):
            again = self._in_place(case)
            if again is not None:
                varying |= compare(expected, again, self.processor.registers)
        # Nor is what differs only now and then: rdseed has no number when others ask too, and says so in a flag.
        first = found
        for _ in range(_REPEATS):
            again_found = self._compared(strategy, case, analysis, expected) or {}
            found = {name: pair for name, pair in found.items() if name in again_found}
        varying |= {name: pair for name, pair in first.items() if name not in found}
        if varying:
            self._note_varying(case, analysis, varying)
        self.tally.by_strategy[strategy] += 1
        return {name: pair for name, pair in found.items() if name not in varying}

    def _note_varying(self, case: Case, analysis: InsnAnalysis, varying: Differences) -> None:
        kind = f"{_mnemonic(analysis)}: {', '.join(sorted(varying)[:4])}"
        self.tally.varying[kind] += 1
        if self.tally.varying[kind] == 1:
            self.tally.varying_samples.append({"case": case.name, "bytes": case.code.hex(" "), "varied": dict(varying)})

    def _reachable(self, analysis: InsnAnalysis) -> bool:
        """Whether a slot of ours can hold the copy."""
        return all(abs(place - self.processor.layout.slot) < _REACH for place in analysis.reach)

    def _compared(self, strategy: Strategy, case: Case, analysis: InsnAnalysis, expected: End) -> Differences | None:
        """None where the strategy leaves the arrival to another."""
        try:
            end = self._routes.by(strategy, case, analysis)
            if end is None:
                self.tally.left_to_another += 1
                return None
            if end.stop is LANDED and (end.pc != expected.pc or expected.stop is not LANDED):
                end = self._routes.run_on(end)
        except TargetGone:
            self.processor.start()
            return {_HUNG: ("an end", "none")}
        except InsnRefused as error:
            return {"slot": ("a copy", error.reason)}
        except UbpxError as error:  # what the architecture layer says cannot be done
            return {type(error).__name__: ("an end", str(error))}
        return compare(expected, end, self.processor.registers, vectors=strategy is not Strategy.EMULATE)

    def _check_by_decoders(self, case: Case, analysis: InsnAnalysis) -> None:
        """What cannot be run: is the copy's text the original's, addresses included, and do the decoders agree?"""
        iced, capstone = self._decoders
        second = capstone.decode(case.code, case.origin)
        if second is not None and second.length != len(case.code):
            self.tally.length_disagreements.append(case.code.hex(" "))
        if Strategy.STEP not in analysis.strategies:
            return
        slot = self.processor.layout.slot
        try:
            code = self.architecture.slot_code(analysis, slot).code
        except InsnRefused:
            return
        pair = iced.decode(case.code, case.origin), iced.decode(code, slot)
        if pair[0] != pair[1]:
            self.tally.differences += 1
            self._sample(Strategy.STEP, case, analysis, {"copy by the decoder": (str(pair[0]), str(pair[1]))})

    def _ask_opinion(self, case: Case, analysis: InsnAnalysis, expected: End) -> None:
        if self._opinion is None or not can_be_asked(case, expected, self.processor.registers.index["eflags"]):
            return
        self.tally.opinions += 1
        second, hardware = self._opinion.of(case), self._opinion.compared(expected)
        if second == hardware:
            return
        kind = "emulated" if Strategy.EMULATE in analysis.strategies else "others"
        self.tally.disagreements[kind] += 1
        if len(self.tally.opinion_samples) < _MOST_SAMPLES and kind == "emulated":
            answers = {"unicorn": None if second is None else [hex(word) for word in second[0]],
                       "hardware": [hex(word) for word in hardware[0]]}  # fmt: skip
            self.tally.opinion_samples.append({**self._described(case, analysis), **answers})

    def _described(self, case: Case, analysis: InsnAnalysis) -> dict[str, Any]:
        values = self.processor.registers.values(REGISTERS.unpack(case.words))
        return {
            "case": case.name,
            "form": str(case.form),
            "bytes": case.code.hex(" "),
            "text": analysis.insn.text,
            "origin": hex(case.origin),
            "registers": {name: hex(value) for name, value in values.items()},
        }

    def _sample(self, strategy: Strategy, case: Case, analysis: InsnAnalysis, found: Differences) -> None:
        """Kept with all that is needed to see it again; a few of each kind."""
        self.tally.kinds[kind := f"{strategy} {_mnemonic(analysis)} {' '.join(sorted(found)[:3])}"] += 1
        if self.tally.kinds[kind] <= _SAMPLES_PER_KIND and len(self.tally.samples) < _MOST_SAMPLES:
            shown = {name: {"expected": right, "found": wrong} for name, (right, wrong) in list(found.items())[:12]}
            self.tally.samples.append(
                {"seed": self._seed, "strategy": strategy, **self._described(case, analysis), "differences": shown}
            )


def _mnemonic(analysis: InsnAnalysis) -> str:
    return analysis.insn.text.partition(" ")[0]


def watched(campaign: Campaign) -> Watchdog:
    """Ends what hangs; a context manager."""
    return Watchdog(campaign.processor)
