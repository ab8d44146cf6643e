"""The asyncio form of ``ubpx.connect``: what asks the broker is awaited, and handlers run in the event loop.

    async with await aio.connect(4711) as target:
        client = await target.client("counter")
        lease = await client.probe("libc:write", handler)
        ...
        print((await lease.refresh()).hits)

Everything belongs to the event loop in which it was made.
"""

import os

from ubpx import UbpxError
from ubpx_froggy.aio.clients import AsyncClient
from ubpx_froggy.aio.hits import AsyncHit
from ubpx_froggy.aio.holds import AsyncHold
from ubpx_froggy.aio.leases import AsyncLease, AsyncLeaseGroup
from ubpx_froggy.aio.link import AsyncLink
from ubpx_froggy.aio.probepoints import AsyncProbepoint
from ubpx_froggy.aio.process import AsyncMemory, AsyncProcess
from ubpx_froggy.aio.target import AsyncTarget
from ubpx_froggy.client import destination, read_target
from ubpx_froggy.client.checks import check_flags, check_follow, check_pid, check_slots
from ubpx_froggy.messages import TargetInfo


async def connect(
    address: str | os.PathLike[str] | int,
    *,
    pid: int | None = None,
    slots: str = "auto",
    read_only: bool = False,
    follow: str = "exec",
) -> AsyncTarget:
    """Use a target of a broker's, in the running event loop; detaching leaves it to the others.

    ``address`` is the path of the broker's socket, or the pid of a process that some broker here traces. With a path
    ``pid`` says which process, one that the broker attaches to then, with ``slots`` and ``follow``, if it has not; it
    may be left out where the broker has just one. With ``read_only`` nothing of the program can be changed.
    Raises NoBroker, BrokerGone, PermissionRefused, UsageError, and what ``ubpx.attach`` raises.
    """
    if isinstance(address, os.PathLike):
        address = os.fspath(address)
    if not isinstance(address, str):
        check_pid(address)
    if pid is not None:
        check_pid(pid)
    check_slots(slots)
    check_follow(follow)
    check_flags(read_only=read_only)
    path, call = destination(address, pid=pid, slots=slots, read_only=read_only, follow=follow)
    link = await AsyncLink.to(path)
    try:
        info: TargetInfo = await link.request(call, read_target)
        return AsyncTarget(link, info)
    except BaseException as error:
        link.leave(f"the broker at {path} has not given the target; connect again")
        if isinstance(error, UbpxError):
            await link.closed()
        raise


__all__ = [
    "AsyncClient", "AsyncHit", "AsyncHold", "AsyncLease", "AsyncLeaseGroup", "AsyncMemory", "AsyncProbepoint",
    "AsyncProcess", "AsyncTarget", "connect",
]  # fmt: skip
