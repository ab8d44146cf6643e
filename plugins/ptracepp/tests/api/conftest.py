"""The real programs of tests/real, for these tests too."""

import importlib.util
import sys
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[4]
_spec = importlib.util.spec_from_file_location("real_programs", ROOT / "tests" / "real" / "conftest.py")
assert _spec is not None
assert _spec.loader is not None
real_programs: Final = sys.modules.setdefault("real_programs", importlib.util.module_from_spec(_spec))
_spec.loader.exec_module(real_programs)

_programs = real_programs._programs
eventually_fixture = real_programs.eventually_fixture
nothing_is_left = real_programs.nothing_is_left
target_program = real_programs.target_program
