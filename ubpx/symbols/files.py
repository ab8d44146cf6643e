"""Opening the file behind a mapping: the very one that is mapped, whatever stands at its path now."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ubpx._errors import UnreadableModule
from ubpx.core.values import MappedRange


def open_mapped(proc: str, ranges: tuple[MappedRange, ...]) -> BinaryIO:
    """The file that is mapped at these ranges (all of one file), open for reading.

    Tried in turn: /proc/PID/map_files, which also has files that were deleted or replaced but
    needs CAP_CHECKPOINT_RESTORE; the path in the process's own root; its executable. A path is
    opened for reading only after it has proved to be a regular file of the mapping's device and
    inode: the target may have put a pipe or a device there.

    Raises UnreadableModule.
    """
    why = "it is not at its path any more, and /proc/PID/map_files may not be read"
    for path in _candidates(proc, ranges):
        try:
            handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError as error:
            if not isinstance(error, FileNotFoundError | PermissionError):
                why = f"it cannot be opened ({error.strerror})"
            continue
        try:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode) or not is_same_file(status, ranges[0]):
                continue
            return Path(f"/proc/self/fd/{handle}").open("rb")
        except OSError as error:
            why = f"it cannot be read ({error.strerror})"
        finally:
            os.close(handle)
    raise UnreadableModule(ranges[0].path or "an unnamed file", why)


def is_same_file(status: os.stat_result, mapped: MappedRange) -> bool:
    """Whether ``status`` is of the file that is mapped there.

    btrfs and overlayfs show other device numbers in /proc/PID/maps than stat() gives; both are
    then anonymous (major 0), and the inode decides.
    """
    major, minor = (int(part, 16) for part in mapped.device.split(":"))
    if status.st_ino != mapped.inode:
        return False
    actual = os.major(status.st_dev), os.minor(status.st_dev)
    return actual == (major, minor) or (actual[0] == 0 and major == 0)


def _candidates(proc: str, ranges: tuple[MappedRange, ...]) -> Iterator[str]:
    for mapped in ranges:
        yield f"{proc}/map_files/{mapped.start:x}-{mapped.end:x}"
    if ranges[0].path.startswith("/"):
        yield f"{proc}/root{ranges[0].path}"
    yield f"{proc}/exe"
