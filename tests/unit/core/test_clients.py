"""Clients: their life, their strikes."""

from __future__ import annotations

from typing import Any, cast

import pytest

from ubpx._errors import ClientQuarantined, UsageError
from ubpx.core.clients import STRIKES, Client, ClientState, Roster


class RecordingDesk:
    """Takes a client's requests and keeps them."""

    def __init__(self) -> None:
        self.requests: list[tuple[Any, ...]] = []

    def probe(self, *request: Any) -> Any:
        self.requests.append(("probe", *request))
        return "a lease"

    def probe_many(self, *request: Any) -> Any:
        self.requests.append(("probe_many", *request))
        return "a group"

    def release_all(self, leases: Any) -> None:
        self.requests.append(("release_all", leases))

    def hold(self, *request: Any) -> Any:
        self.requests.append(("hold", *request))
        return "a hold"

    def close(self, client: Client) -> None:
        self.requests.append(("close", client))

    def leases_of(self, client: Client) -> Any:
        return ("one", "two")


@pytest.fixture
def desk() -> RecordingDesk:
    return RecordingDesk()


@pytest.fixture
def client(desk: RecordingDesk) -> Client:
    return Client("a", priority=3, target="the target", desk=cast(Any, desk))


def ignore(hit: Any) -> None:
    """A handler."""


def test_requests_go_to_the_desk_with_every_option(client: Any, desk: RecordingDesk) -> None:
    assert client.probe("libc:write", ignore) == "a lease"
    defaults = {
        "strategy": None,
        "exclusive": False,
        "priority": 3,
        "assume_boundary": False,
        "defer": True,
        "once": False,
    }
    assert desk.requests.pop() == ("probe", client, "libc:write", ignore, defaults)
    client.probe(16, ignore, strategy="STEP", exclusive=True, priority=0, assume_boundary=True, defer=False)
    changed = {
        "strategy": "STEP",
        "exclusive": True,
        "priority": 0,
        "assume_boundary": True,
        "defer": False,
        "once": False,
    }
    assert desk.requests.pop() == ("probe", client, 16, ignore, changed)
    assert client.hold() == "a hold"
    assert client.hold(11) == "a hold"
    assert desk.requests == [("hold", client, None), ("hold", client, 11)]
    client.release("a lease")
    assert desk.requests[-1] == ("release_all", ("a lease",))
    assert client.leases == ("one", "two")
    assert client.target == "the target"


def test_requests_for_many_go_to_the_desk_with_every_option(client: Any, desk: RecordingDesk) -> None:
    assert client.probe_many("libc:*", ignore) == "a group"
    defaults = {"strategy": None, "exclusive": False, "priority": 3, "assume_boundary": False}
    assert desk.requests.pop() == (
        "probe_many", client, "libc:*", ignore, {**defaults, "once": False, "skip_refused": None},
    )  # fmt: skip
    changed = {"strategy": "STEP", "exclusive": True, "priority": 0, "assume_boundary": True}
    client.probe_many([16], ignore, once=True, skip_refused=False, **changed)
    assert desk.requests.pop() == (
        "probe_many", client, [16], ignore, {**changed, "once": True, "skip_refused": False},
    )  # fmt: skip
    client.release_all(("one", "two"))
    assert desk.requests == [("release_all", ("one", "two"))]


def test_leaving_the_with_closes(client: Client, desk: RecordingDesk) -> None:
    with client as same:
        assert same is client
    assert desk.requests == [("close", client)]


def test_a_handler_must_be_callable(client: Client, desk: RecordingDesk) -> None:
    with pytest.raises(UsageError, match="the handler of 'main' is a str"):
        client.probe("main", "ignore")  # type: ignore[arg-type]
    assert desk.requests == []


def test_three_strikes_in_a_row_quarantine(client: Client, desk: RecordingDesk) -> None:
    """Invariant: only the third exception in a row says so, once; then the client may not act."""
    failures = [client.failed(ValueError("no"), "its handler at 0x1000") for _ in range(STRIKES + 1)]
    assert failures == [False] * (STRIKES - 1) + [True, False]
    assert client.state is ClientState.QUARANTINED
    assert client.reason == "3 exceptions in a row, the last one ValueError in its handler at 0x1000"
    for act in (lambda: client.probe(16, ignore), client.hold):
        with pytest.raises(ClientQuarantined, match="3 exceptions in a row"):
            act()
    assert desk.requests == []
    assert repr(client) == "<client 'a', QUARANTINED>"


def test_a_success_resets_the_strikes(client: Client) -> None:
    """Invariant: exceptions with a success between them never quarantine."""
    for _ in range(3 * STRIKES):
        assert not client.failed(ValueError("no"), "a hook")
        assert not client.failed(KeyboardInterrupt(), "a hook")
        client.strikes = 0
    assert client.state is ClientState.LIVE


def test_every_exception_is_logged_with_its_traceback(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    error = ValueError("who knows")
    client.failed(error, "ubpx_thread_started")
    (record,) = caplog.records
    assert record.message == "client 'a' raised in ubpx_thread_started (1 in a row)"
    assert record.exc_info is not None
    assert record.exc_info[1] is error


def test_the_name_of_ubpx_itself_is_not_free() -> None:
    """Invariant: nobody may take over what ubpx holds in its own name."""
    with pytest.raises(UsageError, match="ubpx's own"):
        Roster().join(Client("ubpx", priority=0, target=None, desk=cast(Any, RecordingDesk())))


def test_living_names_are_unique(client: Client) -> None:
    """Invariant: a name is free again once its client has left; a closed client may not act."""
    roster, twin = Roster(), Client("a", priority=0, target=None, desk=cast(Any, RecordingDesk()))
    roster.join(client)
    with pytest.raises(UsageError, match="a client named 'a' is already here"):
        roster.join(twin)
    swept: list[Client] = []
    roster.leave(twin, forget=swept.append)
    assert swept == []
    roster.leave(client, forget=swept.append)
    roster.leave(client, forget=swept.append)
    assert swept == [client]

    assert client.state is ClientState.CLOSED
    with pytest.raises(UsageError, match="is closed; join again"):
        client.probe(16, ignore)
    roster.join(twin)
    assert roster.living() == (twin,)


def test_a_client_needs_a_name() -> None:
    with pytest.raises(UsageError, match="needs a name"):
        Roster().join(Client("", priority=0, target=None, desk=cast(Any, RecordingDesk())))
