"""What one side of a connection to a broker has asked, and what the broker's messages mean to it. Sans-IO.

Both forms of a link give it bytes and send what it makes; it knows no socket, and no thread waits in it.
The shape of messages is not checked here before they are parsed, as a broker checks its peers': whoever connects
has made sure that the broker is of the same user or root, and an honest reply may have very many items.
"""

import threading
from collections.abc import Callable
from enum import StrEnum
from itertools import count
from typing import Any, Final

import attrs
import msgspec

from ubpx import BrokerGone, ClientQuarantined, UbpxError, UsageError
from ubpx_froggy.failures import as_error
from ubpx_froggy.messages import Ask, Call, Failed, Handle, Hello, Refused, Reply, Welcome
from ubpx_froggy.wire import PROTOCOL, REQUEST_BYTES, Parser, WireError, pack

SOFTWARE: Final = "ubpx-froggy 0.1.0"
"""How we introduce ourselves."""

Decode = Callable[[msgspec.Raw], Any]
"""From a reply's value to what it means. It runs before the next message of the connection is looked at."""

_PREFIX: Final = 4
_UNREADABLE: Final = (msgspec.MsgspecError, RecursionError, UnicodeDecodeError, ValueError, OverflowError)
_parse_welcome: Final = Parser(Welcome | Refused).parse


def decoder(kind: Any) -> Decode:
    """What reads a reply's value as ``kind``."""
    return msgspec.msgpack.Decoder(kind).decode


def nothing(_: msgspec.Raw) -> None:
    """Reads a reply without a value."""


def hello(channel: Handle | None = None) -> bytes:
    """The first message on a connection or, with ``channel``, on that connection's channel."""
    return pack(Hello([PROTOCOL], SOFTWARE, channel))


def welcome(body: bytes) -> Welcome | Refused:
    """The answer to ``hello``; raises WireError for any other."""
    message: Welcome | Refused = _parse_welcome(body)
    if isinstance(message, Welcome) and message.version != PROTOCOL:
        raise WireError(f"version {message.version}, which was not offered")
    return message


class EndKind(StrEnum):
    """How a connection has ended."""

    EVICTED = "EVICTED"
    """The broker has thrown us out."""
    GONE = "GONE"
    """It has broken off."""
    LEFT = "LEFT"
    """We have detached."""


@attrs.frozen(kw_only=True)
class Ending:
    """That a connection has ended, and why."""

    kind: EndKind
    broker: str
    """The path of its socket."""
    reason: str
    """For people."""

    def error(self, client: str | None = None) -> UbpxError:
        """What a call raises from then on; ``client`` is the one that it concerns."""
        if self.kind is EndKind.LEFT:
            return UsageError(self.reason)
        if self.kind is EndKind.EVICTED and client is not None:
            return ClientQuarantined(client, self.reason)
        return BrokerGone(self.broker, self.reason)


class Question:
    """One request on its way. Owned by whoever asked."""

    __slots__ = ("_decode", "_error", "_value", "call", "client", "is_answered", "subject")

    def __init__(self, call: Call, decode: Decode, *, client: str | None = None, subject: Any = None) -> None:
        self.call: Final = call
        self.client: Final = client
        """The name of the client that it concerns."""
        self.subject: Final = subject
        """What the reply will be about, where that is here before it."""
        self.is_answered = False
        self._decode: Final = decode
        self._value: Any = None
        self._error: UbpxError | None = None

    def reply(self, value: msgspec.Raw) -> None:
        """It was done. Raises WireError for a value that was not expected."""
        try:
            self._value = self._decode(value)
        except Exception as error:  # whatever it is, whoever waits must hear of it
            self._error = WireError(f"a reply that cannot be read ({error})")
            raise self._error from error
        finally:
            self.is_answered = True

    def fail(self, error: UbpxError) -> None:
        """It was not done."""
        self._error = error
        self.is_answered = True

    def result(self) -> Any:
        """What the reply has brought, or raises what went wrong."""
        if self._error is not None:
            raise self._error
        return self._value


class Conversation:
    """Questions and answers of one connection, or of its channel; usable from any thread.

    ``types`` are the messages that the broker may send on it.
    """

    def __init__(self, types: Any) -> None:
        self._decode: Final = msgspec.msgpack.Decoder(types).decode
        self._ids: Final = count(1)
        self._asked: Final[dict[int, tuple[Question, Callable[[], None]]]] = {}
        self._lock: Final = threading.Lock()
        self._ending: Ending | None = None

    def ask(self, question: Question, done: Callable[[], None]) -> bytes:
        """The message to send; ``done`` is called when the question is answered, or the connection ends.

        Raises what calls raise after the end, and UsageError for what cannot travel.
        """
        number = next(self._ids)
        try:
            frame = pack(Ask(number, question.call))
        except (OverflowError, UnicodeError, TypeError, ValueError) as error:
            raise UsageError(f"this cannot be sent to a broker: {error}; give 64-bit ints and valid text") from None
        if len(frame) - _PREFIX > REQUEST_BYTES:
            raise UsageError(f"{len(frame)} bytes are too much for one request; ask for less at once")
        with self._lock:
            if self._ending is not None:
                raise self._ending.error(question.client)
            self._asked[number] = question, done
        return frame

    def take(self, body: bytes) -> Any:
        """Understand one message: None if it was the answer to a question, else the message.

        Raises WireError for one that cannot be.
        """
        try:
            message = self._decode(body)
        except _UNREADABLE as error:
            raise WireError(str(error)) from None
        if not isinstance(message, Reply | Failed):
            return message
        question, done = self._asked.get(message.id, (None, _ignore))
        if question is None:
            raise WireError(f"the answer to request {message.id}, which nobody has made")
        try:
            if isinstance(message, Reply):
                question.reply(message.value)
            else:
                question.fail(as_error(message.failure))
        finally:  # not before: what the reply brings must be there when the question is no more
            self._asked.pop(message.id, None)
            done()
        return None

    def unanswered(self) -> tuple[Question, ...]:
        """The questions that are on their way, in the order in which they were asked."""
        return tuple(question for question, _ in tuple(self._asked.values()))

    def end(self, ending: Ending) -> None:
        """Nothing more is answered: whoever waits gets its error. Again: does nothing."""
        with self._lock:
            if self._ending is not None:
                return
            self._ending = ending
        while self._asked:
            _, (question, done) = self._asked.popitem()
            if not question.is_answered:
                question.fail(ending.error(question.client))
            done()


def _ignore() -> None: ...
