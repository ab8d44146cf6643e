"""The side that connects: the very API of ``ubpx.attach``, over a connection."""

from typing import Final

from ubpx import NoBroker, UsageError
from ubpx_froggy.client.conversation import decoder
from ubpx_froggy.client.link import Link
from ubpx_froggy.client.target import RemoteTarget
from ubpx_froggy.directory import find_broker
from ubpx_froggy.messages import Attach, Join, TargetInfo

read_target: Final = decoder(TargetInfo)


def connect(
    address: str | int, *, pid: int | None, slots: str = "auto", read_only: bool = False, follow: str = "exec"
) -> RemoteTarget:
    """Use a target of a broker: of the one that listens at a path, or of the one that traces a process.

    With a path ``pid`` says which process, to which the broker attaches, with ``slots`` and ``follow``, if it has not;
    None: the only one that it has. With ``read_only`` nothing of the program can be changed.
    Raises NoBroker, BrokerGone, PermissionRefused, UsageError, and what ``ubpx.attach`` raises.
    """
    path, call = destination(address, pid=pid, slots=slots, read_only=read_only, follow=follow)
    link = Link(path)
    try:
        info: TargetInfo = link.request(call, read_target)
        return RemoteTarget(link, info)
    except BaseException:
        link.close(f"the broker at {path} has not given the target; connect again")
        raise


def destination(
    address: str | int, *, pid: int | None, slots: str = "auto", read_only: bool = False, follow: str = "exec"
) -> tuple[str, Join | Attach]:
    """The path of the broker to connect to, and the request for the target; arguments and errors are ``connect``'s."""
    if isinstance(address, str):
        call = (
            Join(None, read_only=read_only) if pid is None else Attach(pid, slots, read_only=read_only, follow=follow)
        )
        return address, call
    if pid is not None and pid != address:
        raise UsageError(f"connect({address}, pid={pid}) names two processes; give one of them")
    return _broker_of(address), Join(address, read_only=read_only)


def _broker_of(pid: int) -> str:
    entry = find_broker(pid)
    if entry is None:
        raise NoBroker(f"none that you may see traces process {pid}", f"start one with: ubpx serve -p {pid}")
    return str(entry.socket)


__all__ = ["RemoteTarget", "connect", "destination", "read_target"]
