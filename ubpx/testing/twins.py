"""Two runs of one program that may differ in nothing: one by itself, one with all of its code probed."""

import contextlib
import ctypes
import logging
import os
import stat
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Self

import attrs

from ubpx._errors import UbpxError, UsageError
from ubpx.core.clients import Client
from ubpx.core.desk import probe_code
from ubpx.core.ports import ProcessView
from ubpx.core.sleepers import CodeProbe
from ubpx.core.values import parse_maps
from ubpx.hookspecs import hookimpl
from ubpx.symbols.code import CodeMap, read_code_map
from ubpx.symbols.elf import ElfHeaders, ImageReader, read_headers
from ubpx.symbols.modules import Module, load_biases, modules_of
from ubpx.symbols.rseq import RestartableSequence, read_sequences
from ubpx.target import Target, spawn
from ubpx.testing.orphans import Orphans

_ADDR_NO_RANDOMIZE: Final = 0x0040000
_QUERY: Final = 0xFFFF_FFFF
_LAST_WORDS_S: Final = 10.0
"""How long others may still write after the program has ended."""
_AFTER_THE_END_S: Final = 1.0
"""How long it may take to read what those wrote who were ended."""
_HANDLER_S: Final = 60.0
_DELETED: Final = " (deleted)"


@attrs.define(kw_only=True)
class Run:
    """What one run of the program showed."""

    status: int | None = None
    """As ``Popen.returncode``; None if it had to be killed."""
    out: bytes = b""
    err: bytes = b""
    failure: str = ""
    """Why the run was ended from outside."""
    problems: list[str] = attrs.field(factory=list)
    """What else went wrong; of a probed run what ubpx logged, too."""
    seconds: dict[str, float] = attrs.field(factory=dict)


@attrs.define(kw_only=True)
class ProbedRun(Run):
    """And what the probes counted."""

    instructions: int = 0
    probed: int = 0
    hits: int = 0
    undecoded: int = 0
    refused: Counter[str] = attrs.field(factory=Counter)
    strategies: Counter[str] = attrs.field(factory=Counter)
    modules: list[str] = attrs.field(factory=list)
    not_probed: dict[str, str] = attrs.field(factory=dict)


@contextlib.contextmanager
def fixed_layout() -> Iterator[None]:
    """Programs that this thread starts meanwhile find their addresses not randomised (personality(2)).

    Raises UsageError where the kernel does not allow that.
    """
    personality = ctypes.CDLL(None, use_errno=True).personality
    before = personality(ctypes.c_ulong(_QUERY))
    if before < 0 or personality(ctypes.c_ulong(before | _ADDR_NO_RANDOMIZE)) < 0:
        raise UsageError(f"addresses stay randomised ({os.strerror(ctypes.get_errno())}), so no two runs are equal")
    try:
        yield
    finally:
        personality(ctypes.c_ulong(before))


class _Streams:
    """The ends of a program's streams; what it writes is kept."""

    def __init__(self, stdin: str) -> None:
        self._input: Final = open(stdin, "rb")  # noqa: SIM115 - closed in __exit__
        self._pipes: Final = (os.pipe(), os.pipe())
        self._kept: Final = (bytearray(), bytearray())
        self._readers: Final = [
            threading.Thread(target=self._read, args=(pipe[0], kept), daemon=True)
            for pipe, kept in zip(self._pipes, self._kept, strict=True)
        ]

    @property
    def options(self) -> Mapping[str, Any]:
        """As Popen takes them."""
        return {"stdin": self._input, "stdout": self._pipes[0][1], "stderr": self._pipes[1][1]}

    def started(self) -> None:
        """The program has its ends: only others' writing keeps the pipes open now."""
        for _, end in self._pipes:
            os.close(end)
        for reader in self._readers:
            reader.start()

    def ended(self, patience: float) -> bool:
        """Whether nobody writes any more, children of the program included; waits so many seconds for that."""
        deadline = time.monotonic() + patience
        for reader in self._readers:
            reader.join(max(deadline - time.monotonic(), 0))
        return not any(reader.is_alive() for reader in self._readers)

    @property
    def kept(self) -> tuple[bytes, bytes]:
        """What was written until now."""
        return bytes(self._kept[0]), bytes(self._kept[1])

    @staticmethod
    def _read(descriptor: int, kept: bytearray) -> None:
        while part := os.read(descriptor, 1 << 16):
            kept += part
        os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._input.close()


def check_input(path: str) -> None:
    """Raises UsageError unless two programs, one after the other, can read the same there."""
    try:
        found = os.stat(path)
        if stat.S_ISREG(found.st_mode):
            open(path, "rb").close()
            return
    except OSError as error:
        raise UsageError(f"cannot read stdin from {path!r}: {error.strerror}; name a file that can be read") from error
    if not stat.S_ISCHR(found.st_mode) or found.st_rdev != os.stat(os.devnull).st_rdev:
        raise UsageError(f"cannot read stdin from {path!r} twice: it is no regular file; save its contents in one")


def run_plain(argv: Sequence[str], *, stdin: str, timeout: float) -> Run:
    """By itself, in a session of its own. Raises UsageError if it cannot be started."""
    run = Run()
    with _Streams(stdin) as streams, Orphans() as orphans:
        start = time.monotonic()
        try:
            popen = subprocess.Popen(argv, start_new_session=True, **streams.options)
        except OSError as error:
            raise UsageError(f"cannot start {argv[0]!r}: {error.strerror}; check its path and permissions") from error
        streams.started()
        try:
            run.status = popen.wait(timeout)
        except subprocess.TimeoutExpired:
            run.failure = f"not over after {timeout:g} s; killed"
        finally:
            if popen.returncode is None:
                popen.kill()
                popen.wait()
        _collect(run, streams, orphans)
        run.seconds["run"] = time.monotonic() - start
    return run


