"""The ledger of the contract: each sentence of docs/reference/contract.md is shown by a test, or says why not yet."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "docs" / "reference" / "contract.md"
TESTS = ("tests", "plugins/*/tests", "examples/*/tests")
SENTENCE = re.compile(r"^- \*\*(\S+)\*\* (.+)((?:\n  .*)*)", re.MULTILINE)
LEDGER = re.compile(r"\*Shown by: not yet, because \S.*\*")

Sentences = Mapping[str, bool]
"""By id: whether the document says that nothing can show the sentence yet."""


def sentences(document: str) -> list[tuple[str, bool]]:
    """Every sentence's id, in order, and whether it is in the ledger."""
    return [(found[1], bool(LEDGER.search(found[3]))) for found in SENTENCE.finditer(document)]


def named_ids(source: str) -> Iterable[tuple[str, str]]:
    """What the tests of one file name: (id, test)."""
    for function in ast.walk(ast.parse(source)):
        if isinstance(function, ast.FunctionDef) and function.name.startswith("test_"):
            for mark in function.decorator_list:
                if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.contract":
                    yield from ((ast.literal_eval(each), function.name) for each in mark.args)


def shown(files: Iterable[Path]) -> dict[str, list[str]]:
    """The tests by the id that they name."""
    found: dict[str, list[str]] = defaultdict(list)
    for file in files:
        for name, test in named_ids(file.read_text()):
            found[name].append(test)
    return found


def problems(document: str, tests: Mapping[str, list[str]]) -> list[str]:
    """What is wrong between the document and the tests, one line each."""
    listed = sentences(document)
    ids = [name for name, _ in listed]
    wrong = [f"{name} stands in the contract twice" for name in set(ids) if ids.count(name) > 1]
    wrong += [
        f"{name} is no sentence of the contract: {', '.join(by)}" for name, by in tests.items() if name not in ids
    ]
    for name, not_yet in listed:
        if not_yet and name in tests:
            wrong.append(f"{name} is shown by {', '.join(tests[name])}: take its 'not yet' out")
        elif not not_yet and name not in tests:
            wrong.append(f"no test shows {name}")
    return sorted(wrong)


def test_every_sentence_of_the_contract_is_shown() -> None:
    """Invariant: sentences and tests know each other, one by one; what cannot be shown yet says why."""
    files = [file for pattern in TESTS for file in ROOT.glob(f"{pattern}/**/test_*.py")]
    assert problems(DOCUMENT.read_text(), shown(files)) == []


def test_the_document_holds_nothing_but_sentences() -> None:
    """Invariant: no line of the contract is without an id, so that none is overlooked."""
    text = DOCUMENT.read_text()
    contract = text[text.index("\n## ") :]
    rest = SENTENCE.sub("", contract)
    assert [line for line in rest.splitlines() if line and not line.startswith("## ")] == []
    assert len(sentences(contract)) == len(re.findall(r"^- ", contract, re.MULTILINE)) > 100


def test_the_ledger_can_fail() -> None:
    """Invariant: a sentence without a test, a test without a sentence and a ledger that is behind are each told."""
    document = DOCUMENT.read_text()
    first, last = sentences(document)[0][0], sentences(document)[-1][0]
    complete = {name: ["test_it"] for name, not_yet in sentences(document) if not not_yet}
    assert problems(document, complete) == []
    assert problems(document, {name: by for name, by in complete.items() if name != first}) == [
        f"no test shows {first}"
    ]
    assert problems(document, {**complete, "life-99": ["test_x"]}) == ["life-99 is no sentence of the contract: test_x"]
    planted = f"{document}  *Shown by: not yet, because somebody forgot.*\n"
    assert problems(planted, complete) == [f"{last} is shown by test_it: take its 'not yet' out"]
    assert problems(f"{document}- **{last}** Again.\n", complete) == [f"{last} stands in the contract twice"]


def test_only_marks_on_tests_count() -> None:
    """Invariant: a mark counts where pytest would collect it, and whatever other marks stand beside it."""
    source = (
        "@pytest.mark.parametrize('x', [1])\n@pytest.mark.contract('life-1', 'life-2')\ndef test_a(x): ...\n"
        "@pytest.mark.contract('life-3')\ndef helper(): ...\n@pytest.mark.torture\ndef test_b(): ...\n"
    )
    assert list(named_ids(source)) == [("life-1", "test_a"), ("life-2", "test_a")]
