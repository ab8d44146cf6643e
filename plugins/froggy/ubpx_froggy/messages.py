"""Every message of the protocol, typed: one page, although a long one, for the protocol is read and checked as a whole.

docs/reference/protocol.md says what each message means, and is compared with all of this page.

On the wire a message is an array: its tag, then its fields in the order of this page. Fields that are left
out at the end have their defaults, so a field can be added there without a new version; the values that
a reply carries (``...Info``) are arrays without a tag.
"""

from typing import Any, Final

import msgspec

Handle = bytes
"""What a broker gives out for a target, client, lease or hold: 16 bytes that nobody can guess, good on one
connection alone."""

Registers = dict[str, int]
"""By name, unsigned 64-bit values."""


class _Message(msgspec.Struct, array_like=True, frozen=True): ...


class _Info(msgspec.Struct, array_like=True, frozen=True): ...


# How a connection begins ----------------------------------------------------------------------


class Hello(_Message, tag="hello", frozen=True):
    """The first message on each connection."""

    versions: list[int]
    """Those that the peer speaks."""
    software: str
    """For people."""
    channel: Handle | None = None
    """Of ``Welcome``: makes this the channel of that connection."""


class Welcome(_Message, tag="welcome", frozen=True):
    """The answer to it."""

    version: int
    """The highest that both speak; everything that follows is of it."""
    software: str
    broker_pid: int
    channel: Handle
    """To name in the ``Hello`` of this connection's channel; on a channel it is empty."""


class Refused(_Message, tag="refused", frozen=True):
    """The other answer to it; the broker closes the connection."""

    reason: str


# What a peer asks of a broker -----------------------------------------------------------------


class Overview(_Message, tag="overview", frozen=True):
    """Who holds what, as far as the peer may see it. Gives ``list[TargetOverview]``."""


class Join(_Message, tag="join", frozen=True):
    """Use a target of the broker's. Gives ``TargetInfo``."""

    pid: int | None = None
    """None: the only one."""
    read_only: bool = False


class Attach(_Message, tag="attach", frozen=True):
    """Join the target; if the broker has none of this pid, it attaches to the process. Gives ``TargetInfo``."""

    pid: int
    slots: str = "auto"
    read_only: bool = False
    follow: str = "exec"


class Leave(_Message, tag="leave", frozen=True):
    """Close all clients of this connection on the target, and use it no more. Gives nil."""

    target: Handle


class Threads(_Message, tag="threads", frozen=True):
    """Gives ``list[int]``: tids."""

    target: Handle


class ReadRegisters(_Message, tag="read_registers", frozen=True):
    """Of a stopped thread. Gives ``Registers``."""

    target: Handle
    thread: int


class ReadMemory(_Message, tag="read_memory", frozen=True):
    """Gives bytes, at most ``MEMORY_BYTES`` of them."""

    target: Handle
    address: int
    size: int
    process: int = 0
    """The pid of a followed child, whose memory is meant then."""


class WriteMemory(_Message, tag="write_memory", frozen=True):
    """Gives nil."""

    target: Handle
    address: int
    data: bytes
    through_protection: bool = False
    process: int = 0
    """As in ``ReadMemory``."""


class Mappings(_Message, tag="mappings", frozen=True):
    """Gives ``list[MappingInfo]``."""

    target: Handle


class Clients(_Message, tag="clients", frozen=True):
    """Gives ``list[NamedClient]``: everybody's, in the order of joining."""

    target: Handle


class Probepoints(_Message, tag="probepoints", frozen=True):
    """Gives ``list[ProbepointInfo]``: everybody's, by address."""

    target: Handle
    address: int | None = None
    """None: all."""


class Holds(_Message, tag="holds", frozen=True):
    """Gives ``list[HoldInfo]``: everybody's, those in followed children included.

    But for those of the peer's own that stand for answers that it still owes: they end with these.
    """

    target: Handle


class Stops(_Message, tag="stops", frozen=True):
    """Gives int: how often threads have stopped so far."""

    target: Handle


class Slots(_Message, tag="slots", frozen=True):
    """Gives ``SlotUseInfo``."""

    target: Handle


class Resume(_Message, tag="resume", frozen=True):
    """Start a program that stands at its entry point. Gives nil."""

    target: Handle


class Wait(_Message, tag="wait", frozen=True):
    """Gives the exit status (negative: the signal), or nil when ``timeout`` seconds have passed.

    Other requests of the connection are answered meanwhile.
    """

    target: Handle
    timeout: float | None = None


class OpenClient(_Message, tag="open_client", frozen=True):
    """Gives ``ClientInfo``."""

    target: Handle
    name: str
    priority: int = 0
    hooks: list[str] = []
    """Those that the peer wants to be told of and asked, by channel."""


class CloseClient(_Message, tag="close_client", frozen=True):
    """Gives nil. Persistent leases stay."""

    client: Handle


