"""A remote client's seat in the broker: the client that acts for it, and its leases.

A seat outlives its connection while it has persistent leases; it is *absent* then, and they only count.
"""

import contextlib
import threading
from collections.abc import Iterable, Sequence
from time import monotonic
from typing import Final, Protocol

from ubpx import Client, Hold, Target, UbpxError, UsageError, Verdict
from ubpx_froggy.broker.access import Peer
from ubpx_froggy.broker.channel import Channel
from ubpx_froggy.broker.entries import Entry, EntryGroup, new_handle, secret_of
from ubpx_froggy.broker.handlers import HookCaller, verdict_of
from ubpx_froggy.broker.hooks import ATTACHED, hooks_object
from ubpx_froggy.broker.notices import Notices
from ubpx_froggy.messages import Answer, Handle, LeaseInfo, Raised

STRIKES: Final = 3
"""As in an in-process client: so many exceptions in a row are one too many."""
_ATTACHING_S: Final = 0.1


class Guest(Protocol):
    """The connection whose client this is."""

    @property
    def peer(self) -> Peer:
        """Who is at the other end."""
        ...

    @property
    def channel(self) -> Channel | None:
        """None until the peer has opened one."""
        ...

    @property
    def notices(self) -> Notices:
        """Its queue."""
        ...

    @property
    def gone(self) -> bool:
        """Whether the connection has ended."""
        ...

    def note_stop(self, seat: "Seat") -> None:
        """A client of the connection keeps something stopped from now on."""
        ...


def member_with(target: Target, tid: int) -> Target:
    """Of the target and its followed children the one whose thread it is; the target itself if it is nobody's."""
    for each in target.family:
        with contextlib.suppress(UbpxError):  # it is left just now
            if tid in each.threads():
                return each
    return target


