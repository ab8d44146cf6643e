"""Runs the handlers and hooks of one connection, one at a time, and makes the answers that travel back. Sans-IO."""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from time import time
from typing import Any, Final, Protocol

import msgspec

from ubpx import UsageError, Verdict, Watchdog
from ubpx_froggy.client.hits import Arrival, RemoteHit, Surroundings
from ubpx_froggy.client.hooks import ONCE, STOP_HOOKS, Hooks
from ubpx_froggy.messages import Answer, ChildHit, Hit, Hook, Raised
from ubpx_froggy.wire import Framer, WireError, pack

_LONGEST_TEXT: Final = 2000
_OF_DEADLINE: Final = 0.7
"""A watchdog looks four times in its time: it has interrupted a handler before the broker loses its patience."""
_PREFIX: Final = 4
_HIT: Final = b"\x95\xa3hit"
"""How the body of a Hit begins: an array of five, the first of them its tag."""
_decode_hit: Final = msgspec.msgpack.Decoder(Hit).decode
_QUIET_BODY: Final = b"\x94\xa6answer\xcf"
_QUIET_TAIL: Final = b"\xc0\xc0"
_QUIET_HEAD: Final = (len(_QUIET_BODY) + 8 + len(_QUIET_TAIL)).to_bytes(4, "little") + _QUIET_BODY


def quiet(call: int) -> bytes:
    """``pack(Answer(call))``, prebuilt: most handlers want nothing. The number always takes 8 bytes here."""
    return _QUIET_HEAD + call.to_bytes(8, "big") + _QUIET_TAIL


def lone_hit(data: bytes, framer: Framer) -> Hit | None:
    """The hit, if what has come on a channel is one and nothing else, as it nearly always is. Raises WireError."""
    body = data[_PREFIX:]
    if not body.startswith(_HIT) or int.from_bytes(data[:_PREFIX], "little") != len(body) or framer.is_inside:
        return None
    try:
        return _decode_hit(body)
    except (msgspec.MsgspecError, ValueError, OverflowError) as error:
        raise WireError(str(error)) from None


