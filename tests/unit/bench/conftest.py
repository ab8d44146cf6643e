"""What is in bench/ is not installed: its directories are put on the path, as bench/run.py has them."""

import sys
from pathlib import Path

BENCH = Path(__file__).parents[3] / "bench"
sys.path[:] = [*dict.fromkeys([*sys.path, str(BENCH), str(BENCH / "peers")])]
