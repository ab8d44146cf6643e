"""The channel: hits and hooks come here, one at a time, and what a handler asks while it runs goes this way."""

import contextlib
import logging
import socket
import threading
from collections import deque
from typing import Any, Final, Protocol

from ubpx import Responsiveness
from ubpx_froggy.client.conversation import Conversation, Ending, Question
from ubpx_froggy.client.dialling import Dialled
from ubpx_froggy.client.handling import Handling, Hooked, Leased, lone_hit, quiet
from ubpx_froggy.messages import FromBrokerOnChannel, Handle, Hit, Hook
from ubpx_froggy.wire import WireError

_CHUNK: Final = 1 << 16
CLOSED: Final = "it has closed the channel"
"""Why a connection has ended, if its channel has and the broker has not said why."""
_log = logging.getLogger("ubpx.froggy")


class Owner(Protocol):
    """The link, as its channel needs it."""

    @property
    def handling(self) -> Handling:
        """Where handlers and hooks run."""
        ...

    @property
    def leases(self) -> dict[Handle, Any]:
        """Those whose handlers may run."""
        ...

    def await_lease(self, hit: Hit) -> Leased | None:
        """The lease of a hit, whose grant may still be on its way; None if it was given back before it."""
        ...

    def await_client(self, handle: Handle) -> Hooked | None:
        """The client of a hook; None if it has closed."""
        ...

    def channel_lost(self, reason: str) -> Ending:
        """The channel has ended, and the connection with it; how."""
        ...


class Channel:
    """One channel and the thread that serves it. Owned by its link."""

    def __init__(self, dialled: Dialled, owner: Owner) -> None:
        self._socket: Final = dialled.socket
        self._framer: Final = dialled.framer
        self._owner: Final = owner
        self._handling: Final = owner.handling
        self._conversation: Final = Conversation(FromBrokerOnChannel)
        self._waiting: Final[deque[Any]] = deque()
        """Messages that came while a handler waited for a reply."""
        self._answered: Final[list[threading.Event]] = []
        """To be set when the answer that is due has been sent."""
        self._serves = False
        """Whether a handler or hook runs."""
        self._responsiveness: Final = Responsiveness()
        """Hits must not wait 5 ms for a Python thread of ours that computes."""
        self._ident = 0
        self._thread: Final = threading.Thread(target=self._run, name="ubpx-hits", daemon=True)

    def start(self) -> None:
        """Serve hits and hooks from now on."""
        self._thread.start()

    @property
    def is_here(self) -> bool:
        """Whether the caller is a handler or hook that the channel runs."""
        return self._serves and threading.get_ident() == self._ident

    def when_answered(self, answered: threading.Event) -> None:
        """Set it once the answer of the handler or hook that asks has been sent; at once, if the channel runs none."""
        if self.is_here:
            self._answered.append(answered)
        else:
            answered.set()

    def request(self, question: Question) -> Any:
        """Ask, from a handler, and wait for the reply; raises what the broker answers, or that it is gone."""
        frame = self._conversation.ask(question, _nobody_waits)
        try:
            self._socket.sendall(frame, socket.MSG_NOSIGNAL)
            while not question.is_answered:
                self._take(self._socket.recv(_CHUNK))
        except (OSError, EOFError):
            self._conversation.end(self._owner.channel_lost(CLOSED))
        except WireError as error:
            self._conversation.end(self._owner.channel_lost(str(error)))
        return question.result()

    def end(self, ending: Ending) -> None:
        """Nothing more is asked or served; from any thread. Again: does nothing."""
        self._conversation.end(ending)
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def join(self, timeout: float) -> None:
        """Wait until the thread has ended, unless the caller is in it."""
        if threading.get_ident() != self._ident:
            self._thread.join(timeout)

    def _run(self) -> None:
        self._ident = threading.get_ident()
        reason = CLOSED
        try:
            self._handling.watchdog.start()
            self._responsiveness.want(wanted=True)
            with self._handling.running_here():
                self._serve()
        except (OSError, EOFError):
            pass
        except WireError as error:
            reason = str(error)
        except Exception as error:  # noqa: BLE001 - whatever it was, a broker must not wait for us
            _log.exception("the channel cannot go on")
            reason = f"we have given up ({type(error).__name__}); see the log"
        finally:
            self._tell_answered()
            self._responsiveness.want(wanted=False)
            self._handling.watchdog.stop()
            self._owner.channel_lost(reason)
            self._socket.close()

    def _serve(self) -> None:
        receive, send, framer, waiting = self._socket.recv, self._socket.sendall, self._framer, self._waiting
        answered = self._answered
        for body in framer.feed(b""):  # it may have come behind the welcome
            waiting.append(self._conversation.take(body))
        while True:
            while waiting:
                send(self._answer(waiting.popleft()), socket.MSG_NOSIGNAL)
                if answered:
                    self._tell_answered()
            data = receive(_CHUNK)
            hit = lone_hit(data, framer)
            if hit is not None:
                send(self._answer(hit), socket.MSG_NOSIGNAL)
                if answered:
                    self._tell_answered()
            else:
                self._take(data)

    def _tell_answered(self) -> None:
        while self._answered:
            self._answered.pop().set()

    def _take(self, data: bytes) -> None:
        """Understand what has come; hits and hooks wait for their turn. Raises EOFError at the end, WireError."""
        if not data:
            raise EOFError
        for body in self._framer.feed(data):
            message = self._conversation.take(body)
            if message is not None:
                self._waiting.append(message)

    def _answer(self, message: Any) -> bytes:
        """Do what a hit or hook says; the answer. Raises WireError for another message."""
        self._serves = True
        try:
            if isinstance(message, Hit):
                lease = self._owner.leases.get(message.lease) or self._owner.await_lease(message)
                return quiet(message.call) if lease is None else self._handling.hit(message, lease)
            if isinstance(message, Hook):
                client = self._owner.await_client(message.client)
                return quiet(message.call) if client is None else self._handling.hook(message, client)
        finally:
            self._serves = False
        raise WireError(f"{type(message).__name__.lower()} on a channel that is open")


def _nobody_waits() -> None: ...
