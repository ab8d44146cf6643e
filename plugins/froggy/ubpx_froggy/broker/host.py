"""The broker's targets: attached, started, registered with the run directory, and left."""

import contextlib
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final

from ubpx import NoSuchProcess, Session, Target, UbpxError, UsageError
from ubpx_froggy import directory
from ubpx_froggy.broker.hosted import Hosted


class Host:
    """All targets of one broker, under one tracer thread. Usable from any thread."""

    def __init__(self, session: Session, register: Callable[[int], Any], on_change: Callable[[], None]) -> None:
        self._session: Final = session
        self._register: Final = register
        """Tells other brokers and clients that the process is ours; raises AlreadyTraced, UsageError."""
        self._on_change: Final = on_change
        """A target has come or gone; called from any thread."""
        self._hosted: Final[dict[int, Hosted]] = {}
        self._entries: Final[dict[int, Any]] = {}
        self._lock: Final = threading.RLock()

    def all(self) -> tuple[Hosted, ...]:
        """Every target, those included that have ended and are still asked about."""
        return tuple(self._hosted.values())

    def find(self, pid: int | None) -> Hosted:
        """The target of a process, or the only one; raises UsageError."""
        hosted = self.all()
        if pid is None:
            if len(hosted) == 1:
                return hosted[0]
            there = ", ".join(str(each.pid) for each in hosted) or "none"
            raise UsageError(f"the broker has {len(hosted)} targets ({there}); say which process: pid=")
        for each in hosted:
            if each.pid == pid:
                return each
        raise UsageError(f"the broker does not trace process {pid}; have it attached: ubpx.connect(PATH, pid={pid})")

    def kept(self) -> AbstractContextManager[object]:
        """While this is entered no target is left for want of use."""
        return self._lock

    def attach(self, pid: int, *, slots: Any = "auto", follow: Any = "exec", on_demand: bool = True) -> Hosted:
        """The target of a process, attached to if it is not; raises what ``session.attach`` does."""
        with self._lock:
            known = self._hosted.get(pid)
            if known is not None and known.status is None:
                return known
            if directory.identity_of(pid) is None:
                raise NoSuchProcess(pid)
            self._drop(known)
            entry = self._register(pid)  # a full disk is met before the program is
            try:
                target = self._session.attach(pid, slots=slots, follow=follow)
            except BaseException:
                directory.unregister(entry)
                raise
            return self._add(target, entry, on_demand=on_demand, spawned=False)

    def spawn(self, argv: Sequence[str], *, follow: Any = "exec") -> Hosted:
        """Start a program; it stands at its entry point. Raises what ``session.spawn`` does."""
        with self._lock:
            target = self._session.spawn(argv, follow=follow)
            try:
                entry = self._register(target.pid)
            except BaseException:
                if target.popen is not None:
                    target.popen.kill()
                target.wait()
                target.detach()
                raise
            return self._add(target, entry, on_demand=False, spawned=True)

    def _add(self, target: Target, entry: Any, *, on_demand: bool, spawned: bool) -> Hosted:
        hosted = Hosted(target, on_demand=on_demand, spawned=spawned)
        try:
            hosted.watch(self._ended)
        except BaseException:
            directory.unregister(entry)
            target.detach()
            raise
        self._hosted[target.pid] = hosted
        self._entries[target.pid] = entry
        self._on_change()
        return hosted

    def _ended(self, hosted: Hosted) -> None:
        """In the tracer thread: whoever asks about it still can."""
        self._forget_entry(hosted.pid)
        self._on_change()

    def _forget_entry(self, pid: int) -> None:
        entry = self._entries.pop(pid, None)
        if entry is not None:
            directory.unregister(entry)

    def tidy(self, hosted: Hosted) -> None:
        """Leave a target that nobody uses: one that has ended, or that was attached to for somebody who has left."""
        with self._lock:
            if hosted.is_unused and (hosted.on_demand or hosted.status is not None):
                self._drop(hosted)

    def tidy_all(self) -> None:
        """``tidy`` for each."""
        for hosted in self.all():
            self.tidy(hosted)

    def _drop(self, hosted: Hosted | None) -> None:
        if hosted is None or self._hosted.get(hosted.pid) is not hosted:
            return
        del self._hosted[hosted.pid]
        with contextlib.suppress(UbpxError):
            if hosted.spawned and hosted.status is not None:
                hosted.target.wait(1.0)  # it is our child: nobody else reaps it
            hosted.target.detach()
        for child in hosted.target.family:
            with contextlib.suppress(UbpxError):
                child.detach()
        self._forget_entry(hosted.pid)
        self._on_change()

    def close(self) -> None:
        """Leave every target; the programs run on."""
        with self._lock:
            for hosted in self.all():
                self._drop(hosted)
            self._session.close()
