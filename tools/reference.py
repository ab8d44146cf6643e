"""Write the reference of hooks and of errors from the docstrings of ubpx/hookspecs.py and ubpx/_errors.py.

Prints both; with --write writes docs/reference/hooks.md and docs/reference/errors.md.
Needs ubpx to be importable: run it with .venv/bin/python.
"""

import argparse
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ubpx
from ubpx import _errors, hookspecs

REFERENCE = Path(__file__).resolve().parent.parent / "docs" / "reference"
PARTS = ("When", "Where", "Arguments", "Returns", "Raises", "Since")
KINDS = {name: kind for name, kind in vars(hookspecs).items() if name.endswith("Hooks")}
WIDTH = 120


def hooks() -> str:
    """The reference of all hooks."""
    lines = ["# Hooks", "", _notice("ubpx/hookspecs.py"), "", *_reflow(inspect.getdoc(hookspecs) or "")]
    for name, kind in KINDS.items():
        lines += ["", f"## {name.removesuffix('Hooks')} hooks", "", inspect.getdoc(kind) or ""]
        for hook, spec in vars(kind).items():
            if hook.startswith("ubpx_"):
                lines += ["", *_hook(hook, spec)]
    return "\n".join([*lines, ""])


def _hook(name: str, hook: Callable[..., Any]) -> Iterator[str]:
    signature = inspect.signature(hook)
    arguments = list(signature.parameters.values())[1:]
    summary, parts = _parts(inspect.getdoc(hook) or "")
    yield f"### {name}"
    yield ""
    yield from _reflow(summary)
    yield ""
    yield "```python"
    yield from _definition(name, [str(each) for each in arguments], _type_name(signature.return_annotation))
    yield "```"
    yield ""
    for part, text in parts.items():
        yield from _reflow(f"- **{part}**: {text}", indent="  ")


def _definition(name: str, arguments: Sequence[str], result: str) -> Iterator[str]:
    shown = [re.sub(r"\b(?:ubpx\.[\w.]+|typing)\.(?=\w)", "", each) for each in arguments]
    line = f"def {name}({', '.join(shown)}) -> {result}: ..."
    if len(line) <= WIDTH:
        yield line
    else:
        yield from (f"def {name}(", *(f"    {each}," for each in shown), f") -> {result}: ...")


def _type_name(annotation: Any) -> str:
    if annotation is None or isinstance(annotation, str):
        return str(annotation)
    return re.sub(r"\bubpx\.[\w.]+\.(?=\w)", "", inspect.formatannotation(annotation))


def _parts(text: str) -> tuple[str, Mapping[str, str]]:
    """The summary, and what stands behind each of the parts that a hook has."""
    summary, *rest = re.split(rf"^({'|'.join(PARTS)}): ", text, flags=re.MULTILINE)
    return summary.strip(), {part: _one_line(said) for part, said in zip(rest[::2], rest[1::2], strict=True)}


def errors() -> str:
    """The reference of all errors, as a tree and one by one."""
    every = [each for each in vars(_errors).values() if isinstance(each, type) and each.__module__ == _errors.__name__]
    lines = ["# Errors", "", _notice("ubpx/_errors.py"), "", *_reflow(inspect.getdoc(_errors) or ""), "", "```"]
    lines += [*_tree(_errors.UbpxError, every, 0), "```"]
    for error in every:
        lines += ["", *_error(error)]
    return "\n".join([*lines, ""])


def _tree(root: type, every: Sequence[type], depth: int) -> Iterator[str]:
    yield f"{'    ' * depth}{root.__name__}"
    for each in every:
        if each.__bases__[0] is root:
            yield from _tree(each, every, depth + 1)


def _error(error: type) -> Iterator[str]:
    public = next(each.__name__ for each in error.__mro__ if hasattr(ubpx, each.__name__))
    bases = " and ".join(each.__name__ for each in error.__bases__)
    yield f"## {error.__name__}"
    yield ""
    yield from _reflow(inspect.getdoc(error) or "")
    yield ""
    yield f"- Caught as `ubpx.{public}`; a kind of {bases}."
    if "__init__" in vars(error):
        data = list(inspect.signature(error).parameters.values())
        if data:
            yield f"- Data: {', '.join(f'`{each.name}`' for each in data)}."


def _notice(source: str) -> str:
    return f"<!-- generated from {source} by tools/reference.py --write: edit the docstrings there -->"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _reflow(text: str, indent: str = "") -> Iterator[str]:
    """Paragraphs in lines of the documents' width; continuation lines indented; RST literals as Markdown's."""
    for number, paragraph in enumerate(text.replace("``", "`").split("\n\n")):
        if number:
            yield ""
        line = ""
        for word in paragraph.split():
            if line and len(line) + 1 + len(word) > WIDTH:
                yield line
                line = indent + word
            else:
                line = f"{line} {word}" if line else word
        yield line


PAGES: Mapping[str, Callable[[], str]] = {"hooks.md": hooks, "errors.md": errors}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the pages, or write them."""
    parser = argparse.ArgumentParser(prog="tools/reference.py", description="Write the reference of hooks and errors.")
    parser.add_argument("--write", action="store_true", help="into docs/reference")
    wants_write = parser.parse_args(arguments).write
    for name, page in PAGES.items():
        if wants_write:
            (REFERENCE / name).write_text(page())
        else:
            print(page())


if __name__ == "__main__":
    main()
