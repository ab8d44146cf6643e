"""What the commands that look at ELF files have in common: ``coverage`` and ``decoders``."""

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, TypeVar

import attrs

from ubpx._errors import UbpxError
from ubpx.testing.plants import planted, plants_of
from ubpx.testing.program_text import BITS, ProgramText, read_text

Found = TypeVar("Found")


@attrs.frozen(kw_only=True)
class FileTool(Generic[Found]):
    """One command: what it finds in a file, and how it says so."""

    name: str
    """``python -m ubpx.testing.NAME``."""
    description: str
    arch_help: str
    look: Callable[[ProgramText], Found]
    is_wrong: Callable[[Found], bool]
    as_data: Callable[[Found], dict[str, Any]]
    """For JSON."""
    as_words: Callable[[Found], Iterable[str]]
    """For people."""

    def main(self, arguments: Sequence[str] | None) -> int:
        """The exit status: 0, 1 if something is wrong, 2 for usage."""
        chosen = self._parser().parse_args(arguments)
        wrong = False
        try:
            with planted(chosen.plant, self.name):
                for path in chosen.files:
                    found = self.look(read_text(path, chosen.arch))
                    wrong = wrong or self.is_wrong(found)
                    lines = [json.dumps(self.as_data(found))] if chosen.json else self.as_words(found)
                    sys.stdout.writelines(f"{line}\n" for line in lines)
                    sys.stdout.flush()
        except UbpxError as error:
            sys.stderr.write(f"ubpx: {error}\n")
            return 2
        return int(wrong)

    def _parser(self) -> argparse.ArgumentParser:
        parser = argparse.ArgumentParser(
            prog=f"python -m ubpx.testing.{self.name}",
            description=self.description,
            epilog=f"example: python -m ubpx.testing.{self.name} --json /usr/lib/x86_64-linux-gnu/libc.so.6",
        )
        faults = ", ".join(plants_of(self.name))
        parser.add_argument("files", nargs="+", metavar="FILE")
        parser.add_argument("--arch", choices=sorted(BITS), help=self.arch_help)
        parser.add_argument("--json", action="store_true", help="one object a line for each file")
        parser.add_argument("--plant", metavar="FAULT",
                            help=f"break the architecture layer on purpose; it must be found: {faults}")  # fmt: skip
        return parser
