"""One thread of the real processor, to be loaded, run and read."""

import contextlib
import ctypes
import mmap
import os
import signal
import struct
import threading
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Final, Self

import attrs

from ubpx._errors import InternalError, TargetGone, UsageError
from ubpx.core.registers import RegisterLayout
from ubpx.core.values import PAGE_SIZE, ProcessId
from ubpx.testing.oracle import ptrace
from ubpx.testing.oracle.image import elf, system_call_filter
from ubpx.testing.oracle.layout import (
    CODE_SIZE,
    DATA_AT,
    DATA_SIZE,
    FILE_SIZE,
    INT3,
    MEMORY,
    SLOT_SIZE,
    SLOTS_AT,
    STACK_AT,
    STACK_SIZE,
    Layout,
)

WORDS: Final = 27
"""Of struct user_regs_struct."""
REGISTERS: Final = struct.Struct(f"={WORDS}Q")
_XSTATE_MOST: Final = 16384
_REQUEST_PERMISSION, _TILE_DATA = 0x1023, 18
_LOAD_TILES: Final = bytes.fromhex("c4e27849 00 cc")  # ldtilecfg [rax]
_USE_TILES: Final = bytes.fromhex("c4e27b49 c0 cc")  # tilezero tmm0
_PROTECTION_RX, _PROTECTION_RW = 5, 3
_SHARED_FIXED: Final = 0x11
_NO_NEW_PRIVILEGES, _FILTER_MODE, _NO_MITIGATION = 38, 1, 4
_PATIENCE: Final = 3.0
"""Seconds after which a thread that neither stops nor faults is taken for stuck."""


@attrs.frozen
class Stop:
    """Why the thread stopped."""

    signal: int
    code: int
    """si_code; 0 where nobody asked for it (see ``Processor.why``)."""
    address: int
    """si_addr of a fault."""


