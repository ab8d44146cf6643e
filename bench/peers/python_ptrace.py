"""python-ptrace: its breakpoint, taken out for one step at each hit, as its own debugger does."""

import signal

from interface import Armed, Place, main

TITLE = "python-ptrace"
CALLS = 1_000
PACKAGES = ("python-ptrace",)


def serve(place: Place, armed: Armed) -> int:
    """Two stops a hit."""
    from ptrace.debugger import PtraceDebugger

    debugger = PtraceDebugger()
    process = debugger.addProcess(place.pid, is_attached=False)
    breakpoint_ = process.createBreakpoint(place.address)
    over = process.createBreakpoint(place.over)
    armed()
    hits = 0
    while True:
        process.cont()
        process.waitSignals(signal.SIGTRAP)
        address = process.getInstrPointer() - 1
        if address == place.over:
            break
        hits += 1
        breakpoint_.desinstall(set_ip=True)
        process.singleStep()
        process.waitSignals(signal.SIGTRAP)
        breakpoint_ = process.createBreakpoint(place.address)
    over.desinstall(set_ip=True)
    breakpoint_.desinstall()
    process.detach()
    debugger.quit()
    return hits


if __name__ == "__main__":
    main(serve)