def _collect(run: Run, streams: _Streams, orphans: Orphans) -> None:
    """What the program has written, and then the end of whatever it has left."""
    if run.failure:
        orphans.end()
    if not streams.ended(_LAST_WORDS_S):
        run.problems.append(
            f"{_LAST_WORDS_S:g} s after its end what the program has left still had its output open; it was ended"
        )
    if left := orphans.end():
        run.problems.append(f"these of its processes cannot be ended: {', '.join(map(str, sorted(left)))}")
    if not streams.ended(_AFTER_THE_END_S):
        run.problems.append("somebody that is no child of it still has its output open; what that writes is missing")
    run.out, run.err = streams.kept


def run_probed(argv: Sequence[str], *, objects: str, first_hits: int | None, stdin: str, timeout: float) -> ProbedRun:
    """With every instruction of the main program, or of ``all`` objects, probed. Raises UsageError, NoTracer."""
    run = ProbedRun()
    with _Streams(stdin) as streams, _listening(run), Orphans() as orphans:
        start = time.monotonic()
        target = spawn(argv, deadline=_HANDLER_S, **streams.options)
        orphans.spare_all_but(target.pid)  # the tracer has helpers
        streams.started()
        try:
            prober = _Prober(run, main_only=objects == "main", first_hits=first_hits)
            client = target.client("torture", hooks=prober)
            prober.probe_all(client, target.pid)
            armed = time.monotonic()
            run.status = _wait(target, run, timeout)
        finally:
            _end(target)
        _collect(run, streams, orphans)
        prober.sum_up()
        run.seconds.update(arming=armed - start, run=time.monotonic() - armed)
    return run


def _wait(target: Target, run: ProbedRun, timeout: float) -> int | None:
    try:
        status = target.wait(timeout)
    except UsageError:
        raise
    except UbpxError as error:
        run.failure = str(error)
        return None
    if status is None:
        run.failure = f"not over after {timeout:g} s; killed"
    return status


def _end(target: Target) -> None:
    """Whatever went wrong, the program does not outlive this, and nobody waits for ever."""
    popen = target.popen
    if popen is not None and popen.poll() is None:
        popen.kill()
    ending = threading.Thread(target=target.detach, daemon=True)
    ending.start()
    ending.join(_LAST_WORDS_S)


@contextlib.contextmanager
def _listening(run: ProbedRun) -> Iterator[None]:
    """Keeps what ubpx complains of."""

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told = f": {record.exc_info[1]!r}" if record.exc_info else ""
            run.problems.append(record.getMessage() + told)

    logger, handler = logging.getLogger("ubpx"), Kept(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


class _Prober:
    """The client: probes each file with code when it is there, those that come later too."""

    def __init__(self, run: ProbedRun, *, main_only: bool, first_hits: int | None) -> None:
        self._run: Final = run
        self._main_only: Final = main_only
        self._first_hits: Final = first_hits
        self._probes: Final[list[CodeProbe]] = []
        self._armed: Final[set[tuple[str, int]]] = set()
        """By path and load bias: what is probed of the present program."""

    def probe_all(self, client: Client, pid: int) -> None:
        """What is loaded already."""
        for module in modules_of(parse_maps(Path(f"/proc/{pid}/maps").read_text())):
            self._probe(client, pid, module)

    @hookimpl
    def ubpx_module_loaded(self, client: Client, process: ProcessView, path: str) -> None:
        """One more, or one of another program's."""
        for module in modules_of(process.mappings()):
            if module.path == path.removesuffix(_DELETED):
                self._probe(client, process.pid, module)

    @hookimpl
    def ubpx_module_unloaded(self, path: str) -> None:
        """It may come again."""
        self._armed.difference_update({each for each in self._armed if each[0] == path.removesuffix(_DELETED)})

    @hookimpl
    def ubpx_process_execed(self) -> None:
        """All of it may come again."""
        self._armed.clear()

    def _probe(self, client: Client, pid: int, module: Module) -> None:
        if not module.path.startswith("/") or (self._main_only and not _is_main(pid, module)):
            return  # the vdso is not probed
        try:
            headers, code, sequences = _read(module.path)
            for bias in load_biases(module, headers):
                if (module.path, bias) not in self._armed:
                    self._armed.add((module.path, bias))
                    ranges = [range(each.start + bias, each.end + bias) for each in code.ranges]
                    atomic = [range(each.start + bias, each.end + bias) for each in sequences]
                    self._probes.append(probe_code(client, ranges, first_hits=self._first_hits, sequences=atomic))
                    self._run.modules.append(module.path)
        except (UbpxError, OSError) as error:
            self._run.not_probed[module.path] = str(error)

    def sum_up(self) -> None:
        """Everything counted, into the run's record."""
        run = self._run
        for probe in self._probes:
            run.instructions += probe.instructions
            run.probed += probe.probed
            run.hits += probe.hits
            run.undecoded += probe.undecoded
            run.refused += probe.refused
            run.strategies += probe.strategies


def _is_main(pid: int, module: Module) -> bool:
    return os.readlink(f"/proc/{pid}/exe").removesuffix(_DELETED) == module.path


@lru_cache(maxsize=256)
def _read(path: str) -> tuple[ElfHeaders, CodeMap, Sequence[RestartableSequence]]:
    with Path(path).open("rb") as stream:
        reader = ImageReader(stream, path)
        headers = read_headers(reader)
        return headers, read_code_map(reader, headers), read_sequences(reader, headers)