class Processor:
    """A program without a will of its own. Owned by one thread of whoever made it; ``close`` ends it.

    ``shared`` are its areas (see ``layout``): writing there changes its memory at once.
    ``xstate_size`` is what PTRACE_GETREGSET gives for its vector and x87 state.
    """

    def __init__(self, layout: Layout, names: Sequence[str], pc_name: str, *, segment_base: int = 0x100) -> None:
        self.layout = layout
        self.registers: Final = RegisterLayout(layout.architecture, names, pc_name, word_size=layout.word_size)
        self.pid = ProcessId(0)
        self.runs = 0
        self.running = False
        self.has_tiles = False
        self._fresh: tuple[int, ...] = ()
        self._segment_base: Final = segment_base
        self._words: Final = ctypes.create_string_buffer(REGISTERS.size)
        self._xstate: Final = ctypes.create_string_buffer(_XSTATE_MOST)
        self._vector: Final = ptrace.Vector(ctypes.addressof(self._xstate), _XSTATE_MOST)
        self._info: Final = ctypes.create_string_buffer(128)
        self._words_at: Final = ctypes.c_void_p(ctypes.addressof(self._words))
        self._vector_at: Final = ctypes.c_void_p(ctypes.addressof(self._vector))
        self._info_at: Final = ctypes.c_void_p(ctypes.addressof(self._info))
        self._kind: Final = ctypes.c_void_p(ptrace.NT_X86_XSTATE)
        self._pc: Final = 8 * self.registers.pc
        self._loaded: bytes = b""
        descriptor = os.memfd_create("ubpx-areas")
        os.ftruncate(descriptor, FILE_SIZE)
        self._descriptor: Final = descriptor
        self.shared: Final = mmap.mmap(descriptor, FILE_SIZE)
        self.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the program; what it had is gone."""
        self._end()
        self.shared.close()
        os.close(self._descriptor)

    def _end(self) -> None:
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self.pid, 0)
            self.pid = ProcessId(0)

    def start(self) -> None:
        """A new program, in the place of one that may have died; its state is that of a fresh one."""
        self._end()
        image = os.memfd_create("ubpx-program")
        os.write(image, elf(self.layout))
        pid = os.fork()
        if pid == 0:
            ptrace.become(f"/proc/self/fd/{image}", self._descriptor)
        self.pid = ProcessId(pid)
        os.close(image)
        _, status = os.waitpid(pid, 0)
        if not os.WIFSTOPPED(status):
            self.pid = ProcessId(0)
            raise UsageError(f"this machine runs no {self.layout.architecture} program under ptrace")
        ptrace.request(ptrace.SETOPTIONS, pid, None, ptrace.EXITKILL)
        self._set_up()

    def _set_up(self) -> None:
        layout = self.layout
        self.shared[:] = INT3 * SLOTS_AT + INT3 * SLOT_SIZE + bytes(DATA_SIZE + STACK_SIZE)
        strangers = self._strangers()
        words = list(self.words())
        here, words[self.registers.pc] = words[self.registers.pc], layout.origin
        words[self.registers.index["rsp" if layout.word_size == 8 else "esp"]] = layout.stack + STACK_SIZE // 2
        self._fresh = tuple(words)
        for start, size, at, protection in (
            (layout.code, CODE_SIZE, 0, _PROTECTION_RX),
            (layout.slots, SLOT_SIZE, SLOTS_AT, _PROTECTION_RX),
            (layout.data, DATA_SIZE, DATA_AT, _PROTECTION_RW),
            (layout.stack, STACK_SIZE, STACK_AT, _PROTECTION_RW),
            (layout.low, DATA_SIZE, DATA_AT, _PROTECTION_RW),
        ):
            shift = at if layout.word_size == 8 else at // PAGE_SIZE  # mmap2 counts pages
            made = self._call("mmap", start, size, protection, _SHARED_FIXED, self._descriptor, shift, at=here)
            if made == start:
                continue
            if start != layout.low:
                raise InternalError(f"the area at {start:#x} cannot be mapped: {made:#x}")
            self.layout = attrs.evolve(layout, low=layout.data)  # below vm.mmap_min_addr only root may have anything
        self.put_code(layout.origin, layout.system_call)
        for start, end in strangers:
            self._call("munmap", start, end - start)
        self._extend()
        self._confine()
        self.put_code(layout.origin, INT3 * len(layout.system_call))
        self.shared[MEMORY] = bytes(FILE_SIZE - DATA_AT)
        self.xstate_size = len(self.xstate())

    def _strangers(self) -> list[tuple[int, int]]:
        """What the kernel and the loader have mapped, but for vsyscall, which cannot go."""
        with open(f"/proc/{self.pid}/maps", encoding="ascii") as maps:
            spans = (line.split()[0].split("-") for line in maps if "[vsyscall]" not in line)
            return [(int(start, 16), int(end, 16)) for start, end in spans]

    def _extend(self) -> None:
        """Tile registers where there are any; on i386 a segment that gs or fs can name."""
        if self.layout.word_size == 4:
            at, size, flags = self.layout.data, 0xF_FFFF, 0x51  # 32 bits, limit in pages, usable
            self.shared[DATA_AT : DATA_AT + 16] = struct.pack("<IIII", 12, self._segment_base, size, flags)
            self._call("set_thread_area", at)
            return
        self.has_tiles = self._call("arch_prctl", _REQUEST_PERMISSION, _TILE_DATA) == 0
        if self.has_tiles:
            self.shared[DATA_AT : DATA_AT + 64] = tile_configuration()
            for code in (_LOAD_TILES, _USE_TILES):  # the kernel makes room at the first use
                self.ask(code, {"rax": self.layout.data})
            self.put_code(self.layout.origin, self.layout.system_call)

    def _confine(self) -> None:
        """From here on no system call can do harm."""
        program = system_call_filter()
        pointer = struct.pack("<HxxI" if self.layout.word_size == 4 else "<HxxxxxxQ", len(program) // 8,
                              self.layout.data + 0x100)  # fmt: skip
        self.shared[DATA_AT : DATA_AT + len(pointer)] = pointer
        self.shared[DATA_AT + 0x100 : DATA_AT + 0x100 + len(program)] = program
        self._call("prctl", _NO_NEW_PRIVILEGES, 1, 0, 0, 0)
        if self._call("seccomp", _FILTER_MODE, _NO_MITIGATION, self.layout.data) != 0:
            raise InternalError("the program under test cannot be confined by seccomp")

    def _call(self, name: str, *arguments: int, at: int = 0) -> int:
        """Have the thread do a system call at ``at`` (else at the origin), where the instruction must stand."""
        layout = self.layout
        accumulator = "rax" if layout.word_size == 8 else "eax"
        changes = {accumulator: layout.calls[name], **dict(zip(layout.arguments, arguments, strict=False))}
        return self._resume(at or layout.origin, changes)[self.registers.index[accumulator]] & layout.mask

    def ask(self, code: bytes, registers: dict[str, int]) -> tuple[int, ...]:
        """Run ``code``, which ends in an int3, at the origin; all registers behind it.

        Those that ``registers`` does not name are as in a fresh program.
        """
        self.put_code(self.layout.origin, code)
        words = self._resume(self.layout.origin, registers)
        self.put_code(self.layout.origin, INT3 * len(code))
        return words

    def _resume(self, pc: int, changes: dict[str, int]) -> tuple[int, ...]:
        words = list(self._fresh)
        words[self.registers.pc] = pc
        for name, value in changes.items():
            words[self.registers.index[name]] = value
        self.load_words(REGISTERS.pack(*words))
        stopped = self.run()
        if stopped != signal.SIGTRAP:
            raise InternalError(f"the program under test got signal {stopped} while it was set up")
        return self.words()

    # What costs at each run.

    def load_words(self, raw: bytes) -> None:
        """The general registers, as 27 packed words."""
        self._words.raw = raw
        ptrace.request(ptrace.SETREGS, self.pid, None, self._words_at)

    def raw_words(self) -> bytes:
        """The general registers, packed."""
        ptrace.request(ptrace.GETREGS, self.pid, None, self._words_at)
        return self._words.raw

    def words(self) -> tuple[int, ...]:
        """The general registers."""
        return REGISTERS.unpack(self.raw_words())

    def load_xstate(self, state: bytes) -> None:
        """The vector and x87 state, in XSAVE's standard form; nothing is done if it is there already.

        Raises PtraceFailed if the processor or the kernel does not take it.
        """
        if state == self._loaded:
            return
        self._loaded = b""
        ctypes.memmove(self._xstate, state, len(state))
        self._vector.size = len(state)
        ptrace.request(ptrace.SETREGSET, self.pid, self._kind, self._vector_at)

    def xstate(self) -> bytes:
        """The vector and x87 state now."""
        self._vector.size = _XSTATE_MOST
        ptrace.request(ptrace.GETREGSET, self.pid, self._kind, self._vector_at)
        self._loaded = ctypes.string_at(self._xstate, self._vector.size)
        return self._loaded

    def put_code(self, address: int, code: bytes) -> None:
        """Bytes into the code or slot area."""
        at = self.code_offset(address)
        self.shared[at : at + len(code)] = code

    def code_offset(self, address: int) -> int:
        """Where in the shared file an address of the code or slot area is."""
        start = self.layout.code
        return address - start if start <= address < start + CODE_SIZE else SLOTS_AT + address - self.layout.slots

    def run(self, *, step: bool = False) -> int:
        """Let the thread run until it stops; the signal. Raises TargetGone if it died instead, or hung."""
        self.runs += 1
        self._loaded = b""
        self.running = True
        ptrace.request(ptrace.SINGLESTEP if step else ptrace.CONT, self.pid)
        _, status = os.waitpid(self.pid, 0)
        self.running = False
        if not os.WIFSTOPPED(status):
            gone, self.pid = self.pid, ProcessId(0)
            raise TargetGone(gone, os.waitstatus_to_exitcode(status))
        return os.WSTOPSIG(status)

    def why(self, stopped: int) -> Stop:
        """What the kernel tells of the stop's signal."""
        ptrace.request(ptrace.GETSIGINFO, self.pid, None, self._info_at)
        _, _, code, _, address = struct.unpack_from("=iiiiQ", self._info)
        return Stop(stopped, code, address)

    def read(self, address: int, size: int) -> bytes:
        """As a Memory: what the program can read."""
        at = self.layout.offset(address, size, writing=False)
        return self.shared[at : at + size]

    def write(self, address: int, data: bytes) -> None:
        """As a Memory: where the program can write."""
        at = self.layout.offset(address, len(data), writing=True)
        self.shared[at : at + len(data)] = data

    def patch(self, address: int, data: bytes) -> None:
        """As a Memory: into code too."""
        self.put_code(address, data)


def tile_configuration(shapes: Iterable[tuple[int, int]] = ((16, 64),) * 8) -> bytes:
    """What ldtilecfg reads: palette 1, and rows and bytes in a row of each tile."""
    sizes = list(shapes)
    columns = b"".join(struct.pack("<H", width) for _, width in sizes).ljust(32, b"\0")
    rows = bytes(height for height, _ in sizes).ljust(16, b"\0")
    return bytes((1, 0)).ljust(16, b"\0") + columns + rows


class Watchdog:
    """Ends a processor's program that neither stops nor faults. Owned by whoever runs the processor."""

    def __init__(self, processor: Processor, patience: float = _PATIENCE) -> None:
        self._processor: Final = processor
        self._patience: Final = patience
        self._over: Final = threading.Event()
        self._thread: Final = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        seen = -1
        while not self._over.wait(self._patience):
            runs, pid = self._processor.runs, self._processor.pid
            if runs == seen and pid and self._processor.running:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            seen = runs
