"""The commands of ``ubpx``: their options, and what they give to whoever does the work."""

import io
import sys
from collections.abc import Sequence

import click

from ubpx.cli.group import WRONG, UbpxGroup, complain

# What a command needs is imported when it runs, so that --help and shell completion stay quick.

__all__ = ["app", "main"]


def example(*lines: str) -> str:
    """What stands below a command's help; the first character keeps click from making a paragraph of it."""
    return "\n  ".join(("\b\nExample:", *lines))


@click.group(cls=UbpxGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(package_name="ubpx", message="%(prog)s %(version)s")
def app(*, debug: bool) -> None:
    """Share breakpoints and probes in running Linux programs among many clients."""
    del debug  # the group reads it


@app.command(epilog=example("ubpx demo", "ubpx demo --json", "ubpx demo --broker"))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the table.")
@click.option("--broker", "by_broker", is_flag=True, help="Three clients in processes of their own; one is killed.")
@click.pass_context
def demo(context: click.Context, *, as_json: bool, by_broker: bool) -> None:
    """Show two clients that share one probepoint of a running program.

    Starts a program of several threads, attaches to it while it runs, and lets the plugins hitcount
    and argwatch probe the same libc function. Then compares what they counted with what the
    program counted itself. Exit status 1 if a call was missed or the program was harmed.

    With --broker the clients are three processes, and come by a broker: a tracer, a coverage counter and
    an argument logger, at the same address. The last one is killed amid its hits; the others stay exact.
    """
    if by_broker:
        from ubpx.cli.demo import broker, broker_report

        outcome = broker.run_broker_demo()
        if as_json:
            click.echo(broker_report.as_json_text(outcome))
        else:
            broker_report.print_report(outcome)
        context.exit(0 if outcome.ok else WRONG)
    from ubpx.cli.demo.report import as_json_text, print_report
    from ubpx.cli.demo.run import run_demo

    result = run_demo()
    if as_json:
        click.echo(as_json_text(result))
    else:
        print_report(result)
    context.exit(0 if result.ok else WRONG)


@app.command(
    context_settings={"allow_interspersed_args": False},
    epilog=example("ubpx trace -e libc:write -- ls", "ubpx trace -e libc:malloc -e libc:free --count -p 4711"),
)
@click.option("-e", "specs", metavar="SPEC", multiple=True, required=True, help="What to probe; may be repeated.")
@click.option("-p", "pid", metavar="PID", type=click.IntRange(min=1), help="Attach to this process.")
@click.option("--join", is_flag=True, help="With -p: go by way of the broker that traces the process already.")
@click.option(
    "--follow", type=click.Choice(["none", "fork", "exec", "all"]), default="exec", help="Whom to follow; see below."
)
@click.option("-o", "path", metavar="FILE", type=click.Path(dir_okay=False), help="Write there.")
@click.option("--count", is_flag=True, help="Only count, and print the counts at the end.")
@click.option("--format", "format_name", metavar="NAME", help="text (as without), json, or a plugin's.")
@click.option("--json", "as_json", is_flag=True, help="The same as --format json.")
@click.option("--with", "plugins", metavar="PLUGIN", multiple=True, help="Activate a client plugin too.")
@click.argument("command", metavar="[-- CMD...]", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def trace(
    context: click.Context,
    *,
    specs: Sequence[str],
    pid: int | None,
    join: bool,
    follow: str,
    path: str | None,
    count: bool,
    format_name: str | None,
    as_json: bool,
    plugins: Sequence[str],
    command: Sequence[str],
) -> None:
    """Print the calls of functions in a program.

    CMD is started and traced to its end; Ctrl-C reaches it. With -p a running
    process is traced until it ends, or until Ctrl-C, which leaves it running on as before.

    --follow exec is the default: a process is traced through every exec, and its children are let go.
    fork: its children, and theirs, are traced too, each until it execs. all: both. none: neither.
    A trace that follows children goes on until the last of them has ended. With --join the broker's policy counts.

    A SPEC is MODULE:SYMBOL[+OFFSET], SYMBOL (in the main program) or 0xADDRESS. One whose module is
    not mapped yet waits for it.

    What is traced goes to stderr, so that CMD's own output stays clean; with -p to stdout; with -o
    to a file. The object that --count --json makes is the last line of stdout (with -o in the file too).

    Exit status 0 whatever CMD returned, 1 if something was lost or a SPEC never armed.
    """
    if (pid is None) == (not command):
        raise click.UsageError("Say what to trace: either -p PID or -- CMD", context)
    if join and pid is None:
        raise click.UsageError("--join goes with -p PID: a program that is started has no broker yet", context)
    if as_json and format_name not in {None, "json"}:
        raise click.UsageError(f"--json and --format {format_name} exclude each other", context)
    from contextlib import ExitStack

    from ubpx.cli.extensions import find_sink
    from ubpx.cli.trace.output import file_output, standard_error, standard_output
    from ubpx.cli.trace.run import TraceRequest, run_trace
    from ubpx.core.values import Follow

    name = "json" if as_json else format_name or "text"
    sink = find_sink(name)()
    request = TraceRequest(
        specs=tuple(dict.fromkeys(specs)),
        pid=pid,
        command=command,
        plugins=plugins,
        counting=count,
        join=join,
        follow=Follow(follow),
    )
    with ExitStack() as open_files:
        if path is not None:
            output = open_files.enter_context(file_output(path))
        else:
            output = standard_error() if pid is None else standard_output()
        counts_to = [output]
        if name == "json":
            counts_to = [standard_output()] if path is None else [output, standard_output()]
        losses = run_trace(request, sink, output, counts_to=counts_to)
    for loss in losses:
        complain(loss)
    context.exit(WRONG if losses else 0)


@app.command(epilog=example("ubpx plugins", "ubpx plugins --json"))
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list instead of the table.")
def plugins(*, as_json: bool) -> None:
    """List the installed plugins.

    Where each is from, and what it does.
    """
    from ubpx.cli.plugins import as_json_text, as_text, installed

    reports = installed()
    click.echo(as_json_text(reports) if as_json else as_text(reports))


@app.command(epilog=example("ubpx doctor", "ubpx doctor -p 4711"))
@click.option("-p", "pid", metavar="PID", type=click.IntRange(min=1), help="Ask about this process.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def doctor(context: click.Context, *, pid: int | None, as_json: bool) -> None:
    """Say whether a process can be attached to.

    If not: why, and what to do. It reads, and touches nothing: the process is not stopped, and gets
    no signal. Without -p it looks at this machine. Exit status 1 if one cannot attach.
    """
    from ubpx.cli.doctor import as_json_text, as_text, diagnose

    diagnosis = diagnose(pid)
    click.echo(as_json_text(diagnosis) if as_json else as_text(diagnosis))
    context.exit(0 if diagnosis.attachable else WRONG)


@app.command(epilog=example("ubpx bench", "ubpx bench --pin --json"))
@click.option(
    "--rounds", metavar="N", type=click.IntRange(min=1, max=1_000), default=5, show_default=True, help="Rounds."
)
@click.option(
    "--calls",
    metavar="N",
    type=click.IntRange(min=100, max=10_000_000),
    default=5_000,
    show_default=True,
    help="Hits a round.",
)
@click.option("--pin", is_flag=True, help="Tracer and program on one processor.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def bench(*, rounds: int, calls: int, pin: bool, as_json: bool) -> None:
    """Measure what a hit costs on this machine.

    Starts a small program that calls a libc function in a loop, probes that, and compares: with talking to
    another process, with more clients, with a busy host, with many probes elsewhere. It takes a few seconds, and
    needs no compiler. All hits are compared with the program's calls; exit status 1 if one was missed.

    Beside other tools, and with more, `make bench` in ubpx's sources measures.
    """
    from ubpx.cli.bench.report import as_json_text, as_text
    from ubpx.cli.bench.run import run_bench

    result = run_bench(rounds=rounds, calls=calls, pin=pin)
    click.echo(as_json_text(result) if as_json else as_text(result))


@app.command(epilog=example("ubpx heal -p 4711"))
@click.option("-p", "pid", metavar="PID", type=click.IntRange(min=1), required=True, help="The process.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def heal(context: click.Context, *, pid: int, as_json: bool) -> None:
    """Take out of a process what a killed ubpx has left there.

    The process has survived, and runs on; this brings its code back to what it was, and gives back its SIGTRAP
    action and the memory that was mapped. Attaching does the same by itself. Exit status 1 if code still differs
    from the files that it was mapped from.
    """
    from ubpx.cli.heal import as_json_text, as_text, heal_process

    report = heal_process(pid)
    click.echo(as_json_text(report) if as_json else as_text(report))
    context.exit(WRONG if report.differing else 0)


def main() -> None:
    """Run the ``ubpx`` command with the process's arguments."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    app(prog_name="ubpx")
