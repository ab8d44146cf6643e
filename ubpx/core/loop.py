"""The tracer thread: owns the tracer, serves its events, runs what other threads post."""

import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Final, TypeVar

from ubpx._errors import InternalError, UsageError
from ubpx.core.coordinator import Coordinator
from ubpx.core.events import Doorbell
from ubpx.core.patrol import Patrol
from ubpx.core.ports import Tracer
from ubpx.core.responsiveness import Responsiveness

_log = logging.getLogger("ubpx.loop")
T = TypeVar("T")
_TOO_MANY_FAILURES: Final = 1000


class TracerThread:
    """One thread that makes every ptrace request of a session. Owned by the Session."""

    def __init__(self, tracer: Tracer, coordinator: Coordinator) -> None:
        self.coordinator: Final = coordinator
        self.responsiveness: Final = Responsiveness()
        self.patrol: Final = Patrol(self._look_at_text, self.post)
        self._tracer: Final = tracer
        self._jobs: Final[deque[tuple[Callable[[], Any], Future[Any]]]] = deque()
        self._closing = False
        self._failures = 0
        self._lock: Final = threading.Lock()
        self._thread: Final = threading.Thread(target=self._main, name="ubpx-tracer", daemon=True)
        self._opened: Final[Future[None]] = Future()
        coordinator.keeper.dispatch = self.run
        self._thread.start()
        self._opened.result()

    @property
    def is_current(self) -> bool:
        """Whether the caller is in this thread: in a handler or a hook."""
        return threading.current_thread() is self._thread

    def run(self, job: Callable[[], T]) -> T:
        """Run ``job`` in the tracer thread and give its result, or raise what it raised.

        In the tracer thread itself it runs at once. Raises UsageError after ``close``.
        """
        if self.is_current:
            self.coordinator.reception.note_request()
            return job()
        done: Future[T] = self.post(job)
        return done.result()

    def post(self, job: Callable[[], T]) -> "Future[T]":
        """Have ``job`` run between two events; from any thread, without waiting."""
        done: Future[T] = Future()
        with self._lock:
            if self._closing:
                raise UsageError("the session is closed; attach again")
            self._jobs.append((job, done))
        self._tracer.ring()
        return done

    def close(self) -> None:
        """End the thread once its jobs are done. Nothing may be traced any more."""
        with self._lock:
            if self._closing:
                return
            self._closing = True
        self._tracer.ring()
        if not self.is_current:
            self._thread.join()

    def _main(self) -> None:
        try:
            self._tracer.open()
        except BaseException as error:  # noqa: BLE001 - raised again where the session is made
            self._opened.set_exception(error)
            return
        self.coordinator.reception.watchdog.start()
        self._opened.set_result(None)
        while True:
            while self._jobs:
                self._run_job(*self._jobs.popleft())
            if self._closing and not self._jobs:
                break
            has_probes = self.coordinator.has_probes
            self.responsiveness.want(wanted=has_probes)
            self.patrol.want(wanted=has_probes)
            self._serve()
        self.responsiveness.want(wanted=False)
        self.patrol.stop()
        self.coordinator.reception.watchdog.stop()
        self._tracer.close()

    def _look_at_text(self) -> None:
        try:
            self.coordinator.look_at_text()
        except Exception:  # noqa: BLE001 - nobody waits for the result
            _log.exception("what is probed could not be looked at")

    def _run_job(self, job: Callable[[], Any], done: "Future[Any]") -> None:
        try:
            done.set_result(job())
        except BaseException as error:  # noqa: BLE001 - raised again where the result is asked for
            done.set_exception(error)

    def _serve(self) -> None:
        event: Any = None
        try:
            event = self._tracer.wait()
            if not isinstance(event, Doorbell):
                self.coordinator.handle(event)
        except Exception:  # noqa: BLE001 - one event gone wrong must not leave the other threads stopped
            _log.exception("an event could not be handled: %r", event)
            self._failures += 1
            if self._failures > _TOO_MANY_FAILURES:
                self._give_up()

    def _give_up(self) -> None:
        """Nothing goes right any more: who waits for us must not wait for ever."""
        with self._lock:
            self._closing = True
            for _, done in self._jobs:
                done.set_exception(InternalError("the tracer thread has failed too often; see the log"))
            self._jobs.clear()
