"""The commands ``ubpx serve`` and ``ubpx list``."""

import math
from collections.abc import Sequence
from pathlib import Path

import click

_EXAMPLES = {
    "serve": ("ubpx serve -p 4711", "ubpx serve --socket /tmp/s -- ./server --port 0", "ubpx serve"),
    "list": ("ubpx list", "ubpx list --json"),
}


def _example(command: str) -> str:
    return "\n  ".join(("\b\nExample:", *_EXAMPLES[command]))


def _seconds(_context: click.Context, _option: click.Parameter, value: float | None) -> float | None:
    """More than none, and not for ever; raises click.BadParameter."""
    if value is not None and not (value > 0 and math.isfinite(value)):
        raise click.BadParameter(f"{value:g} is no time; give seconds, more than 0")
    return value


@click.command(context_settings={"allow_interspersed_args": False}, epilog=_example("serve"))
@click.option("-p", "pids", metavar="PID", type=click.IntRange(min=1), multiple=True, help="Trace it; may be repeated.")
@click.option("--socket", "path", metavar="PATH", type=click.Path(path_type=Path), help="Listen there.")
@click.option("--run", is_flag=True, help="Start CMD at once, not with the first client that wants it to run.")
@click.option("--all-users", is_flag=True, help="Root: serve everybody, each as the kernel would let them trace.")
@click.option(
    "--follow",
    type=click.Choice(["none", "fork", "exec", "all"]),
    default="exec",
    help="Whom to follow from those named here, as in ubpx trace.",
)
@click.option(
    "--deadline",
    metavar="SECONDS",
    type=float,
    default=1.0,
    callback=_seconds,
    help="How long a handler may take.",
)
@click.option("--max-clients", type=click.IntRange(min=1), help="Clients of one connection.")
@click.option("--max-probes", type=click.IntRange(min=1), help="Leases of one connection.")
@click.option("--max-slots", type=click.IntRange(min=0), help="Leases of one connection that need a slot.")
@click.option("--max-queue", type=click.IntRange(min=1), help="Hits that wait for one connection; more are dropped.")
@click.option("--max-bytes", type=click.IntRange(min=1 << 16), help="Bytes that one connection may leave unread.")
@click.option(
    "--max-stop",
    metavar="SECONDS",
    type=float,
    callback=_seconds,
    help="How long a client may keep threads stopped.",
)
@click.option("--max-connections", type=click.IntRange(min=1), help="Connections of one user.")
@click.argument("command", metavar="[-- CMD...]", nargs=-1, type=click.UNPROCESSED)
def serve(
    *,
    pids: Sequence[int],
    path: Path | None,
    run: bool,
    all_users: bool,
    follow: str,
    deadline: float,
    max_stop: float | None,
    command: Sequence[str],
    **limits: int | None,
) -> None:
    """Trace programs on behalf of clients in other processes.

    They join by ubpx.connect(PID) or ubpx.connect(PATH), and share what they probe. Without -p and CMD
    the broker waits for clients that ask it to attach. It ends upon Ctrl-C and leaves every program
    running as before; if it was given programs, also when those have ended.

    What listens is a Unix socket that your user alone may open; who connects is checked for each
    process, as the kernel checks who may trace it.
    """
    if run and not command:
        raise click.UsageError("--run goes with -- CMD: there is nothing else to start")
    from ubpx_froggy.broker.quotas import Quotas
    from ubpx_froggy.broker.serve import ServeRequest, serve

    given = {name.removeprefix("max_"): value for name, value in limits.items() if value is not None}
    request = ServeRequest(
        pids=pids,
        command=command,
        path=path,
        for_everybody=all_users,
        run=run,
        follow=follow,
        deadline_s=deadline,
        quotas=Quotas(stop_s=max_stop, **given),
    )
    serve(request, lambda text: click.echo(f"ubpx: {text}", err=True))


@click.command("list", epilog=_example("list"))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--socket", "path", metavar="PATH", type=click.Path(path_type=Path), help="Ask this broker alone.")
def list_(*, as_json: bool, path: Path | None) -> None:
    """Show the brokers of this machine: their targets, and who holds what.

    Clients, probepoints, leases and holds of every process that you may trace.
    """
    from ubpx_froggy.listing import as_json_text, as_text, look

    brokers = look(path)
    click.echo(as_json_text(brokers) if as_json else as_text(brokers))
