# SPDX-License-Identifier: GPL-2.0-only
"""minidebug: stop at functions, show thread, pc and registers, step one instruction, go on.

Use: minidebug.py HITS PLACE,... PID, or PROGRAM [ARGUMENT...] instead of PID. A place is a function of
the program, or 0xADDRESS. After HITS hits the breakpoints are removed and the program is let go.
"""

import os
import subprocess
import sys
from signal import SIGTRAP
from typing import Any

from ptrace.debugger import NewProcessEvent, ProcessExit, ProcessSignal, PtraceDebugger
from ptrace.debugger.child import createChild


def address_of(process: Any, place: str) -> int:
    """Where the place is in this process."""
    if place.startswith("0x"):
        return int(place, 16)
    path = os.readlink(f"/proc/{process.pid}/exe")
    symbols = subprocess.run(["nm", path], capture_output=True, text=True, check=True).stdout.splitlines()
    value = next(int(line.split()[0], 16) for line in symbols if line.endswith(f" {place}"))
    base = min(int(mapping.start) for mapping in process.readMappings() if mapping.pathname == path)
    return value if value >= base else base + value


def step_over(process: Any, thread: Any, address: int) -> Any:
    """Run the instruction under the breakpoint; the event that ended it."""
    process.findBreakpoint(address).desinstall()
    thread.setInstrPointer(address)
    thread.singleStep()
    event = thread.waitEvent()
    if isinstance(event, ProcessSignal):  # if it is no SIGTRAP, the instruction has yet to run, and is hit again
        process.createBreakpoint(address)
        print(f"thread {thread.pid} stepped to {thread.getInstrPointer():#x}, {event}")
    return event


def debug(debugger: Any, process: Any, places: dict[int, str], hits: int) -> None:
    """Serve events until the program has ended or was hit often enough."""
    while hits > 0 and len(debugger) > 0:
        event = debugger.waitProcessEvent()
        thread = event.process
        address = thread.getInstrPointer() - 1 if isinstance(event, ProcessSignal) else None
        if isinstance(event, ProcessSignal) and event.signum == SIGTRAP and address in places:
            regs = thread.getregs()
            print(f"thread {thread.pid} at {places[address]} ({address:#x}): rdi={regs.rdi:#x} rsp={regs.rsp:#x}")
            event = step_over(process, thread, address)
            hits -= event.signum == SIGTRAP
        if isinstance(event, ProcessExit):
            print(event)
        elif isinstance(event, NewProcessEvent):
            print(event)
            thread.parent.cont()
            thread.cont()
        elif hits > 0:
            thread.cont(event.signum)


def main(hits: str, places: str, *program: str) -> None:
    """Attach to a running program, or start one; at the end let it go, if it is still there."""
    debugger, running = PtraceDebugger(), program[0].isdigit()
    debugger.traceClone()
    pid = int(program[0]) if running else createChild(program, no_stdout=False)
    process = debugger.addProcess(pid, is_attached=not running)
    by_address = {address_of(process, place): place for place in places.split(",")}
    for address in by_address:
        process.createBreakpoint(address)
    print(f"{len(by_address)} breakpoints in process {pid}", flush=True)
    process.cont()
    debug(debugger, process, by_address, int(hits))
    for each in list(process.breakpoints.values()):
        each.desinstall()
    for thread in list(debugger):
        thread.detach()
        print(f"thread {thread.pid} is let go")


if __name__ == "__main__":
    main(*sys.argv[1:])