class Probe(_Message, tag="probe", frozen=True):
    """Gives ``LeaseInfo``."""

    client: Handle
    place: str | int
    mode: str = "sync"
    """``sync``: a ``Hit`` on the channel, and the thread waits for its answer; ``notify``: in ``Hits``; ``count``."""
    persistent: bool = False
    strategy: str | None = None
    exclusive: bool = False
    priority: int | None = None
    assume_boundary: bool = False
    defer: bool = True
    once: bool = False


class ProbeMany(_Message, tag="probe_many", frozen=True):
    """Gives ``GroupInfo``."""

    client: Handle
    places: str | list[str | int]
    mode: str = "sync"
    once: bool = False
    strategy: str | None = None
    exclusive: bool = False
    priority: int | None = None
    assume_boundary: bool = False
    skip_refused: bool | None = None


class Watch(_Message, tag="watch", frozen=True):
    """Gives ``LeaseInfo``."""

    client: Handle
    address: int
    mode: str = "sync"
    size: int = 8
    access: str = "WRITE"
    priority: int | None = None


class Leases(_Message, tag="leases", frozen=True):
    """Gives ``list[LeaseInfo]``: the client's that are armed or pending, the oldest first."""

    client: Handle


class ReadLeases(_Message, tag="read_leases", frozen=True):
    """Gives ``list[LeaseInfo]``, one for each; those that have ended too."""

    leases: list[Handle]


class Release(_Message, tag="release", frozen=True):
    """Gives ``list[LeaseInfo]`` with the last counts, one for each."""

    leases: list[Handle]


class TakeHold(_Message, tag="take_hold", frozen=True):
    """Gives ``HoldInfo``; what is held has stopped then."""

    client: Handle
    thread: int | None = None


class ReleaseHold(_Message, tag="release_hold", frozen=True):
    """Gives nil."""

    hold: Handle
    registers: Registers | None = None
    signal: int | None = None


class Step(_Message, tag="step", frozen=True):
    """Gives nil."""

    client: Handle
    thread: int
    registers: Registers | None = None
    signal: int | None = None


class Catch(_Message, tag="catch", frozen=True):
    """Gives nil."""

    client: Handle
    what: str
    """``signals`` or ``syscalls``."""
    wanted: list[int | str] | None = None
    """None: all."""


Call = (
    Overview | Join | Attach | Leave | Threads | ReadRegisters | ReadMemory | WriteMemory | Mappings | Clients
    | Probepoints | Holds | Stops | Slots | Resume | Wait | OpenClient | CloseClient | Probe | ProbeMany | Watch
    | Leases | ReadLeases | Release | TakeHold | ReleaseHold | Step | Catch
)  # fmt: skip


class Ask(_Message, tag="ask", frozen=True):
    """A request: on the connection, or on the channel by a handler while it runs."""

    id: int
    """Chosen by the peer; its reply has it."""
    call: Call


class Failure(_Info, frozen=True):
    """An error of ubpx's tree."""

    name: str
    """The class's."""
    message: str
    data: dict[str, Any] = {}
    """What the error carries, as far as it is text, numbers, bytes, or lists of them."""


class Reply(_Message, tag="reply", frozen=True):
    """It was done."""

    id: int
    value: msgspec.Raw = msgspec.Raw(b"\xc0")


class Failed(_Message, tag="failed", frozen=True):
    """It was not done."""

    id: int
    failure: Failure


class Hits(_Message, tag="hits", frozen=True):
    """Hits of leases in mode ``notify``, in the order of arrival; the program did not wait for it."""

    records: list[tuple[Handle, int, float, bytes]]
    """Lease, tid, time of the arrival (seconds since 1970 UTC), registers (see ``Hit``)."""
    dropped: dict[Handle, int] = {}
    """By lease: how many hits were left out so far because the peer was slow; those that have changed."""
    processes: dict[int, int] = {}
    """By tid: the pid of the followed child whose hits they are; where none is told they are the target's own."""


class Evicted(_Message, tag="evicted", frozen=True):
    """The last message on a connection: the broker has taken everything back, and closes it."""

    reason: str


# What travels on a channel --------------------------------------------------------------------


class Hit(_Message, tag="hit", frozen=True):
    """A thread has arrived, and waits for the answer."""

    call: int
    lease: Handle
    thread: int
    registers: bytes
    """64-bit words, little-endian, in the order of ``TargetInfo.registers``, or of that one of ``TargetInfo.others``
    which has as many; the PC is the probed address.
    """


class ChildHit(Hit, tag="child_hit", frozen=True):
    """The same in a followed child. The lease is the one that was asked for in the target."""

    call: int
    lease: Handle
    thread: int
    registers: bytes
    process: int
    """The child's pid."""


class Hook(_Message, tag="hook", frozen=True):
    """A hook of a client is called; where it is a stop hook, the thread waits for the answer."""

    call: int
    client: Handle
    name: str
    arguments: dict[str, Any]
    """Without ``client`` and ``process``."""


class Answer(_Message, tag="answer", frozen=True):
    """What the handler or hook has returned."""

    call: int
    verdict: int | None = None
    registers: Registers | None = None
    """What the handler has written."""


