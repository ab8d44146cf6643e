"""Many cases on a processor that unicorn plays: each in place and by every strategy, and what came of it."""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from random import Random
from typing import Any, Final

from ubpx._errors import InsnRefused, UbpxError, UsageError
from ubpx.core.ubp import architecture as make_architecture
from ubpx.core.ubp.plans import InsnAnalysis, Strategy
from ubpx.core.values import VirtAddr
from ubpx.testing.emulated import PROCESSORS
from ubpx.testing.emulated.processor import (
    CODE,
    DATA,
    DATA_SIZE,
    PLACE_SIZE,
    SLOTS,
    STACK,
    Case,
    End,
    Form,
)
from ubpx.testing.emulated.routes import Routes
from ubpx.testing.oracle.campaign import TRIES_PER_FORM, Tally

_MOST_SAMPLES: Final = 100
_SAMPLES_PER_KIND: Final = 2
_MOST_IN_VAIN: Final = 3000
_REPEATS: Final = 2
_PLACES: Final = (SLOTS - CODE) // PLACE_SIZE // 2
"""Cases until one stands where another has stood; room for what branches backwards is left before them."""
_FIRST: Final = CODE + (SLOTS - CODE) // 2

Differences = Mapping[str, tuple[str, str]]
"""Expected and found, by the name of what differs; empty if nothing does."""


