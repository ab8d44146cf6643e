"""What loads when: importing ubpx and asking for help cost little, and everything public is still there."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage

import pytest

import ubpx

PYTHON = sys.executable
UBPX = str(Path(PYTHON).with_name("ubpx"))
REPEATS = 9


def cpu_seconds(command: list[str]) -> float:
    """What one run costs, in user and kernel: unlike the time on a clock, other programs hardly change it."""
    before = getrusage(RUSAGE_CHILDREN)
    subprocess.run(command, stdout=subprocess.DEVNULL, timeout=60, check=True)
    after = getrusage(RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


@pytest.mark.parametrize(("command", "most"), [([PYTHON, "-c", "import ubpx"], 7), ([UBPX, "--help"], 14)])
def test_a_start_costs_a_few_times_that_of_python(command: list[str], most: int) -> None:
    """Invariant: the cheapest of several runs is within its limit of the cheapest bare start, taken by turns."""
    turns = [(cpu_seconds([PYTHON, "-c", "pass"]), cpu_seconds(command)) for _ in range(REPEATS)]
    bare, ours = (min(costs) for costs in zip(*turns, strict=True))
    assert ours <= most * bare, f"{ours / bare:.1f} times"


def loaded_by(code: str) -> set[str]:
    """The modules that a fresh interpreter has after ``code``."""
    command = [PYTHON, "-c", f"{code}\nimport sys; print(*sys.modules)"]
    return set(subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.split())


def test_import_loads_nothing_else() -> None:
    assert {name for name in loaded_by("import ubpx") if name.startswith("ubpx")} == {"ubpx"}
    assert "ubpx.target" not in loaded_by("import ubpx; ubpx.UbpxError; ubpx.Verdict")


def test_every_public_name_is_there() -> None:
    """Invariant: each name of __all__ comes from where the type checker is told, and dir() lists it."""
    (promised,) = [node for node in ast.parse(inspect.getsource(ubpx)).body if is_for_the_checker(node)]
    told = {
        alias.name: node.module
        for node in ast.walk(promised)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert sorted(told) == sorted(ubpx.__all__)
    for name, module in told.items():
        value = getattr(ubpx, name)
        assert value is getattr(sys.modules[str(module)], name)
        assert value.__module__ == module
    assert set(ubpx.__all__) <= set(dir(ubpx))


def is_for_the_checker(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name)


def test_a_name_that_is_not_public_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'ubpx' has no attribute 'traceall'"):
        getattr(ubpx, "traceall")  # noqa: B009 - the type checker knows that it is not there


def test_star_brings_every_public_name() -> None:
    code = "from ubpx import *\nimport ubpx\nassert not set(ubpx.__all__) - set(globals())"
    subprocess.run([PYTHON, "-c", code], timeout=60, check=True)


def test_every_error_of_the_tree_is_public() -> None:
    """Invariant: whatever error of ours a user meets can be caught as ubpx.NAME."""
    errors = sys.modules[ubpx.UbpxError.__module__]
    ours = {name for name, value in vars(errors).items() if inspect.isclass(value) and issubclass(value, Exception)}
    assert ours <= set(ubpx.__all__)
    assert all(issubclass(getattr(ubpx, name), ubpx.UbpxError) for name in ours)
