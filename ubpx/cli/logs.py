"""Log records on stderr, in the form of our errors."""

import contextlib
import logging
from typing import Final

import click

from ubpx.cli.text import printable


class OneLineHandler(logging.Handler):
    """Tells a record in one line, with its exception's message; with its traceback only where asked for."""

    def __init__(self, *, with_tracebacks: bool) -> None:
        super().__init__()
        self._with_tracebacks: Final = with_tracebacks

    def emit(self, record: logging.LogRecord) -> None:
        """On whatever is stderr now; nobody need read it."""
        with contextlib.suppress(OSError):
            click.echo(self.told(record), err=True)

    def told(self, record: logging.LogRecord) -> str:
        """``ubpx: MESSAGE: EXCEPTION``, safe to show."""
        text = f"ubpx: {record.getMessage()}"
        error = record.exc_info[1] if record.exc_info else None
        if error is None or record.exc_info is None:
            return printable(text)
        if self._with_tracebacks:
            return f"{printable(text)}\n{logging.Formatter().formatException(record.exc_info)}"
        return printable(f"{text}: {type(error).__name__}: {error}; ubpx --debug shows the traceback")


def tell_logs(*, with_tracebacks: bool) -> None:
    """From now on warnings of ubpx's own loggers go to stderr so. Called again: the later call counts."""
    logging.getLogger("ubpx").handlers = [OneLineHandler(with_tracebacks=with_tracebacks)]
