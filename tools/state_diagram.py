"""Draw the life of a thread from the table in ubpx/core/stepping.py.

Prints a mermaid diagram; with --write puts it between the two marks in docs/explanation/design.md.
Needs ubpx to be importable: run it with .venv/bin/python.
"""

import argparse
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

from ubpx.core.stepping import TRANSITIONS, Debts, Input, State, proceed, step

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "explanation" / "design.md"
FIRST_MARK = "<!-- state diagram:"
LAST_MARK = "<!-- end of state diagram -->"
EVERY_DEBT = tuple(Debts(held=h, step=p, group_stopped=g) for h, p, g in product((False, True), repeat=3))
ONWARD = "onward"
"""The choice that PROCEED makes by what the thread owes."""
CONDITIONS = (
    (State.PARKED, Debts(held=True), "held"),
    (State.LISTENING, Debts(group_stopped=True), "else in a group-stop"),
    (State.STEPPING, Debts(step=True), "else a step is owed"),
    (State.RUNNING, Debts(), "else"),
)


def diagram() -> str:
    """The whole diagram as a fenced block of mermaid."""
    arrows: dict[tuple[State, str, str], list[Input]] = {}
    for (state, event), action in TRANSITIONS.items():
        for end, condition in _ends(state, event):
            arrows.setdefault((state, end, f"{action}{condition}"), []).append(event)
    lines = ["```mermaid", "stateDiagram-v2", f"    state {ONWARD} <<choice>>", f"    [*] --> {State.RUNNING}"]
    for (state, end, what), events in sorted(arrows.items(), key=lambda item: list(State).index(item[0][0])):
        lines.append(f"    {state} --> {end}: {', '.join(events)} / {what}")
    for state, debts, why in CONDITIONS:
        if proceed(debts) is not state:
            raise SystemExit(f"state_diagram: proceed({debts}) is {proceed(debts)}, not {state}; mend CONDITIONS")
        lines.append(f"    {ONWARD} --> {state}: {why}")
    return "\n".join([*lines, f"    {State.GONE} --> [*]", "```"])


def _ends(state: State, event: Input) -> Iterator[tuple[str, str]]:
    """Where the pair leads, and under which condition, over all debts."""
    ends = {step(state, event, debts)[0] for debts in EVERY_DEBT}
    if ends == {end for end, _, _ in CONDITIONS}:
        yield ONWARD, ""
    elif len(ends) == 1:
        yield ends.pop(), ""
    else:
        for end in sorted(ends):
            yield end, " (held)" if end is State.PARKED else ""


def insert(document: str) -> str:
    """The document with the diagram between the marks."""
    before, first_mark, rest = document.partition(FIRST_MARK)
    rest_of_mark, newline, rest = rest.partition("\n")
    _, last_mark, after = rest.partition(LAST_MARK)
    if not (first_mark and last_mark):
        raise SystemExit(f"state_diagram: {DOCUMENT} has no marks {FIRST_MARK!r} and {LAST_MARK!r}; put them in")
    return f"{before}{first_mark}{rest_of_mark}{newline}\n{diagram()}\n\n{last_mark}{after}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the diagram, or write it into the document."""
    parser = argparse.ArgumentParser(prog="tools/state_diagram.py", description="Draw the life of a thread.")
    parser.add_argument("--write", action="store_true", help="put it into docs/explanation/design.md")
    if parser.parse_args(arguments).write:
        DOCUMENT.write_text(insert(DOCUMENT.read_text()))
    else:
        print(diagram())


if __name__ == "__main__":
    main()