class Seat:
    """One remote client on one target. Owned by the hosted target."""

    def __init__(
        self, name: str, uid: int, target: Target, guest: Guest, *, priority: int, hooks: Sequence[str]
    ) -> None:
        self.name: Final = name
        self.priority: Final = priority
        self.uid: Final = uid
        """The user whose client it is; nobody else may come back to it."""
        self.hooks: Final = tuple(hooks)
        self.handle = new_handle()
        self.guest: Guest | None = guest
        self.entries: Final[dict[Handle, Entry]] = {}
        """Those of its leases that are made, by handle."""
        self.groups: Final[dict[bytes, EntryGroup]] = {}
        """By the secret that their handles have."""
        self.closing = False
        """Whether it is being given up just now; guarded by the hosted target's lock."""
        self.held_since: float | None = None
        """When it began to keep something stopped, monotonic seconds; None: it does not, as far as we know."""
        self.pid: Final = target.pid
        self._target: Final = target
        self._releasing: Final = threading.Lock()
        self._taken: Final[list[Hold]] = []
        """Holds that the client has asked for, as opposed to those that stand for late answers."""
        self._standing: Final[list[int]] = []
        """The threads of holds that stand for late answers, each as often as it has such holds."""
        self.strikes = 0
        """Exceptions since its last success, late ones included."""
        self._client: Client | None = None

    def take(self) -> None:
        """Join the target; raises what ``target.client`` does."""
        caller = HookCaller(self, lambda: self.handle, told_first=ATTACHED in self.hooks)
        hooks = hooks_object(self.hooks, caller) if self.hooks else None
        self._client = self._target.client(self.name, priority=self.priority, hooks=hooks)
        channel = self.channel
        if channel is not None and not channel.is_serving_here:
            # As in-process: it has been told when it has joined; but others' requests wait behind this.
            caller.attached.wait(min(channel.deadline_s, _ATTACHING_S))

    @property
    def client(self) -> Client:
        """The client that acts for it; raises UsageError while a hook of its is called that comes before it is."""
        if self._client is None:
            self._client = next((each for each in self._target.clients() if each.name == self.name), None)
        if self._client is None:
            raise UsageError(f"client {self.name!r} has not joined yet; wait for the reply")
        return self._client

    @property
    def channel(self) -> Channel | None:
        """None while the client is absent."""
        guest = self.guest
        return guest.channel if guest is not None else None

    @property
    def notices(self) -> Notices | None:
        """None while the client is absent."""
        guest = self.guest
        return guest.notices if guest is not None else None

    # Its leases -----------------------------------------------------------------------------

    def alive(self) -> list[Entry]:
        """Those that are armed or pending, the oldest first."""
        for group in tuple(self.groups.values()):
            group.make_all()
        return self._alive()

    def _alive(self) -> list[Entry]:
        """Those of them that are made."""
        return [entry for entry in tuple(self.entries.values()) if entry.is_alive]

    def left_behind(self, place: str | int) -> Entry | None:
        """The persistent one of this place that the client left when it was here before."""
        return next((each for each in self._alive() if each.left and each.place == place), None)

    @property
    def unmade(self) -> int:
        """How many are armed of which nothing is made."""
        return sum(group.unmade for group in tuple(self.groups.values()))

    def make(self, handles: Iterable[Handle]) -> None:
        """What is to be made of those that handles name, in one go."""
        by_secret: dict[bytes, list[Handle]] = {}
        for handle in handles:
            if handle not in self.entries and secret_of(handle) in self.groups:
                by_secret.setdefault(secret_of(handle), []).append(handle)
        for secret, several in by_secret.items():
            self.groups[secret].make(several)

    def entry(self, handle: Handle) -> Entry | None:
        """The one that a handle names, made if it is not yet."""
        self.make((handle,))
        return self.entries.get(handle)

    def info(self, handle: Handle) -> LeaseInfo | None:
        """The same, told of."""
        entry, group = self.entries.get(handle), self.groups.get(secret_of(handle))
        if entry is not None:
            return entry.info()
        return None if group is None else group.info(handle)

    def forget(self, entry: Entry) -> None:
        """It has ended, and its handle means nothing any more."""
        self.entries.pop(entry.handle, None)
        if entry.group is not None and entry.group.end(entry.handle):
            self.groups.pop(entry.group.secret, None)

    # What its handlers do -------------------------------------------------------------------

    def keeps_waiting(self, tid: int) -> None:
        """This thread is held until a late answer comes."""
        self._standing.append(tid)
        self.note_stop()

    def note_stop(self) -> None:
        """It keeps something stopped from now on."""
        if self.held_since is None and self.guest is not None:
            self.held_since = monotonic()
            self.guest.note_stop(self)

    def failed(self, error: str, where: str) -> None:
        """A handler or hook has raised; one time too many, and the client is quarantined.

        The target's client counts as well, but it does not see late answers, and takes what only counts or
        queues hits for a success.
        """
        self.strikes += 1
        if self.strikes >= STRIKES:
            kind = error.partition(":")[0]
            self.client.expel(f"{STRIKES} exceptions in a row, the last one {kind} in {where}")

    def settle(self, entry: Entry | None, tid: int, answer: Answer | Raised) -> None:
        """A late answer: what it says is done, and the hold that stood for it ends. In a worker thread."""
        with contextlib.suppress(UbpxError):  # the thread, or the program, has gone meanwhile
            if isinstance(answer, Answer):
                mistake = self._mistake(tid, answer)
                if mistake is not None:
                    answer = Raised(answer.call, f"UsageError: {mistake}")
            if isinstance(answer, Raised):
                if entry is not None:  # before it may be quarantined: who sees that finds all errors counted
                    entry.late_errors += 1
                self.failed(answer.error, "a hook" if entry is None else entry.described())
                self._release(tid)
                return
            self.strikes = 0  # before the thread runs, and may arrive again
            self._obey(tid, answer)

    def _mistake(self, tid: int, answer: Answer) -> str | None:
        """What is wrong with an answer; raises UsageError if the thread is gone."""
        try:
            verdict_of(answer)
        except UsageError as error:
            return str(error)
        known = self._home_of(tid).registers(tid) if answer.registers else {}
        unknown = [name for name in answer.registers or () if name not in known]
        return f"no register is named {unknown[0]!r}; there are {', '.join(known)}" if unknown else None

    def _obey(self, tid: int, answer: Answer) -> None:
        try:
            verdict = verdict_of(answer)
            registers = answer.registers or {}
            if verdict is Verdict.STEP:
                self.client_of(tid).step(tid, registers)
                registers = {}
            elif verdict is Verdict.HOLD_PROCESS:
                self._hold(self.client_of(tid), None)
            elif verdict is Verdict.HOLD:
                self.take_hold(tid)
            self._release(tid, registers)
        except UsageError:
            self._release(tid)
            raise

    def _release(self, tid: int, registers: dict[str, int] | None = None) -> None:
        """End one hold of the thread that stood for a late answer: one that the client has not taken itself."""
        with self._releasing:  # two answers about one thread end two holds of it
            try:
                hold = next(iter(self._untaken(tid, self._home_of(tid).holds())), None)
                if hold is not None:
                    hold.release(registers or None)
            finally:
                self._standing.remove(tid)

    def _untaken(self, tid: int, holds: Iterable[Hold]) -> list[Hold]:
        """Its holds of a thread that stand for late answers, or that verdicts took; the oldest first."""
        mine = [each for each in holds if each.owner == self.name and each.thread == tid]
        return [each for each in mine if not any(each is taken for taken in self._taken)]

    def stands_for_an_answer(self, hold: Hold, holds: Iterable[Hold]) -> bool:
        """Whether of all ``holds`` there were this one stands for a late answer, and is not the client's to release.

        For a hold that has ended meanwhile as well: who asks need not hear of it.
        """
        if hold.thread is None:
            return False
        standing = self._untaken(hold.thread, holds)[: self._standing.count(hold.thread)]
        return hold.released or any(each is hold for each in standing)

    def take_hold(self, thread: int | None) -> Hold:
        """A hold that the client asks for; raises what ``client.hold`` does, UsageError if it has left meanwhile."""
        return self._hold(self.client if thread is None else self.client_of(thread), thread)

    def _home_of(self, tid: int) -> Target:
        """The target whose thread it is: ours, or that of a followed child."""
        return member_with(self._target, tid)

    def client_of(self, tid: int) -> Client:
        """The client that acts for it where that thread is: its own, or its heir in a followed child."""
        home = self._home_of(tid)
        heirs = [] if home is self._target else [each for each in home.clients() if each.name == self.name]
        return heirs[0] if heirs else self.client

    def _hold(self, client: Client, thread: int | None) -> Hold:
        hold = client.hold(thread)
        self._taken[:] = [*(each for each in self._taken if not each.released), hold]
        if self.guest is None:  # who has swept its holds may have come before this one
            hold.release()
            raise UsageError(f"client {self.name!r} has left; open it again")
        return hold

    # Coming and going -------------------------------------------------------------------------

    def leave(self) -> bool:
        """The client goes, its persistent leases stay; False: there is nothing for it to come back to.

        From a handler it ends after the hit, as in-process: what of that hit is still to come reaches the client.
        """
        kept = [entry for entry in self._alive() if entry.persistent]
        if not kept:
            if self._client is not None:
                with contextlib.suppress(UbpxError):
                    self._client.close()
            return False
        self.guest = None
        others = [entry.lease for entry in self._alive() if not entry.persistent and entry.lease is not None]
        with contextlib.suppress(UbpxError):
            self.client.release_all(others)
            for group in tuple(self.groups.values()):
                group.release()
            for hold in self._target.holds():
                if hold.owner == self.name:
                    hold.release()
        self._catch(())
        self.groups.clear()
        self.entries.clear()
        self.entries.update({entry.handle: entry for entry in kept})
        return True

    def come_back(self, guest: Guest) -> None:
        """The client is here again: under new handles, for the old ones were another connection's."""
        kept = list(self.entries.values())
        self.entries.clear()
        for entry in kept:
            entry.handle, entry.left = new_handle(), True
            self.entries[entry.handle] = entry
        self.handle = new_handle()
        self.held_since, self.strikes = None, 0
        self.guest = guest
        self._catch(None)

    def _catch(self, wanted: tuple[int, ...] | None) -> None:
        """Its stop hooks are called for everything, or for nothing; where it has some."""
        for catch in (self.client.catch_signals, self.client.catch_syscalls):
            with contextlib.suppress(UbpxError):
                catch(wanted)

    def expel(self, reason: str, held_s: float) -> bool:
        """Take everything back, as after three exceptions, and leave; False: nothing is kept."""
        self.guest = None
        with contextlib.suppress(UbpxError):
            self.client.expel(reason, held_s=held_s)
        self.close()
        return False

    def close(self) -> None:
        """Leave for good. Again: does nothing."""
        self.guest = None
        if self._client is not None:
            with contextlib.suppress(UbpxError):
                self._client.close()
