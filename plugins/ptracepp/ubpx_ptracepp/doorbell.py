"""What wakes the tracer thread out of its wait.

A signal to a thread does not end ``os.waitid`` there (PEP 475). A stop of something that the thread
traces does: so it traces a small sleeping child, and whoever wants it to wake sends that a signal.
The child sleeps in reading a pipe of ours, so that it ends with us before it is traced, too.

It is a program of its own few bytes, which shares no file with others: to map or unmap libc a process takes the
lock of all its mappings, and where the kernel watches memory (DAMON) and the processors are busy, a
``cat`` has waited a minute for it in its exec, deaf to every ring (measured, Linux 6.18).
"""

import contextlib
import os
import shutil
import signal
import struct
from collections.abc import Sequence
from typing import Final

from ubpx import PtraceFailed, UsageError
from ubpx_ptracepp.parenthood import waitpid
from ubpx_ptracepp.requests import PTRACE_CONT, PTRACE_O_EXITKILL, PTRACE_SEIZE, WAIT_THREAD, request

_NAME: Final = b"ubpx-doorbell"
_MFD_EXEC: Final = 0x10
_CODE: Final = bytes.fromhex(
    "b8 9d000000"  # mov eax, prctl
    "bf 0f000000"  # mov edi, PR_SET_NAME
    "488d35 17000000"  # lea rsi, [rip + its name, behind the code]
    "0f05"  # syscall
    "31c0 31ff 4889e6 6a01 5a 0f05"  # read(0, rsp, 1): until we end
    "b8 3c000000 31ff 0f05"  # exit(0)
)
_BASE: Final = 0x10000
_HEADERS_SIZE: Final = 64 + 56


class Doorbell:
    """A child of the tracer thread; dies with it, whatever happens (PTRACE_O_EXITKILL)."""

    def __init__(self) -> None:
        # A process group of its own keeps the terminal's Ctrl-C away. Not a session of its own: under load the
        # scheduler's new autogroup starved the child for more than 60 s before its exec (measured, Linux 6.18).
        ours, self._lifeline = os.pipe()
        null = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in (1, 2)]
        files = [(os.POSIX_SPAWN_DUP2, ours, 0), *null]
        try:
            self.pid: Final = _spawn(files)
        finally:
            os.close(ours)
        try:
            request(PTRACE_SEIZE, self.pid, 0, PTRACE_O_EXITKILL)
        except PtraceFailed:
            self.close()
            raise

    def ring(self) -> None:
        """From any thread."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGURG)

    def rearm(self) -> None:
        """It has stopped, and was heard."""
        request(PTRACE_CONT, self.pid)

    def close(self) -> None:
        """End it."""
        os.close(self._lifeline)
        # Once our program has become another user it may not kill it; without its lifeline it ends by itself.
        with contextlib.suppress(ProcessLookupError, ChildProcessError, PermissionError):
            os.kill(self.pid, signal.SIGKILL)
            while not os.WIFSIGNALED(waitpid(self.pid, WAIT_THREAD)[1]):
                pass


def _spawn(files: Sequence[tuple[int | str, ...]]) -> int:
    argv = [_NAME.decode()]
    try:
        program = os.memfd_create(_NAME.decode(), os.MFD_CLOEXEC | _MFD_EXEC)
    except OSError:  # before Linux 6.3 nobody knew the flag, or needed it
        program = os.memfd_create(_NAME.decode(), os.MFD_CLOEXEC)
    try:
        os.write(program, _elf())
        return os.posix_spawn(f"/proc/self/fd/{program}", argv, {}, file_actions=files, setpgroup=0)
    except PermissionError:  # a system that runs no program without a file: vm.memfd_noexec, or a security module
        cat = shutil.which("cat", path=os.defpath)
        if cat is None:
            raise UsageError(f"no 'cat' in {os.defpath}, which the tracer is woken by; install coreutils") from None
        return os.posix_spawn(cat, argv, {}, file_actions=files, setpgroup=0)
    finally:
        os.close(program)


def _elf() -> bytes:
    """A static executable: headers, one segment, the code."""
    image = _CODE + _NAME + b"\0"
    ident = b"\x7fELF\2\1\1".ljust(16, b"\0")
    entry, size = _BASE + _HEADERS_SIZE, _HEADERS_SIZE + len(image)
    header = ident + struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, entry, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, _BASE, _BASE, size, size, 0x1000)
    return header + segment + image
