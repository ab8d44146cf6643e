"""What belongs to a traced process as a whole: its memory, its program, the system calls made for us in it."""

import errno
import os
from collections.abc import Callable, Sequence
from typing import Final

from ubpx import SlotsExhausted, TargetGone
from ubpx.core.values import ProcessId, VirtAddr
from ubpx_ptracepp import procfs
from ubpx_ptracepp.abi import Abi
from ubpx_ptracepp.injection import Call, Gate, GateBroken, Injector, Interloper, find_gate
from ubpx_ptracepp.memory import ProcessMemory
from ubpx_ptracepp.tasks import PtraceThread

_MAP_FLAGS: Final = 0x100022  # MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE

TellStatus = Callable[[PtraceThread, int], None]
"""A wait status came that belongs to another event."""


class ProcessTable:
    """Memories, ABIs, and how system calls can be made, by pid. Owned by the tracer."""

    def __init__(self, tell_status: TellStatus) -> None:
        self._memories: Final[dict[ProcessId, ProcessMemory]] = {}
        self._abis: Final[dict[ProcessId, Abi]] = {}
        self._gates: Final[dict[ProcessId, Gate]] = {}
        self._injector: Final = Injector(self.memory)
        self._tell_status: Final = tell_status

    def memory(self, pid: ProcessId) -> ProcessMemory:
        """The memory of now."""
        memory = self._memories.get(pid)
        if memory is None:
            memory = self._memories[pid] = ProcessMemory(pid)
        return memory

    def abi(self, pid: ProcessId) -> Abi:
        """Of the program that it runs now; raises UsageError if such programs cannot be traced."""
        abi = self._abis.get(pid)
        if abi is None:
            abi = self._abis[pid] = procfs.abi(pid)
        return abi

    def share(self, pid: ProcessId, other: ProcessId) -> None:
        """The process lives in the memory of another, and may outlive it there."""
        self._memories[pid] = self.memory(other)
        self._abis[pid] = self.abi(other)

    def forget(self, pid: ProcessId) -> None:
        """It is left, or runs a new program: a descriptor would stay on the old memory."""
        self._gates.pop(pid, None)
        self._abis.pop(pid, None)
        memory = self._memories.pop(pid, None)
        if memory is None:
            return
        heir = next((other for other, its in self._memories.items() if its is memory), None)
        if heir is None:
            memory.close()
        else:
            memory.move_to(heir)

    def close(self) -> None:
        """Forget all."""
        for pid in tuple(self._memories):
            self.forget(pid)

    # System calls made in a process --------------------------------------------------------

    def call(self, thread: PtraceThread, name: str, *arguments: int) -> int:
        """Have the stopped thread make one system call; a negative result is an error number.

        Raises TargetGone, SlotsExhausted.
        """
        return self.calls(thread, [(name, arguments)])[0]

    def calls(self, thread: PtraceThread, calls: Sequence[Call], *, gate: Gate | None = None) -> list[int]:
        """Have the stopped thread make several; raises as ``call`` does."""
        pid = thread.pid
        if gate is None:
            gate = self._gates.get(pid)
        if gate is None:
            gate = self._gates[pid] = find_gate(pid, self.memory(pid), self.abi(pid))
        try:
            try:
                return self._injector.calls(pid, thread.tid, gate, calls)
            except GateBroken:  # the program has done something to it; then by an instruction of its own
                gate = find_gate(pid, self.memory(pid), self.abi(pid))
                return self._injector.calls(pid, thread.tid, gate, calls)
        except GateBroken as error:
            reason = "it changes the instructions by which it enters the kernel"
            raise SlotsExhausted(pid, gate.insn, reason) from error
        except Interloper as other:
            if other.wait_status is not None:
                self._tell_status(thread, other.wait_status)
            raise TargetGone(pid, None) from other

    def enter_by(self, pid: ProcessId, gate: Gate | None) -> None:
        """How system calls are made in the process from now on; None: by what can be found."""
        if gate is None:
            self._gates.pop(pid, None)
        else:
            self._gates[pid] = gate

    def map(
        self, thread: PtraceThread, address: VirtAddr, size: int, protection: int, gate: Gate | None = None
    ) -> bool:
        """Private memory exactly there; False: the place is taken. Raises SlotsExhausted, TargetGone."""
        arguments = (address, size, protection, _MAP_FLAGS, -1, 0)
        (result,) = self.calls(thread, [(self.abi(thread.pid).mmap, arguments)], gate=gate)
        if result == -errno.EEXIST:
            return False
        if result < 0:
            reason = f"the program's mmap failed: {os.strerror(-result)}"
            raise SlotsExhausted(thread.pid, address, reason)
        if result != address:  # a kernel without MAP_FIXED_NOREPLACE took the address as a hint
            self.call(thread, "munmap", result, size)
            return False
        return True
