"""lldb: a breakpoint with a Python callback that counts and does not stop."""

import os
import subprocess
import tempfile
from pathlib import Path

from interface import Armed, Missing, Place, main, need, run

TITLE = "lldb, Python callback"
CALLS = 100

SYSTEM_PACKAGES = "/usr/lib/python3/dist-packages"
"""Of the Python that lldb embeds, which looks elsewhere where another python3 comes first in PATH."""

SCRIPT = """
import lldb

hits = 0

def count(frame, location, extra, *rest):
    global hits
    hits += 1
    return False

def __lldb_init_module(debugger, names):
    debugger.SetAsync(False)
    target = debugger.GetSelectedTarget()
    process = target.GetProcess()
    counting = target.BreakpointCreateByAddress({address})
    counting.SetScriptCallbackFunction(__name__ + ".count")
    target.BreakpointCreateByAddress({over})
    print("armed", flush=True)
    process.Continue()
    print('{{"hits": %d}}' % hits, flush=True)
    target.DeleteAllBreakpoints()
    process.Detach()
"""


def find_module(lldb: str) -> str:
    """The directory of lldb's Python module; Debian's lldb looks in a wrong one. Raises Missing."""
    told = subprocess.run([lldb, "-P"], capture_output=True, text=True, check=False).stdout.split()
    beside = Path(lldb).resolve().parents[1]  # /usr/lib/llvm-14, for one
    for directory in (*map(Path, told), *beside.glob("lib*/python3*/*-packages")):
        if (directory / "lldb" / "embedded_interpreter.py").exists():
            return str(directory)
    raise Missing("lldb has no Python module here (Debian's package python3-lldb-14, by lldb's version)")


def serve(place: Place, armed: Armed) -> int | None:
    """The script is lldb's, run within it."""
    with tempfile.TemporaryDirectory(prefix="ubpx-bench-") as directory:
        script = Path(directory) / "counting.py"
        script.write_text(SCRIPT.format(address=place.address, over=place.over))
        attach, load = f"process attach --pid {place.pid}", f"command script import {script}"
        lldb = need("lldb")
        os.environ["PYTHONPATH"] = f"{find_module(lldb)}:{SYSTEM_PACKAGES}"
        return run([lldb, "--no-lldbinit", "--batch", "-o", attach, "-o", load], armed)


if __name__ == "__main__":
    main(serve)