def arguments_of(message: Hook) -> dict[str, Any]:
    """The arguments of a hook as its implementations expect them."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in message.arguments.items()}


class Hooked(Protocol):
    """A client, as far as the calls of its hooks need it."""

    strikes: int
    """Exceptions since its last success, as far as we know them here."""

    @property
    def hooks(self) -> Hooks:
        """What may be called."""
        ...

    @property
    def process(self) -> Any:
        """What its hooks are told of."""
        ...

    @property
    def told(self) -> "set[str]":
        """Which hooks have been called of those that are called once."""
        ...

    def failed(self, error: BaseException, where: str) -> None:
        """One of its handlers or hooks has raised."""
        ...


class Leased(Protocol):
    """A lease, as far as its hits need it."""

    handler: Callable[[Any], object] | None

    @property
    def client(self) -> Hooked:
        """Whose it is."""
        ...

    @property
    def mode(self) -> str:
        """``sync``, ``notify`` or ``count``."""
        ...

    @property
    def place(self) -> str:
        """Where it is, for people."""
        ...

    def count_error(self) -> None:
        """Its handler has raised, and the broker is not told."""
        ...


class Handling:
    """Where the handlers and hooks of one connection run. Owned by its target.

    What is to be done when one has returned or raised stands in methods of its own: the asyncio form comes to them
    later.
    """

    hit_kind: type[Any] = RemoteHit
    """What a handler gets, made of an ``Arrival``."""

    def __init__(self, around: Surroundings, deadline_s: float) -> None:
        self.around: Final = around
        self.watchdog: Final = Watchdog()
        """Interrupts a handler that makes its thread wait too long, before the broker evicts us for it."""
        self.watchdog.deadline_s = deadline_s * _OF_DEADLINE
        self.served: Hit | None = None
        """The hit whose handler runs, or ran last."""
        self.silent = False
        """Whether no handler runs any more, because we are leaving."""
        self.turn: Final = threading.RLock()
        """Held while a handler or hook runs."""
        self._runners: Final[set[int]] = set()

    # Who runs them ------------------------------------------------------------------------

    @property
    def is_here(self) -> bool:
        """Whether the caller is a handler or hook."""
        return threading.get_ident() in self._runners

    @contextmanager
    def running_here(self) -> Iterator[None]:
        """Within it the calling thread runs handlers or hooks, and nothing else."""
        ident = threading.get_ident()
        if ident in self._runners:
            yield
            return
        self._runners.add(ident)
        try:
            yield
        finally:
            self._runners.discard(ident)

    # Hits ---------------------------------------------------------------------------------

    def hit(self, message: Hit, lease: Leased) -> bytes:
        """Run the handler of a hit whose thread waits; the answer to send. This is the hot path.

        Raises WireError if the message has not the registers that were announced.
        """
        handler = lease.handler
        if handler is None or self.silent:
            return quiet(message.call)
        around = self.around.of(message.registers)
        if isinstance(message, ChildHit):
            around = around.inside(message.process)
        self.served = message
        arrival = Arrival(lease, message.thread, message.registers, time(), around)
        watchdog = self.watchdog
        try:
            with self.turn:
                watchdog.watched = hit = self.hit_kind(arrival)
                verdict = handler(hit)
                watchdog.watched = None
            if verdict is not None and not isinstance(verdict, Verdict):
                return self.unlike_a_verdict(verdict, message, arrival)
        except BaseException as error:  # noqa: BLE001 - a client's exception must not end the connection
            return self.raised(error, message, arrival)
        return self.returned(verdict, message, arrival)

    def unlike_a_verdict(self, value: object, message: Hit, arrival: Arrival) -> bytes:
        """A handler has returned neither None nor a verdict: raises UsageError."""
        del message, arrival
        raise UsageError(f"a handler returned {value!r}; return None or a ubpx.Verdict")

    def returned(self, verdict: Verdict | None, message: Hit, arrival: Arrival) -> bytes:
        """The handler of a hit is done; the answer to send."""
        arrival.registers = None
        watchdog, client = self.watchdog, arrival.lease.client
        if watchdog.alarmed:
            watchdog.calm()
        if client.strikes:
            client.strikes = 0
        if verdict is None and arrival.writes is None:
            return quiet(message.call)
        return pack(Answer(message.call, None if verdict is None else int(verdict), arrival.writes))

    def raised(self, error: BaseException, message: Hit, arrival: Arrival) -> bytes:
        """A handler has raised; an alarm that came too late to interrupt it is taken back. The answer to send."""
        self.watchdog.watched = None
        if self.watchdog.alarmed:
            self.watchdog.calm()
        arrival.registers = None
        arrival.lease.client.failed(error, f"its handler at {arrival.lease.place}")
        return pack(Raised(message.call, _described(error)))

    def notice(self, lease: Leased, thread: int, moment: float, registers: bytes, process: int = 0) -> None:
        """Run the handler of a hit whose thread has gone on; an exception counts in the lease's errors."""
        handler = lease.handler
        if handler is None or self.silent:
            return
        around = self.around.of(registers)
        arrival = Arrival(lease, thread, registers, moment, around.inside(process) if process else around)
        with self.turn:
            try:
                value = handler(self.hit_kind(arrival))
                if value is not None:
                    self.unlike_none(value, arrival)
                    return
            except BaseException as error:  # noqa: BLE001 - a handler's exception must not end the others' hits
                self.notice_raised(error, arrival)
            else:
                self.notice_returned(arrival)

    def unlike_none(self, value: object, arrival: Arrival) -> None:
        """A handler whose thread has gone on has returned something: raises UsageError."""
        del arrival
        raise UsageError(f"a handler returned {value!r}; return None: with mode='notify' its thread has gone on")

    def notice_returned(self, arrival: Arrival) -> None:
        """The handler of a hit whose thread has gone on is done."""
        arrival.registers = None
        arrival.lease.client.strikes = 0

    def notice_raised(self, error: BaseException, arrival: Arrival) -> None:
        """It has raised."""
        arrival.registers = None
        lease = arrival.lease
        lease.count_error()
        lease.client.failed(error, f"its handler at {lease.place}")

    # Hooks --------------------------------------------------------------------------------

    def hook(self, message: Hook, client: Hooked) -> bytes:
        """Call a hook that the broker calls; the answer to send."""
        if self.silent or message.name not in client.hooks:
            return quiet(message.call)
        try:
            verdict = self.call(client, message.name, arguments_of(message))
        except BaseException as error:  # noqa: BLE001 - see ``call``
            return self.hook_raised(error, message)
        return self.hook_returned(verdict, message)

    def call(self, client: Hooked, name: str, arguments: Mapping[str, Any]) -> Verdict | None:
        """Call a hook of a client; what it wants, where it is a stop hook. Raises what the hook has raised, logged.

        A hook that is called once at most is not called again.
        """
        with self.turn:
            if not self.may_call(client, name):
                return None
            try:
                return self.wanted(self.start_hook(client, name, arguments), client, name)
            except BaseException as error:
                client.failed(error, name)
                raise

    def may_call(self, client: Hooked, name: str) -> bool:
        """Whether a hook is to be called: not if it is called once at most, and has been or is just now."""
        if name in ONCE and name in client.told:
            return False
        if name in ONCE:
            client.told.add(name)
        return True

    def start_hook(self, client: Hooked, name: str, arguments: Mapping[str, Any]) -> Any:
        """What the hook returns; raises what it raises."""
        answers = client.hooks[name](**{**arguments, "client": client, "process": client.process})
        return answers[0] if answers else None  # one plugin has one implementation, and None is left out

    def wanted(self, answer: object, client: Hooked, name: str) -> Verdict | None:
        """A hook has returned: what it wants, where it is a stop hook. Raises UsageError for what is no verdict."""
        if name in STOP_HOOKS and answer is not None and not isinstance(answer, Verdict):
            raise UsageError(f"{name} returned {answer!r}; return None or a ubpx.Verdict")
        client.strikes = 0
        return answer if isinstance(answer, Verdict) else None

    def hook_returned(self, verdict: Verdict | None, message: Hook) -> bytes:
        """A hook is done; the answer to send."""
        return quiet(message.call) if verdict is None else pack(Answer(message.call, int(verdict)))

    def hook_raised(self, error: BaseException, message: Hook) -> bytes:
        """A hook has raised, which was logged; the answer to send."""
        return pack(Raised(message.call, _described(error)))


def _described(error: BaseException) -> str:
    """An exception in one line for people elsewhere; whatever it is, it can be sent."""
    try:
        text = f"{type(error).__name__}: {error}"
    except Exception:  # noqa: BLE001 - an exception that cannot even say what it is
        text = type(error).__name__
    return text[:_LONGEST_TEXT].encode(errors="replace").decode()
