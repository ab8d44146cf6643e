"""Starting a program so that it is traced from its first instruction.

``subprocess`` starts it, so every option means what it means there; the child waits at a gate
right before its exec until the tracer has it.
"""

import os
import subprocess
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Final

from ubpx import UsageError
from ubpx.core.values import ProcessId


def _checked(argv: object) -> list[str]:
    if isinstance(argv, list | tuple) and argv and all(isinstance(word, str | os.PathLike) for word in argv):
        return [os.fspath(word) for word in argv]
    raise UsageError(f"argv is {argv!r}; give a list of strings: the program, then its arguments")


def _check_options(options: Mapping[str, Any]) -> None:
    """What Popen would answer with a TypeError of its own, or take for something else."""
    for stream in ("stdin", "stdout", "stderr"):
        value = options.get(stream)
        is_number = isinstance(value, int) and not isinstance(value, bool)
        if not (value is None or is_number or hasattr(value, "fileno")):
            raise UsageError(f"{stream}={value!r}; give a file, a descriptor or subprocess.PIPE, or leave it out")
    cwd, env = options.get("cwd"), options.get("env")
    if not (cwd is None or _is_text(cwd)):
        raise UsageError(f"cwd={cwd!r}; give the path of a directory, or leave it out")
    if env is not None and not isinstance(env, Mapping):
        raise UsageError(f"env={env!r}; give a mapping from names to values, or leave it out")
    for name, value in (env or {}).items():
        if not (_is_text(name) and _is_text(value)):
            raise UsageError(f"env has {name!r}: {value!r}; names and values are strings")


def _is_text(value: object) -> bool:
    return isinstance(value, str | bytes | os.PathLike)


class Launch:
    """One program about to start. Used by the thread that asked for it, except ``pid``."""

    def __init__(self, argv: Sequence[str], options: Mapping[str, Any]) -> None:
        self._argv: Final = _checked(argv)
        _check_options(options)
        announce, self._announced = os.pipe()[::-1]
        self._gate, self._go = os.pipe()
        self._announce: Final = announce
        self._options: Final = dict(options)
        self._popen: subprocess.Popen[Any] | None = None
        self._error: BaseException | None = None
        self._starter: Final = threading.Thread(target=self._start, name="ubpx-launch", daemon=True)
        self._starter.start()
        said = os.read(self._announced, 32)
        self.pid: Final = ProcessId(int(said)) if said else None
        """None: it could not even be forked; ``finish`` says why."""

    def _start(self) -> None:
        try:
            # The child makes three system calls between fork and exec, and takes no lock that a thread may hold.
            self._popen = subprocess.Popen(self._argv, preexec_fn=self._wait_at_gate, **self._options)  # noqa: PLW1509
        except BaseException as error:  # noqa: BLE001 - handed to the thread that waits in finish()
            self._error = error
        finally:
            os.close(self._announce)

    def _wait_at_gate(self) -> None:
        """Runs in the child, between fork and exec."""
        os.close(self._go)
        os.write(self._announce, b"%d" % os.getpid())
        os.read(self._gate, 1)

    def go(self) -> None:
        """Open the gate: the child execs. From any thread."""
        os.write(self._go, b"g")

    def finish(self) -> "subprocess.Popen[Any]":
        """The started program, once its exec has happened.

        Raises UsageError if it could not be started; then nothing of it is left.
        """
        self._starter.join()
        for descriptor in (self._announced, self._gate, self._go):
            os.close(descriptor)
        if self._popen is None:
            raise UsageError(f"cannot start {self._argv[0]!r}: {self._why()}") from self._error
        return self._popen

    def _why(self) -> str:
        error, cwd = self._error, self._options.get("cwd")
        if not isinstance(error, OSError) or not error.strerror:
            return f"{error!r}; check its arguments, env and streams"
        if cwd is not None and error.filename == cwd:
            return f"its directory {os.fspath(cwd)!r} cannot be entered: {error.strerror}; check cwd"
        return f"{error.strerror}; check its path and permissions"
