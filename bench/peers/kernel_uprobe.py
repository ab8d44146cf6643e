"""The kernel's uprobe, by perf_event_open: it counts, in the kernel, and runs nobody's code."""

import ctypes
import os
import struct
from pathlib import Path

from interface import Armed, Missing, Place, main, wait_for_end

TITLE = "kernel uprobe that counts (perf)"
CALLS = 50_000

PERF_EVENT_OPEN = 298
"""Its number on x86_64."""
KIND = Path("/sys/bus/event_source/devices/uprobe/type")
ATTRIBUTES_SIZE = 72
CLOSE_ON_EXEC = 8


def offset_in_file(place: Place) -> tuple[str, int]:
    """The file that is mapped at the address, and where in the file it is."""
    for line in Path(f"/proc/{place.pid}/maps").read_text().splitlines():
        span, _, offset, _, _, path = line.split(maxsplit=5)
        begin, end = (int(word, 16) for word in span.split("-"))
        if begin <= place.address < end:
            return path, place.address - begin + int(offset, 16)
    raise RuntimeError(f"nothing is mapped at {place.address:#x}")


def serve(place: Place, armed: Armed) -> int:
    """The event belongs to the program's thread alone."""
    if not KIND.exists():
        raise Missing("this kernel has no uprobe events for perf (CONFIG_UPROBE_EVENTS)")
    path, offset = offset_in_file(place)
    name = ctypes.create_string_buffer(path.encode())
    attributes = struct.pack(
        "=IIQQQQQIIQQ", int(KIND.read_text()), ATTRIBUTES_SIZE, 0, 0, 0, 0, 0, 0, 0, ctypes.addressof(name), offset
    )
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(attributes)
    event = libc.syscall(PERF_EVENT_OPEN, buffer, place.pid, -1, -1, CLOSE_ON_EXEC)
    if event < 0:
        raise Missing(f"perf_event_open: {os.strerror(ctypes.get_errno())} (it needs root or CAP_PERFMON)")
    armed()
    wait_for_end()
    (hits,) = struct.unpack("=Q", os.read(event, 8))
    os.close(event)
    return int(hits)


if __name__ == "__main__":
    main(serve)