class Raised(_Message, tag="raised", frozen=True):
    """The handler or hook has raised an exception."""

    call: int
    error: str
    """Its class and text, for people."""


# What replies carry ---------------------------------------------------------------------------


class LayoutInfo(_Info, frozen=True):
    """The registers of a hit, as a program of one architecture has them."""

    architecture: str
    """``x86_64`` or ``i386``."""
    registers: list[str]
    """The names, in the order of the words of a hit."""
    pc: str
    """Which of them is the program counter."""


class TargetInfo(_Info, frozen=True):
    """A target that is used."""

    target: Handle
    pid: int
    architecture: str
    """What the program of the moment is made for: ``x86_64`` or ``i386``."""
    registers: list[str]
    """The names, in the order of the words of a hit."""
    pc: str
    """Which of them is the program counter."""
    deadline_s: float
    """For how long a peer that does not answer is waited for."""
    spawned: bool
    """Whether the broker has started the program."""
    others: list[LayoutInfo] = []
    """What hits have after an exec of a program of another architecture. No two have the same number of registers."""


class ClientInfo(_Info, frozen=True):
    """A client that was opened."""

    client: Handle
    leases: list["LeaseInfo"]
    """The persistent ones that a former client of the same name and user has left."""


class WatchpointInfo(_Info, frozen=True):
    """A hardware debug register that is leased."""

    address: int
    size: int
    access: str
    clients: list[str]
    """In handler order."""


class LeaseInfo(_Info, frozen=True):
    """A lease as it is now."""

    lease: Handle
    spec: str | None
    address: int | None
    state: str
    hits: int
    errors: int
    dropped: int
    mode: str
    persistent: bool
    priority: int
    exclusive: bool
    forced: str | None
    """The strategy that was insisted on."""
    obstacle: Failure | None
    """While it is PENDING: why it could not be armed."""
    watchpoint: WatchpointInfo | None = None
    """Where it is a lease of a debug register."""
    family: list[int] = []
    """``hits`` and ``errors`` with those of followed children; empty where there was none."""


class RefusalInfo(_Info, frozen=True):
    """A place that was left out."""

    name: str
    failure: Failure


class GroupInfo(_Info, frozen=True):
    """What ``ProbeMany`` gave."""

    leases: list[LeaseInfo]
    refused: list[RefusalInfo]


class NamedClient(_Info, frozen=True):
    """Anybody's client."""

    name: str
    priority: int
    state: str
    reason: str


class ProbepointInfo(_Info, frozen=True):
    """A probepoint."""

    address: int
    strategy: str
    clients: list[str]
    slot: int | None
    why: str


class HoldInfo(_Info, frozen=True):
    """A hold; ``hold`` is nil for one of another connection."""

    hold: Handle | None
    owner: str
    process: int
    thread: int | None


class MappingInfo(_Info, frozen=True):
    """One line of /proc/PID/maps."""

    start: int
    end: int
    permissions: str
    offset: int
    device: str
    inode: int
    path: str


class ClientOverview(_Info, frozen=True):
    """A client, whoever's, for ``ubpx list``."""

    name: str
    state: str
    """LIVE, QUARANTINED, or ABSENT: it has left, and its persistent leases are here."""
    pid: int
    """Of its process, as that said; 0 for one of the broker's own."""
    uid: int
    leases: int


class SlotUseInfo(_Info, frozen=True):
    """How many slots of a program are what."""

    leased: int
    retired: int
    """Nobody leases them, and a thread may still be in one."""
    free: int
    jump_pages: int = 0


class LeaseOverview(_Info, frozen=True):
    """A lease, for ``ubpx list``."""

    client: str
    spec: str | None
    hits: int


class ProbepointOverview(_Info, frozen=True):
    """A probepoint, for ``ubpx list``."""

    address: int
    strategy: str
    leases: list[LeaseOverview]


class HoldOverview(_Info, frozen=True):
    """A hold, for ``ubpx list``."""

    client: str
    thread: int | None


class TargetOverview(_Info, frozen=True):
    """A target, for ``ubpx list``."""

    pid: int
    command: str
    clients: list[ClientOverview]
    probepoints: list[ProbepointOverview]
    holds: list[HoldOverview]
    slots: SlotUseInfo | None = None
    """None where the broker does not say."""


def as_raw(value: object) -> msgspec.Raw:
    """A value, as a reply carries it."""
    return msgspec.Raw(msgspec.msgpack.encode(value))


MEMORY_BYTES: Final = 1 << 19
"""So many bytes of memory travel in one message."""

FromPeer = Hello | Ask
"""What a broker takes on a connection."""

FromPeerOnChannel = Hello | Ask | Answer | Raised
"""What a broker takes on a channel."""

FromBroker = Welcome | Refused | Reply | Failed | Hits | Evicted
"""What a peer takes on a connection."""

FromBrokerOnChannel = Welcome | Refused | Hit | ChildHit | Hook | Reply | Failed
"""What a peer takes on a channel."""
