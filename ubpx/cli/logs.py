"""Log records on stderr, in the form of our errors."""

import contextlib
import logging
import select
import sys
from typing import Final

import click

from ubpx.cli.text import printable

_AT_ONCE: Final = 1024
"""Characters that a pipe takes whole if it takes any: PIPE_BUF bytes (pipe(7)), at most four to a character."""
_PATIENCE_MS: Final = 50


class OneLineHandler(logging.Handler):
    """Tells a record in one line, with its exception's message; with its traceback only where asked for.

    Never waits long for whoever should read stderr: records come from the tracer thread, while programs stand.
    """

    def __init__(self, *, with_tracebacks: bool) -> None:
        super().__init__()
        self._with_tracebacks: Final = with_tracebacks
        self._left_out = 0

    def emit(self, record: logging.LogRecord) -> None:
        """On whatever is stderr now; nobody need read it."""
        text = f"{self.told(record)}\n"
        if self._left_out:
            text = f"ubpx: {self._left_out} messages were left out, because nobody read them\n{text}"
        patience = 0 if self._left_out else _PATIENCE_MS
        with contextlib.suppress(OSError):
            for start in range(0, len(text), _AT_ONCE):
                if not _takes_more(patience):
                    self._left_out += 1
                    return
                click.echo(text[start : start + _AT_ONCE], err=True, nl=False)
        self._left_out = 0

    def told(self, record: logging.LogRecord) -> str:
        """``ubpx: MESSAGE: EXCEPTION``, safe to show."""
        text = f"ubpx: {record.getMessage()}"
        error = record.exc_info[1] if record.exc_info else None
        if error is None or record.exc_info is None:
            return printable(text)
        if self._with_tracebacks:
            return f"{printable(text)}\n{logging.Formatter().formatException(record.exc_info)}"
        return printable(f"{text}: {type(error).__name__}: {error}; ubpx --debug shows the traceback")


def _takes_more(patience_ms: int) -> bool:
    """Whether a write to stderr would not wait, within the time."""
    try:
        descriptor = sys.stderr.fileno()
    except (AttributeError, OSError, ValueError):  # something else is in its place
        return True
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return bool(poll.poll(patience_ms))


def tell_logs(*, with_tracebacks: bool) -> None:
    """From now on warnings of ubpx's own loggers go to stderr so. Called again: the later call counts."""
    logging.getLogger("ubpx").handlers = [OneLineHandler(with_tracebacks=with_tracebacks)]
