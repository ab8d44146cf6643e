"""What the coordinator tells of a target and the clients' hooks simply hear, or are asked. In the tracer thread."""

from collections.abc import Sequence
from typing import Final

from ubpx.core.catches import Catches
from ubpx.core.herald import Herald, Wanted
from ubpx.core.spaces import TracedProcess
from ubpx.core.values import ProcessId, ThreadId, VirtAddr
from ubpx.core.verdicts import RegisterCollision


class Teller:
    """The part of a target's desk that passes on what happens (see ``listener.Listener``)."""

    def __init__(self, herald: Herald, catches: Catches) -> None:
        self._herald: Final = herald
        self._catches: Final = catches

    def signalled(self, process: TracedProcess, tid: ThreadId, signal: int) -> Wanted:
        """What clients want to happen before a signal is delivered."""
        return self._catches.ask_signal(signal, process=process, tid=tid)

    def syscall_entered(self, process: TracedProcess, tid: ThreadId, number: int, arguments: tuple[int, ...]) -> Wanted:
        """What clients want to happen before a system call."""
        kind = process.space.architecture.name
        return self._catches.ask_syscall("entered", number, kind, process=process, tid=tid, arguments=arguments)

    def syscall_exited(self, process: TracedProcess, tid: ThreadId, number: int, result: int) -> Wanted:
        """What clients want to happen after a system call."""
        kind = process.space.architecture.name
        return self._catches.ask_syscall("exited", number, kind, process=process, tid=tid, result=result)

    def collided(self, address: VirtAddr, collision: RegisterCollision) -> None:
        """Tell the two concerned."""
        concerned = (collision.winner, collision.loser)
        self._herald.tell(
            "ubpx_collision",
            only=lambda client: client.name in concerned,
            address=address,
            resource=collision.register,
            winner=collision.winner,
            loser=collision.loser,
        )

    def stepped(self, process: TracedProcess, clients: Sequence[str], tid: ThreadId, address: VirtAddr) -> None:
        """The step that a verdict asked for is done."""
        only = lambda client: client.name in clients  # noqa: E731
        self._herald.tell("ubpx_thread_stepped", only=only, process=process, tid=tid, address=address)

    def thread_started(self, process: TracedProcess, tid: ThreadId) -> None:
        """A new thread."""
        self._herald.tell("ubpx_thread_started", process=process, tid=tid)

    def thread_exited(self, process: TracedProcess, tid: ThreadId, status: int) -> None:
        """A thread is about to exit."""
        self._herald.tell("ubpx_thread_exited", process=process, tid=tid, status=status)

    def forked(self, process: TracedProcess, child: ProcessId) -> None:
        """A child, followed, cleaned or stepped over."""
        self._herald.tell("ubpx_process_forked", process=process, child=child)
