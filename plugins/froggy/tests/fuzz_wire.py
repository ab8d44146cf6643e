"""A fuzzer of the protocol: what an enemy may send, for so many seconds.

One file, and longer than others for that: a script that is run by its path, from here and by other rings of tests,
finds no neighbour to import.

    python plugins/froggy/tests/fuzz_wire.py --seconds 60 --seed 7
    python plugins/froggy/tests/fuzz_wire.py --seconds 60 --seed 7 --socket PATH     # a live broker too

Exit status 1, with the seed and what was sent, if a parser raises anything but WireError, refuses a message
that is sound, or takes more memory for it; and if the broker sends what is no message, grows, or does not answer
a sound handshake afterwards. One seed makes the same streams each time.
"""

import argparse
import contextlib
import resource
import socket
import sys
import time
import traceback
import tracemalloc
from collections.abc import Callable, Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any, Final

import msgspec

from ubpx_froggy import messages, wire
from ubpx_froggy.failures import as_error

GROWTH_BYTES: Final = 16 << 20
"""What memory may grow by, after the warm-up."""
WARM_UP: Final = 0.2
"""Of the time: until then memory may grow, for what is loaded and cached once."""
PATIENCE_S: Final = 5.0
"""In which a broker must answer a sound handshake, afterwards."""
_PREFIX: Final = 4

SIDES: Final[tuple[Any, ...]] = (
    messages.FromPeer,
    messages.FromPeerOnChannel,
    messages.FromBroker,
    messages.FromBrokerOnChannel,
)
"""What a parser may be made for."""

NUMBERS: Final = (
    0, 1, -1, 2, 0x7F, 0x80, 0xFF, 0x100, -32, -33, -128, -129, 0xFFFF, 1 << 16, (1 << 31) - 1, 1 << 31, -(1 << 31),
    (1 << 32) - 1, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, -(1 << 63),
)  # fmt: skip
TEXTS: Final = (
    "",
    "a",
    "libc:write",
    "sync",
    "notify",
    "count",
    "BOOST",
    "args",
    "name\n\x1b[2J",
    "\u2028é𝄞",
    "x" * 300,
)


_described: Final = cache(msgspec.inspect.type_info)
_ANY: Final = tuple(map(_described, (int, str, bytes, float, bool, None, list[int], list[str])))


class Maker:
    """Makes sound messages, by what the annotations of their fields say."""

    def __init__(self, random: Random) -> None:
        self.random: Final = random

    def message(self, types: Any) -> Any:
        """One of one of some types."""
        return self.value(_described(types))

    def value(self, kind: msgspec.inspect.Type) -> Any:
        """A value of a type."""
        random = self.random
        made: Any
        match kind:
            case msgspec.inspect.StructType(cls=cls, fields=fields):
                made = cls(**{field.name: self.value(field.type) for field in fields})
            case msgspec.inspect.UnionType(types=types):
                made = self.value(random.choice(types))
            case msgspec.inspect.ListType(item_type=item):
                made = [self.value(item) for _ in range(random.choice((0, 1, 2, 3, 17)))]
            case msgspec.inspect.TupleType(item_types=items):
                made = tuple(map(self.value, items))
            case msgspec.inspect.DictType(key_type=key, value_type=value):
                made = {self.value(key): self.value(value) for _ in range(random.choice((0, 1, 2, 16)))}
            case msgspec.inspect.AnyType():
                made = self.value(random.choice(_ANY))
            case msgspec.inspect.RawType():
                made = msgspec.Raw(msgspec.msgpack.encode(self.value(random.choice(_ANY))))
            case _:
                made = _SCALARS[type(kind)](random)
        return made


_SCALARS: Final[dict[type, Callable[[Random], object]]] = {
    msgspec.inspect.IntType: lambda random: random.choice((*NUMBERS, random.getrandbits(random.randrange(1, 64)))),
    msgspec.inspect.StrType: lambda random: random.choice(TEXTS),
    msgspec.inspect.BytesType: lambda random: random.randbytes(random.choice((16, 16, 16, 0, 1, 300))),
    msgspec.inspect.FloatType: lambda random: random.choice((0.0, -1.5, 1e308, float("inf"), random.random())),
    msgspec.inspect.BoolType: lambda random: random.random() < 0.5,
    msgspec.inspect.NoneType: lambda _: None,
}


class Pool:
    """Sound messages at hand, for they take longer to make than to spoil; it is renewed all the time."""

    _SIZE: Final = 400

    def __init__(self, random: Random) -> None:
        self._random: Final = random
        self._maker: Final = Maker(random)
        self._made: Final = {side: [self._maker.message(side) for _ in range(self._SIZE)] for side in SIDES}

    def some(self, side: Any) -> list[Any]:
        """One to five of those that one side may send."""
        made = self._made[side]
        made[self._random.randrange(self._SIZE)] = self._maker.message(side)
        return self._random.choices(made, k=self._random.randrange(1, 6))


