"""What a program loads and unloads while it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ubpx.core.modules import LoadedFile, loaded_files
from ubpx.core.probepoints import LeaseState
from ubpx.core.values import Place, ProcessId, VirtAddr, parse_maps

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.unit.core.conftest import World

TEXT, PID = 0x40_1000, 100
LEA, PUSH, NOP, LOAD, CALL, LONG_NOP, FUNCTION, REP = (TEXT + 32 * i for i in range(8))
PLUGIN = 0x50_0000
CODE = bytes.fromhex("48 8d 47 01 c3").ljust(0x1000, b"\x90")

MAPS = """\
401000-402000 r-xp 00001000 08:01 77 /bin/program
500000-501000 r--p 00000000 08:01 5 /lib/plugin.so
501000-502000 r-xp 00001000 08:01 5 /lib/plugin.so
502000-503000 rw-p 00000000 00:00 0
503000-504000 r--p 00002000 08:01 5 /lib/plugin.so
600000-601000 r--p 00000000 08:01 5 /lib/plugin.so
601000-602000 r-xp 00001000 08:01 5 /lib/plugin.so
700000-701000 r--p 00000000 08:01 9 /usr/share/data
7ff000-800000 r-xp 00000000 00:00 0 [vdso]
"""


def ignore(_: object) -> None:
    """Wants nothing."""


def test_a_file_loaded_twice_counts_twice() -> None:
    """Invariant: files with code, each with its first and last byte; data and the vdso are none."""
    found = sorted(loaded_files(parse_maps(MAPS)), key=lambda each: each.start)
    assert [(each.path, each.start, each.end) for each in found] == [
        ("/bin/program", 0x401000, 0x402000),
        ("/lib/plugin.so", 0x500000, 0x504000),
        ("/lib/plugin.so", 0x600000, 0x602000),
    ]


def test_nothing_is_mapped_as_code() -> None:
    assert loaded_files(()) == frozenset()
    assert LoadedFile("a", VirtAddr(1), VirtAddr(2)) == LoadedFile("a", VirtAddr(1), VirtAddr(3))


def with_loader(world: World) -> Callable[[], None]:
    """Give the program a loader that comes by at NOP; what it has loaded is told by calling the result."""
    place = Place(address=VirtAddr(NOP), name="loader", symbol_start=VirtAddr(NOP), symbol_end=VirtAddr(NOP + 32))
    world.desk._modules._find_loader_stop = lambda _: place  # type: ignore[misc]

    def come_by() -> None:
        world.arrive(PID, NOP)

    return come_by


def load_plugin(world: World) -> None:
    world.memory.map(PLUGIN, CODE, permissions="r-xp", path="/lib/plugin.so")
    world.symbols["plugin:function"] = PLUGIN


def test_a_pending_lease_arms_when_its_module_is_loaded(world: World) -> None:
    """Invariant: a lease waits for its module, and is armed before the loading thread goes on."""
    come_by = with_loader(world)
    world.attach()
    lease = world.client("a").probe("plugin:function", ignore)
    assert (lease.state, str(lease.obstacle)[:6]) == (LeaseState.PENDING, "module")
    come_by()
    assert lease.state is LeaseState.PENDING
    load_plugin(world)
    come_by()
    assert (lease.state, lease.address, lease.obstacle) == (LeaseState.ARMED, PLUGIN, None)
    world.arrive(PID, PLUGIN)
    assert lease.hits == 1
    world.memory.unmap(PLUGIN, 0x1000)


def test_what_ubpx_watches_for_itself_is_nobodys_probepoint(world: World) -> None:
    """Invariant: the loader's stop shows in no list and no hook, unless a client probes it too."""
    with_loader(world)
    world.attach()
    client = world.client("a")
    client.probe("plugin:function", ignore)
    assert world.trap_stands(NOP)
    assert world.desk.probepoints() == ()
    assert world.recorder.named("ubpx_probepoint_armed") == []
    shared = client.probe(NOP, ignore)
    assert world.desk.probepoints() == (shared.probepoint,)
    world.arrive(PID, NOP)
    assert shared.hits == 1


def test_clients_are_told_what_is_loaded_and_unloaded(world: World) -> None:
    """Invariant: each change is told once, and leases in what is unloaded wait or are lost."""
    come_by = with_loader(world)
    world.attach()
    load_plugin(world)
    come_by()
    assert world.recorder.named("ubpx_module_loaded") == [("/lib/plugin.so", PLUGIN)]
    client = world.client("a")
    by_spec, by_address = client.probe("plugin:function", ignore), client.probe(PLUGIN, ignore)
    world.memory.unmap(PLUGIN, 0x1000)
    del world.symbols["plugin:function"]
    come_by()
    assert world.recorder.named("ubpx_module_unloaded") == [("/lib/plugin.so", PLUGIN)]
    assert [reason for _, reason in world.recorder.named("ubpx_probepoint_lost")] == ["/lib/plugin.so was unloaded"]
    assert (by_spec.state, by_address.state) == (LeaseState.PENDING, LeaseState.LOST)
    load_plugin(world)
    come_by()
    assert (by_spec.state, by_address.state) == (LeaseState.ARMED, LeaseState.LOST)
    world.arrive(PID, PLUGIN)
    assert (by_spec.hits, by_address.hits) == (1, 0)
    world.memory.unmap(PLUGIN, 0x1000)


def test_a_program_without_loader_is_left_alone(world: World) -> None:
    """Invariant: where there is nothing to watch, a pending lease waits for an exec alone."""
    lease = world.attach().client("a").probe("plugin:function", ignore)
    assert lease.state is LeaseState.PENDING
    assert len(world.process.space.registry) == 0


def test_a_loader_that_cannot_be_watched_harms_nobody(world: World) -> None:
    """Invariant: a foreign trap at the loader's stop leaves the lease pending, and the trap standing."""
    with_loader(world)
    world.memory.patch(VirtAddr(NOP), b"\xcc")
    world.attach()
    lease = world.client("a").probe("plugin:function", ignore)
    assert lease.state is LeaseState.PENDING
    assert world.trap_stands(NOP)
    world.memory.patch(VirtAddr(NOP), b"\x90")


def test_after_an_exec_the_new_program_is_watched(world: World) -> None:
    """Invariant: a lease that still waits after an exec arms when the new program loads its module."""
    come_by = with_loader(world)
    world.attach()
    lease = world.client("a").probe("plugin:function", ignore)
    new = type(world.memory)()
    new.map(TEXT, world.memory.read(VirtAddr(TEXT), 0x1000).replace(b"\xcc", b"\x90"), permissions="r-xp", path="/new")
    new.map(0x7FFE_0000, bytes(0x1000), permissions="rw-p", path="[stack]")
    world.memory = new
    world.fake.exec(PID, new, entry=FUNCTION)
    world.fake.idle()
    world.arrive(PID, FUNCTION)
    assert ("/new", TEXT) in world.recorder.named("ubpx_module_loaded")
    new.map(PLUGIN, CODE, permissions="r-xp", path="/lib/plugin.so")
    world.symbols["plugin:function"] = PLUGIN
    come_by()
    assert lease.state is LeaseState.ARMED
    assert world.fake._processes[ProcessId(PID)].memory.read(VirtAddr(PLUGIN), 1) == b"\xcc"
    world.fake.kill(PID)
    world.fake.idle()
