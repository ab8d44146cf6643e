"""The command group: plugins' commands beside ours, and every error told in one line."""

import contextlib
from typing import IO, Any

import click

from ubpx._errors import UbpxError, UsageError
from ubpx.cli.text import printable

WRONG = 1
"""Exit status where something could not be done, or something was lost."""
MISUSED = 2
"""Exit status where the command line cannot be right."""


class UbpxGroup(click.Group):
    """Commands of ubpx and, where one is not ours or all are listed, of the plugins."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Ours, then those of plugins, each by name."""
        return [*super().list_commands(ctx), *sorted(self._foreign(ctx))]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Plugins are loaded for a name that is not ours alone."""
        return super().get_command(ctx, cmd_name) or self._foreign(ctx).get(cmd_name)

    def _foreign(self, ctx: click.Context) -> dict[str, click.Command]:
        found: dict[str, click.Command] | None = ctx.meta.get(__name__)
        if found is None:
            from ubpx.cli.extensions import plugin_commands

            found = ctx.meta[__name__] = plugin_commands(taken=frozenset(self.commands))
        return found

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """As click's own; a command line that cannot be right is told in one line."""
        try:
            return super().make_context(info_name, args, parent, **extra)
        except click.ClickException as error:
            raise in_one_line(error) from error

    def invoke(self, ctx: click.Context) -> object:
        """Run the command; an error that it raises ends it with one line and its exit status."""
        from ubpx.cli.logs import tell_logs

        tell_logs(with_tracebacks=ctx.params["debug"])
        try:
            return super().invoke(ctx)
        except click.ClickException as error:
            raise in_one_line(error) from error
        except (click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise  # click ends the last one quietly
        except Exception as error:
            if ctx.params["debug"]:
                raise
            raise explained(error) from error


class OneLine(click.ClickException):
    """An error of any kind, as it is told."""

    def show(self, file: IO[Any] | None = None) -> None:
        """On stderr."""
        complain(self.message, file)


class Misuse(OneLine):
    """One of the command line; other words would help."""

    exit_code = MISUSED


def in_one_line(error: click.ClickException) -> click.ClickException:
    """Click's own error in our form; but a bare ``ubpx`` shows its help."""
    if isinstance(error, OneLine | click.exceptions.NoArgsIsHelpError):
        return error
    if isinstance(error, click.UsageError):
        return Misuse(f"{plain(error)}; see {error.ctx.command_path if error.ctx else 'ubpx'} --help")
    return OneLine(plain(error))


def explained(error: Exception) -> OneLine:
    """An exception of a command; a UsageError that the kernel caused is not one of the words."""
    if isinstance(error, UsageError) and not isinstance(error.__cause__, OSError):
        return Misuse(str(error))
    return OneLine(str(error) if isinstance(error, UbpxError) else unexpected(error))


def plain(error: click.ClickException) -> str:
    """Click's message in the form of ours: one line, no sentences."""
    sentences = " ".join(error.format_message().split()).rstrip(".").split(". ")
    return ", ".join(each[:1].lower() + each[1:] for each in sentences)


def unexpected(error: Exception) -> str:
    """What to say of an exception that carries no explanation of its own."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace else "an unknown place"
    return f"unexpected {type(error).__name__} ({error}): {where}; please report it with what ubpx --debug shows"


def complain(text: str, file: IO[Any] | None = None) -> None:
    """One line on stderr; nobody need read it."""
    with contextlib.suppress(BrokenPipeError):
        click.echo(f"ubpx: {printable(text)}", file=file, err=True)
