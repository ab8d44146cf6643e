from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import pytest

import ubpx
from ubpx_argwatch import ArgWatch


class RecordingClient:
    """As much of a client as the plugin uses: it keeps the handlers by place."""

    def __init__(self) -> None:
        self.name = "argwatch"
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


def test_arguments_are_sorted_by_size_and_drawn_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    plugin, client = ArgWatch({"UBPX_ARGWATCH_SPEC": "libc:malloc"}), RecordingClient()
    process: Any = SimpleNamespace(pid=7)
    plugin.ubpx_process_attached(client, process)
    for argument in (0, 16, 31, 2**64 - 1):
        client.handlers["libc:malloc"](SimpleNamespace(args=[argument]))
    assert plugin.calls_by_size(7) == {0: 1, 5: 2, 64: 1}
    plugin.ubpx_process_detached(client, process)
    assert capsys.readouterr().err.splitlines() == [
        "argwatch: argument 0 of 4 calls in process 7",
        f"  0x0 to 0x0: 1 {'#' * 20}",
        f"  0x10 to 0x1f: 2 {'#' * 40}",
        f"  0x8000000000000000 to 0xffffffffffffffff: 1 {'#' * 20}",
    ]


def test_without_a_function_it_refuses_and_probes_nothing() -> None:
    client = RecordingClient()
    process: Any = SimpleNamespace(pid=7)
    with pytest.raises(ubpx.UsageError, match="UBPX_ARGWATCH_SPEC"):
        ArgWatch({}).ubpx_process_attached(client, process)
    assert not client.handlers