class Campaign:
    """One share: its own machine, its own architecture object. Owned by one thread."""

    def __init__(self, name: str, seed: int) -> None:
        self.architecture: Final = make_architecture(name)
        self.processor: Final = PROCESSORS[name]()
        self.tally: Final = Tally()
        self._seed: Final = seed
        self._routes: Final = Routes(self.processor, self.architecture)
        self._vectors: Final = tuple(self.processor.vector_numbers())

    # Cases --------------------------------------------------------------------------------

    def each_form(self, forms: Iterable[tuple[int, Form]]) -> None:
        """Every form, given with its place in the list of all, until it has been executed, a few times at most."""
        for number, form in forms:
            for attempt in range(TRIES_PER_FORM):
                if self.check(self.of_form(number * TRIES_PER_FORM + attempt, form)):
                    break

    def random(self, count: int, numbers: Iterator[int]) -> None:
        """Random cases until so many have been executed. Raises UsageError if of very many in a row none is."""
        wanted, in_vain = self.tally.executed + count, 0
        for number in numbers:
            if self.tally.executed >= wanted:
                return
            before = self.tally.executed
            self.check(self.draw(number))
            in_vain = 0 if self.tally.executed > before else in_vain + 1
            if in_vain > _MOST_IN_VAIN:
                raise UsageError(f"none of {in_vain} cases in a row could be executed; the last was {number}")

    def draw(self, number: int) -> Case:
        """The random case of that number: always the same."""
        random = Random(f"{self._seed} {number}")  # noqa: S311 - a case must come again
        return self._case(str(number), number, self.processor.draw(random), random)

    def of_form(self, number: int, form: Form) -> Case:
        """A case of the form, the same for the same number."""
        random = Random(f"{self._seed} form {number}")  # noqa: S311 - a case must come again
        word = random.getrandbits(8 * form.size) & ~form.mask | form.value
        return self._case(f"form-{number}", number, word.to_bytes(form.size, "little"), random)

    def _case(self, name: str, number: int, code: bytes, random: Random) -> Case:
        offset = random.randrange(0, PLACE_SIZE // 2, self.processor.alignment)
        origin = _FIRST + number % _PLACES * PLACE_SIZE + offset
        return Case(
            name=name,
            form=self.processor.form_of(code),
            code=code,
            origin=origin,
            slot=SLOTS + number % _PLACES * PLACE_SIZE,
            registers=self.processor.registers(random, origin),
            vectors=self.processor.vectors(random),
            memory=random.randbytes(DATA_SIZE) + random.randbytes(DATA_SIZE),
        )

    # Running ------------------------------------------------------------------------------

    def check(self, case: Case) -> bool:
        """Run one case by every way; whether the processor executed it (or the architecture refuses it)."""
        tally = self.tally
        tally.cases += 1
        try:
            analysis = self.architecture.analyze(case.code, VirtAddr(case.origin))
        except InsnRefused as error:
            tally.refused[error.reason.partition(" [")[0]] += 1
            return True
        self._routes.machine.begin(case)
        expected = self._routes.in_place(case)
        if expected.fault in self.processor.undefined:
            tally.undefined_here += 1
            return False
        tally.executed += 1
        tally.forms.add(case.form)
        for strategy in analysis.strategies:
            found = self._differences(strategy, case, analysis, expected)
            if found:
                tally.differences += 1
                self._sample(strategy, case, analysis, found)
        return True

    def _differences(self, strategy: Strategy, case: Case, analysis: InsnAnalysis, expected: End) -> Differences:
        found = self._compared(strategy, case, analysis, expected)
        if found is None:
            self.tally.left_to_another += 1
            return {}
        self.tally.by_strategy[strategy] += 1
        if not found:
            return {}
        varying: dict[str, tuple[str, str]] = {}
        for _ in range(_REPEATS):  # what differs from one run in place to the next is nobody's fault
            varying |= self._compare(expected, self._routes.in_place(case))
        if varying:
            self.tally.varying[f"{_mnemonic(analysis)}: {', '.join(sorted(varying)[:4])}"] += 1
        return {name: pair for name, pair in found.items() if name not in varying}

    def _compared(self, strategy: Strategy, case: Case, analysis: InsnAnalysis, expected: End) -> Differences | None:
        """None where the strategy leaves the arrival to another."""
        try:
            end = self._routes.by(strategy, case, analysis)
        except InsnRefused as error:
            return {"slot": ("a copy", error.reason)}
        except UbpxError as error:  # what the architecture layer says cannot be done
            return {type(error).__name__: ("an end", str(error))}
        if end is None:
            return None
        return self._compare(expected, end)

    def _compare(self, expected: End, found: End) -> dict[str, tuple[str, str]]:
        if expected[:-1] == found[:-1]:
            return {}
        differences: dict[str, tuple[str, str]] = {}
        if (expected.state, expected.unkept) != (found.state, found.unkept):
            both = zip(self._routes.machine.values(expected), self._routes.machine.values(found), strict=True)
            for names, (right, wrong) in zip((self.architecture.register_names, self._vectors), both, strict=True):
                pairs = zip(names, right, wrong, strict=True)
                differences.update((name, (hex(one), hex(other))) for name, one, other in pairs if one != other)
        for at in range(0, len(expected.memory), 8):
            pair = expected.memory[at : at + 8], found.memory[at : at + 8]
            if pair[0] != pair[1]:
                address = DATA + at if at < DATA_SIZE else STACK + at - DATA_SIZE
                differences[f"memory+{address:#x}"] = pair[0].hex(), pair[1].hex()
        if expected.fault != found.fault:
            differences["fault"] = expected.fault, found.fault
        if expected.fault_address != found.fault_address:
            differences["fault address"] = hex(expected.fault_address), hex(found.fault_address)
        return differences

    def _sample(self, strategy: Strategy, case: Case, analysis: InsnAnalysis, found: Differences) -> None:
        """Kept with all that is needed to see it again; a few of each kind."""
        self.tally.kinds[kind := f"{strategy} {_mnemonic(analysis)} {' '.join(sorted(found)[:3])}"] += 1
        if self.tally.kinds[kind] > _SAMPLES_PER_KIND or len(self.tally.samples) >= _MOST_SAMPLES:
            return
        shown = {name: {"expected": right, "found": wrong} for name, (right, wrong) in list(found.items())[:12]}
        values: dict[str, Any] = {
            name: hex(value) for name, value in zip(self.architecture.register_names, case.registers, strict=True)
        }
        self.tally.samples.append(
            {
                "seed": self._seed,
                "strategy": strategy,
                "case": case.name,
                "form": f"{case.form.value:0{2 * case.form.size}x}",
                "bytes": case.code.hex(" "),
                "text": analysis.insn.text,
                "origin": hex(case.origin),
                "registers": values,
                "differences": shown,
            }
        )


def share(name: str, seed: int, count: int, forms: Iterable[tuple[int, Form]], *, number: int, jobs: int) -> Tally:
    """What the worker ``number`` of ``jobs`` finds of all ``forms`` and ``count`` random cases."""
    campaign = Campaign(name, seed)
    campaign.each_form(itertools.islice(forms, number, None, jobs))
    campaign.random(len(range(number, count, jobs)), itertools.count(number, jobs))
    return campaign.tally


def _mnemonic(analysis: InsnAnalysis) -> str:
    return analysis.insn.text.partition(" ")[0]
