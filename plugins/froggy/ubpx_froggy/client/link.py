"""The blocking form of a connection: requests from any thread, one reader, and the channel once it is needed."""

import contextlib
import logging
import os
import socket
import threading
from time import monotonic, sleep
from typing import Any, Final

from ubpx import UsageError
from ubpx_froggy.client.channel import Channel
from ubpx_froggy.client.conversation import Conversation, Decode, Ending, EndKind, Question, nothing
from ubpx_froggy.client.dialling import dial
from ubpx_froggy.client.grants import GRANT_S, client_of, gives_leases
from ubpx_froggy.client.handling import Handling, Hooked, Leased
from ubpx_froggy.client.notices import Notices
from ubpx_froggy.client.roster import Roster
from ubpx_froggy.messages import Call, Evicted, FromBroker, Handle, Hit, Hits
from ubpx_froggy.wire import WireError

FLUSH_S: Final = 5.0
"""How long a release waits for handlers that have not had all hits of before it."""

_LOOK_S: Final = 0.002
VERDICT_S: Final = 1.0
"""How long we wait to be told why, when the channel has ended before the connection."""
_JOIN_S: Final = 1.0
_CHUNK: Final = 1 << 16
_log = logging.getLogger("ubpx.froggy")


class Link:
    """One connection to a broker. Usable from any thread, except from another process than its maker's."""

    def __init__(self, path: str) -> None:
        """Connect; raises what ``dial`` raises."""
        dialled = dial(path)
        self.broker: Final = path
        self.broker_pid: Final = dialled.welcome.broker_pid
        self.roster: Final = Roster()
        self.leases: Final = self.roster.leases
        self.ending: Ending | None = None
        """How it has ended; None while it has not."""
        self._maker: Final = os.getpid()
        self._token: Final = dialled.welcome.channel
        self._socket: Final = dialled.socket
        self._framer: Final = dialled.framer
        self._conversation: Final = Conversation(FromBroker)
        self._sending: Final = threading.Lock()
        self._opening: Final = threading.Lock()
        self._ending: Final = threading.Lock()
        self._ended: Final = threading.Event()
        self._channel: Channel | None = None
        self._handling: Handling | None = None
        self._notices: Notices | None = None
        self._reader: Final = threading.Thread(target=self._read, name="ubpx-broker", daemon=True)
        self._reader.start()

    def serve(self, handling: Handling) -> None:
        """Where handlers and hooks run; called once, before any is asked for."""
        self._handling = handling
        self._notices = Notices(self)

    @property
    def handling(self) -> Handling:
        """Where handlers and hooks run."""
        if self._handling is None:
            raise WireError("a hit before a target was joined")
        return self._handling

    # Requests -----------------------------------------------------------------------------

    def request(self, call: Call, decode: Decode = nothing, *, client: str | None = None, subject: Any = None) -> Any:
        """Ask, and wait for the reply, as long as the connection lives; what ``decode`` makes of it.

        ``client`` is the name of the client that it concerns, ``subject`` what the reply will be about.
        Raises what the broker answers, and what ``Ending.error`` gives once the connection has ended.
        """
        if os.getpid() != self._maker:
            raise UsageError(f"this connection belongs to process {self._maker}; connect again in this one")
        question = Question(call, decode, client=client, subject=subject)
        channel = self._channel
        if channel is not None and channel.is_here:
            return channel.request(question)
        ready = threading.Event()
        with self._sending:  # questions are sent in the order in which the conversation has them
            frame = self._conversation.ask(question, ready.set)
            try:
                self._socket.sendall(frame, socket.MSG_NOSIGNAL)
            except OSError:
                pass  # the reader finds out why
            except BaseException:
                self.break_off("we were interrupted in the middle of a request")
                raise
        ready.wait()
        return question.result()

    def check(self, client: str | None = None) -> None:
        """Raises what calls raise, if the connection has ended."""
        if self.ending is not None:
            raise self.ending.error(client)

    def open_channel(self) -> None:
        """Be ready for hits and hooks. Again: does nothing. Raises what ``dial`` raises, and as ``check`` does."""
        with self._opening:
            self.check()
            if self._channel is None:
                channel = Channel(dial(self.broker, channel=self._token), self)
                channel.start()
                self._channel = channel
                if self.ending is not None:
                    channel.end(self.ending)

    def when_answered(self) -> threading.Event:
        """Set once the answer that is due for the handler or hook that asks has been sent; if none is, at once."""
        answered = threading.Event()
        if self._channel is None:
            answered.set()
        else:
            self._channel.when_answered(answered)
        return answered

    def flush(self) -> None:
        """Let handlers have the hits in mode ``notify`` that have come so far; not from a handler, and not for ever."""
        if self._notices is not None:
            self._notices.flush(FLUSH_S)

    # What messages are about ----------------------------------------------------------------

    def await_lease(self, hit: Hit) -> Leased | None:
        """The lease of a hit, whose grant may still be on its way; None if it was given back before it."""
        last: Leased | None = self.roster.last_of(hit)
        return last if last is not None else self.await_grant(hit.lease)

    def await_grant(self, handle: Handle) -> Leased | None:
        """A lease that may still be on its way; None if it was given back."""
        until = monotonic() + GRANT_S
        while True:
            expected = gives_leases(self._conversation.unanswered())
            lease: Leased | None = self.leases.get(handle)  # looked for last: a reply may have come between
            if lease is not None or not expected or handle in self.roster.ended or monotonic() > until:
                return lease
            sleep(_LOOK_S)

    def await_client(self, handle: Handle) -> Hooked | None:
        """The client of a hook; one that is just being opened, if we have not been told its handle yet."""
        found: Hooked | None = client_of(handle, self.roster, self._conversation.unanswered())
        return found

    # The end --------------------------------------------------------------------------------

    def close(self, reason: str) -> None:
        """Leave, and wait a moment for the threads. Again: does nothing."""
        self._end(Ending(kind=EndKind.LEFT, broker=self.broker, reason=reason))
        if self._reader is not threading.current_thread():
            self._reader.join(_JOIN_S)
        if self._channel is not None:
            self._channel.join(_JOIN_S)
        if self._notices is not None:
            self._notices.join(_JOIN_S)

    def break_off(self, reason: str) -> Ending:
        """The broker, or what it says, cannot be used any more. How the connection has ended."""
        return self._end(Ending(kind=EndKind.GONE, broker=self.broker, reason=reason))

    def channel_lost(self, reason: str) -> Ending:
        """The channel has ended; if the connection does not soon, it ends with it. How it has ended."""
        self._ended.wait(VERDICT_S)
        return self.break_off(reason)

    def _end(self, ending: Ending) -> Ending:
        with self._ending:
            if self.ending is not None:
                return self.ending
            self.ending = ending
        self._conversation.end(ending)
        self._ended.set()
        if self._channel is not None:
            self._channel.end(ending)
        if self._notices is not None:
            self._notices.end()
        if os.getpid() == self._maker:  # a forked copy of the program would end its parent's connection
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
        return ending

    # The reader -----------------------------------------------------------------------------

    def _read(self) -> None:
        reason = "it has closed the connection"
        try:
            while data := self._socket.recv(_CHUNK):
                for body in self._framer.feed(data):
                    self._take(self._conversation.take(body))
        except OSError:
            pass
        except WireError as error:
            reason = str(error)
        except Exception as error:  # noqa: BLE001 - whatever it was, whoever waits must hear of it
            _log.exception("the connection cannot go on")
            reason = f"we have given up ({type(error).__name__}); see the log"
        finally:
            self.break_off(reason)
            self._socket.close()

    def _take(self, message: Any) -> None:
        match message:
            case None:
                pass
            case Hits():
                if self._notices is not None:
                    self._notices.put(message)
            case Evicted(reason=reason):
                self._end(Ending(kind=EndKind.EVICTED, broker=self.broker, reason=reason))
            case _:
                raise WireError(f"{type(message).__name__.lower()} on a connection that is open")
