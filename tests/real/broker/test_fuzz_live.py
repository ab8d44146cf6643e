"""The fuzzer of the wire layer against a live broker: ``make test`` for seconds, ``make fuzz`` for an hour.

UBPX_FUZZ_SECONDS says for how long.
"""

from __future__ import annotations

import os
import runpy
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import ubpx

if TYPE_CHECKING:
    from tests.real.conftest import StartProgram

FUZZ: Final[dict[str, Any]] = runpy.run_path(
    str(Path(__file__).parents[3] / "plugins" / "froggy" / "tests" / "fuzz_wire.py")
)
SECONDS: Final = float(os.environ.get("UBPX_FUZZ_SECONDS", "12"))


def test_no_stream_harms_a_broker(target_program: StartProgram, start_broker: Any) -> None:
    """Invariant: nothing that a peer sends makes it crash, grow, or stop serving others; the program is as before."""
    program = target_program("endless", "probed_lea", 1, int(SECONDS) + 300)
    before = program.maps()
    broker = start_broker("-p", str(program.pid))
    seed = time.time_ns() & 0xFFFF_FFFF
    sys.stdout.write(f"fuzz_wire.py --seconds {SECONDS} --seed {seed} --socket ...\n")
    assert FUZZ["main"](SECONDS, seed, broker.path) == 0
    assert broker.popen.poll() is None
    with ubpx.connect(broker.path) as target:
        lease = target.client("good").probe("probed_lea", lambda _: None)
        program.tell("gs")
        assert program.number("calls") == lease.hits
    said = broker.end()
    assert "Traceback" not in said, said[-4000:]
    program.assert_untouched(before)
    assert program.tell("q").wait() == 0
