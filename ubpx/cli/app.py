"""The command group: options for all commands, and how errors are told."""

import click

from ubpx._errors import UbpxError
from ubpx.cli.text import printable

# What a command needs is imported when it runs, so that --help and shell completion stay quick.


class OneLineErrors(click.Group):
    """Tells an error that carries its own explanation in one line; any other is a bug and shows its traceback."""

    def invoke(self, ctx: click.Context) -> object:
        """Run the command; an UbpxError ends it with exit status 1."""
        try:
            return super().invoke(ctx)
        except UbpxError as error:
            if ctx.params["debug"]:
                raise
            click.echo(f"ubpx: {printable(str(error))}", err=True)
            ctx.exit(1)


@click.group(cls=OneLineErrors, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(package_name="ubpx", message="%(prog)s %(version)s")
def app(*, debug: bool) -> None:
    """Share breakpoints and probes in running Linux programs among many clients."""
    del debug  # OneLineErrors reads it


@app.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the table.")
@click.pass_context
def demo(context: click.Context, *, as_json: bool) -> None:
    r"""Show two clients that share one probepoint of a running program.

    Starts a program of several threads, attaches to it while it runs, and lets the plugins hitcount
    and argwatch probe the same libc function. Then compares what they counted with what the
    program counted itself. Exit status 1 if a call was missed or the program was harmed.

    \b
    Example:
      ubpx demo
      ubpx demo --json
    """
    from ubpx.cli.demo.report import as_json_text, print_report
    from ubpx.cli.demo.run import run_demo

    result = run_demo()
    if as_json:
        click.echo(as_json_text(result))
    else:
        print_report(result)
    context.exit(0 if result.ok else 1)


def main() -> None:
    """Run the ``ubpx`` command with the process's arguments."""
    app(prog_name="ubpx")
