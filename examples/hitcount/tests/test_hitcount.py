from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import pytest

import ubpx
from ubpx_hitcount import HitCount


class RecordingClient:
    """As much of a client as the plugin uses: it keeps the handlers by place."""

    def __init__(self) -> None:
        self.name = "hitcount"
        self.target = None
        self.leases = ()
        self.handlers: dict[str | int, Callable[[Any], object]] = {}

    def probe(self, place: str | int, handler: Callable[[Any], object], **options: Any) -> None:
        assert not options
        self.handlers[place] = handler

    def probe_many(self, places: Iterable[str | int] | str, handler: Callable[[Any], object], **options: Any) -> None:
        raise AssertionError("the plugin probes one place")

    def close(self) -> None:
        raise AssertionError("ubpx closes a plugin's client, not the plugin")


def test_hits_are_counted_by_thread_and_told_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    plugin, client = HitCount({"UBPX_HITCOUNT_SPEC": "libc:write"}), RecordingClient()
    process: Any = SimpleNamespace(pid=7)
    plugin.ubpx_process_attached(client, process)
    for tid in (7, 8, 8):
        client.handlers["libc:write"](SimpleNamespace(tid=tid))
    assert plugin.hits(7) == {7: 1, 8: 2}
    plugin.ubpx_process_detached(client, process)
    assert capsys.readouterr().err == "hitcount: 3 hits in process 7: thread 8 2, thread 7 1\n"
    assert plugin.hits(7) == {}


def test_without_a_place_it_refuses_and_probes_nothing() -> None:
    client = RecordingClient()
    process: Any = SimpleNamespace(pid=7)
    with pytest.raises(ubpx.UsageError, match="UBPX_HITCOUNT_SPEC"):
        HitCount({}).ubpx_process_attached(client, process)
    assert not client.handlers