# Mutations: of the body of a message, and of a stream of messages ------------------------------


def flip_bits(random: Random, data: bytearray) -> None:
    for _ in range(random.choice((1, 1, 2, 8))):
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)


def put_bytes(random: Random, data: bytearray) -> None:
    at = random.randrange(len(data))
    data[at : at + random.randrange(4)] = random.randbytes(random.randrange(1, 9))


def truncate(random: Random, data: bytearray) -> None:
    del data[random.randrange(len(data)) :]


def duplicate(random: Random, data: bytearray) -> None:
    begin, end = sorted(random.randrange(len(data) + 1) for _ in range(2))
    data[end:end] = data[begin:end] * random.choice((1, 1, 2, 30))


def cut_out(random: Random, data: bytearray) -> None:
    begin = random.randrange(len(data))
    del data[begin : begin + random.randrange(1, 20)]


def claim_much(random: Random, data: bytearray) -> None:
    """A container, text or binary that says to be long."""
    at, first = random.randrange(len(data)), random.choice(b"\xc4\xc5\xc6\xc7\xc8\xc9\xd9\xda\xdb\xdc\xdd\xde\xdf")
    size = random.choice((b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\1\0\0", b"\0\xff\xff\xff"))
    data[at : at + 5] = bytes([first]) + size[: random.choice((1, 2, 4))]


def nest(random: Random, data: bytearray) -> None:
    at, opening = random.randrange(len(data)), random.choice((b"\x91", b"\x81\xc0", b"\x92\xc0", b"\x81", b"\x90"))
    data[at:at] = opening * random.choice((1, 7, 8, 9, 1000, 5000))


def any_first_byte(random: Random, data: bytearray) -> None:
    data[random.randrange(len(data))] = random.choice((random.randrange(0x80, 0x100), 0xC1))


def lie_about_length(random: Random, data: bytearray) -> None:
    """Of a whole stream: its first length."""
    limits = (wire.HELLO_BYTES, wire.REQUEST_BYTES, wire.REPLY_BYTES)
    sizes = (0, 1, *limits, *(each + 1 for each in limits), 1 << 31, (1 << 32) - 1, len(data), len(data) + 1)
    data[:_PREFIX] = random.choice(sizes).to_bytes(_PREFIX, "little")


Mutation = Callable[[Random, bytearray], None]
OF_ANY: Final[tuple[Mutation, ...]] = (
    flip_bits, put_bytes, truncate, duplicate, cut_out, claim_much, nest, any_first_byte,
)  # fmt: skip
OF_STREAM: Final[tuple[Mutation, ...]] = (*OF_ANY, lie_about_length)


def mutated(random: Random, data: bytes, mutations: tuple[Mutation, ...]) -> bytes:
    """It, after one to three mutations."""
    result = bytearray(data)
    for _ in range(random.randrange(1, 4)):
        if result:
            random.choice(mutations)(random, result)
    return bytes(result)


def framed(body: bytes) -> bytes:
    return len(body).to_bytes(_PREFIX, "little") + body


def hostile_stream(random: Random, frames: list[bytes]) -> bytes:
    """Sound messages made unsound: in wrong order, in their bodies, spliced, or anywhere in the stream."""
    way = random.randrange(4)
    if way == 0:
        random.shuffle(frames)
        return b"".join(frames)
    if way == 1:
        chosen = random.randrange(len(frames))
        frames[chosen] = framed(mutated(random, frames[chosen][_PREFIX:], OF_ANY))
        return b"".join(frames)
    if way == 2:
        one, other = random.choice(frames), random.choice(frames)
        return one[: random.randrange(len(one) + 1)] + other[random.randrange(len(other) + 1) :]
    return mutated(random, b"".join(frames), OF_STREAM)


def pieces(random: Random, data: bytes) -> Iterator[bytes]:
    """The stream as it may arrive."""
    cuts = sorted(random.randrange(len(data) + 1) for _ in range(random.choice((0, 1, 3, 10))))
    yield from (data[begin:end] for begin, end in pairwise((0, *cuts, len(data))))


# Without a socket ------------------------------------------------------------------------------


class Found(Exception):
    """What must not be."""


class Parsers:
    """Framer and Parser under fire."""

    def __init__(self, random: Random) -> None:
        self._random: Final = random
        self._pool: Final = Pool(random)
        self._parsers: Final = {side: wire.Parser(side) for side in SIDES}
        self.parsed = self.refused = 0

    def round(self) -> None:
        """One stream. Raises Found."""
        random = self._random
        side = random.choice(SIDES)
        sound = self._pool.some(side)
        frames = [wire.pack(message) for message in sound]
        spoilt = random.random() < 0.9
        stream = hostile_stream(random, frames) if spoilt else b"".join(frames)
        try:
            if spoilt:
                self._take(stream, self._parsers[random.choice((side, side, *SIDES))])
            else:
                self._take_sound(sound, stream, self._parsers[side])
        except Exception as error:
            raise Found(f"{type(error).__name__} ({error}) at {stream[:2000].hex()}") from error

    def _take_sound(self, sound: list[Any], stream: bytes, parser: wire.Parser) -> None:
        framer, got = wire.Framer(wire.REPLY_BYTES), []
        for piece in pieces(self._random, stream):
            got += [parser.parse(body) for body in framer.feed(piece)]
        if got != sound or framer.is_inside:
            raise Found(f"{sound} came as {got}")

    def _take(self, stream: bytes, parser: wire.Parser) -> None:
        framer = wire.Framer(self._random.choice((wire.HELLO_BYTES, wire.REQUEST_BYTES, wire.REPLY_BYTES)))
        try:
            for piece in pieces(self._random, stream):
                for body in framer.feed(piece):
                    message = parser.parse(body)
                    self.parsed += 1
                    if isinstance(message, messages.Failed):
                        str(as_error(message.failure))
        except wire.WireError:
            self.refused += 1


class Memory:
    """What this process takes, compared with the end of the warm-up."""

    def __init__(self) -> None:
        self._was = 0
        self._traced = 0

    def begin(self) -> None:
        """The warm-up is over."""
        self._was = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        self._traced = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()

    def check(self) -> None:
        """Raises Found."""
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - self._was) << 10
        peak = tracemalloc.get_traced_memory()[1] - self._traced
        if max(grown, peak) > GROWTH_BYTES:
            raise Found(f"memory has grown by {grown} bytes, objects by {peak} at their peak")


# Over a socket ---------------------------------------------------------------------------------


class Peer:
    """One connection to a live broker."""

    _parsers: Final = (wire.Parser(messages.FromBroker), wire.Parser(messages.FromBrokerOnChannel))

    def __init__(self, path: str) -> None:
        self._socket: Final = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(PATIENCE_S)
        self._framer: Final = wire.Framer(wire.REPLY_BYTES)
        self.parser = self._parsers[0]
        try:
            self._socket.connect(path)
        except BaseException:
            self._socket.close()
            raise

    def send(self, data: bytes) -> None:
        """As much of it as the broker takes."""
        with contextlib.suppress(OSError):
            self._socket.sendall(data)

    def receive(self, timeout: float = PATIENCE_S) -> list[Any]:
        """What has come; nothing if the broker has closed, or sends nothing in time. Raises WireError, OSError."""
        self._socket.settimeout(timeout)
        try:
            data = self._socket.recv(1 << 16)
        except (BlockingIOError, TimeoutError, ConnectionResetError):
            return []
        finally:
            self._socket.settimeout(PATIENCE_S)
        return [self.parser.parse(body) for body in self._framer.feed(data)]

    def greet(self, channel: bytes | None = None) -> messages.Welcome | None:
        """A sound handshake; None if there is no sound answer."""
        self.parser = self._parsers[channel is not None]
        self.send(wire.pack(messages.Hello([wire.PROTOCOL], "fuzz", channel)))
        answer = next(iter(self.receive()), None)
        return answer if isinstance(answer, messages.Welcome) else None

    def handles(self, *, read_only: bool, name: str) -> dict[str, bytes]:
        """Of the only target and, where that may be changed, of a client there; by the field that they are for."""
        found = {}
        target = self._ask(messages.Join(read_only=read_only), messages.TargetInfo)
        if target is not None:
            found["target"] = target.target
            client = self._ask(messages.OpenClient(target.target, name), messages.ClientInfo)
            if client is not None:
                found["client"] = client.client
        return found

    def _ask(self, call: Any, kind: Any) -> Any:
        self.send(wire.pack(messages.Ask(1, call)))
        answer = next(iter(self.receive()), None)
        return msgspec.msgpack.decode(answer.value, type=kind) if isinstance(answer, messages.Reply) else None

    def close(self) -> None:
        """Suddenly."""
        self._socket.close()


class Broker:
    """A live broker under fire, from several connections at a time."""

    _OPEN: Final = 8

    def __init__(self, random: Random, path: str) -> None:
        self._random: Final = random
        self._pool: Final = Pool(random)
        self._path: Final = path
        self._peers: Final[list[Peer]] = []
        self.pid = self.check_answers()
        self._was = self._peak()

    def round(self) -> None:
        """One connection's life, or some of it. Raises Found."""
        random = self._random
        if len(self._peers) >= self._OPEN:
            self._peers.pop(random.randrange(self._OPEN)).close()
        peer = self._connect()
        if peer is None:
            return
        self._peers.append(peer)
        try:
            stream = self._stream(peer)
            for piece in pieces(random, stream):
                peer.send(piece)
            peer.receive(random.choice((0.0, 0.0, 0.01)))
        except wire.WireError as error:
            raise Found(f"the broker itself sent what is no message: {error}") from error
        if random.random() < 0.5:
            self._peers.remove(peer)
            peer.close()

    def _connect(self) -> Peer | None:
        try:
            return Peer(self._path)
        except (BlockingIOError, TimeoutError, ConnectionResetError):
            return None  # it has no place for one more just now; check_answers() insists
        except OSError as error:
            raise Found(f"cannot connect: {error}") from error

    def _stream(self, peer: Peer) -> bytes:
        """What this peer says after as much of a sound beginning as it likes."""
        random, handles = self._random, dict[str, bytes]()
        if random.random() < 0.8:
            welcome = peer.greet()
            if welcome is not None and random.random() < 0.3:
                with contextlib.suppress(OSError):
                    self._peers.append(Peer(self._path))
                    self._peers[-1].greet(welcome.channel)
            if welcome is not None and random.random() < 0.7:
                handles = peer.handles(read_only=random.random() < 0.3, name=random.choice(TEXTS))
        side = random.choice((messages.FromPeer, messages.FromPeer, messages.FromPeerOnChannel, *SIDES))
        frames = [wire.pack(harmless(each, handles)) for each in self._pool.some(side)]
        return hostile_stream(random, frames) if random.random() < 0.7 else b"".join(frames)

    def begin(self) -> None:
        """The warm-up is over."""
        self._was = self._peak()

    def check(self) -> None:
        """Raises Found unless the broker answers, and is no bigger than it was."""
        while self._peers:
            self._peers.pop().close()
        self.check_answers()
        grown = self._peak() - self._was
        if grown > GROWTH_BYTES:
            raise Found(f"the broker has grown by {grown} bytes")

    def check_answers(self) -> int:
        """Its pid. Raises Found if a sound handshake gets no answer in time."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError, wire.WireError), contextlib.closing(Peer(self._path)) as peer:
                welcome = peer.greet()
                if welcome is not None:
                    return welcome.broker_pid
            time.sleep(0.05)  # it may have all the connections that it wants until it notices that some are closed
        raise Found(f"the broker does not answer a sound handshake within {PATIENCE_S} s")

    def _peak(self) -> int:
        """The most memory that the broker has had, in bytes."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) << 10
        raise Found(f"the broker, {self.pid}, has ended")


def harmless(message: Any, handles: dict[str, bytes]) -> Any:
    """The same message, aimed at what is there; but no attach, which might find some pid's process."""
    if not isinstance(message, messages.Ask):
        return message
    call = message.call
    if isinstance(call, messages.Attach):
        call = messages.Join(call.pid, read_only=True)
    known = {name: handle for name, handle in handles.items() if hasattr(call, name)}
    return messages.Ask(message.id, msgspec.structs.replace(call, **known))


def _run(seconds: float, parsers: Parsers, broker: Broker | None) -> int:
    """The rounds that there was time for. Raises Found."""
    memory = Memory()
    start, rounds, warm = time.monotonic(), 0, False
    while (passed := time.monotonic() - start) < seconds:
        if not warm and passed > seconds * WARM_UP:
            warm = True
            memory.begin()
            if broker is not None:
                broker.begin()
        parsers.round()
        if broker is not None:
            broker.round()
        rounds += 1
    memory.check()
    if broker is not None:
        broker.check()
    return rounds


def main(seconds: float, seed: int, path: str | None = None) -> int:
    """The exit status. ``path`` is the socket of a live broker."""
    parsers = Parsers(Random(seed))
    was_tracing = tracemalloc.is_tracing()
    tracemalloc.start()
    try:
        rounds = _run(seconds, parsers, None if path is None else Broker(Random(seed + 1), path))
    except Found as found:
        traceback.print_exception(found)
        sys.stderr.write(f"fuzz_wire: failed with --seed {seed}\n")
        return 1
    finally:
        if not was_tracing:
            tracemalloc.stop()
    sys.stderr.write(
        f"fuzz_wire: --seed {seed}: {rounds} streams, {parsers.parsed} messages parsed, {parsers.refused} refused\n"
    )
    return 0


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--seconds", type=float, default=60)
    arguments.add_argument("--seed", type=int, default=time.time_ns() & 0xFFFF_FFFF)
    arguments.add_argument("--socket")
    given = arguments.parse_args()
    sys.exit(main(given.seconds, given.seed, given.socket))
