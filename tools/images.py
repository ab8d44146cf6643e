"""Compile what ubpx-ptracepp ships as machine code to bytes: the guard, the turn of the fast lane, the look at a crowd.

    python tools/images.py            print the pages that belong beside the sources
    python tools/images.py --write    write them

Needs gcc with -m32 (gcc-multilib) and ld.
"""

import argparse
import hashlib
import subprocess
import tempfile
from base64 import b85encode
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "plugins" / "ptracepp" / "ubpx_ptracepp"
HEADER = PACKAGE / "system_call.h"
PIECES = {"guard": ("x86_64", "i386"), "lane": ("x86_64",), "crowd": ("x86_64",)}
"""By name: for which architectures. Each has a room of that name, with its source."""
FLAGS = [
    *("-Os", "-fpie", "-ffreestanding", "-fno-stack-protector", "-fno-asynchronous-unwind-tables"),
    *("-mgeneral-regs-only", "-fcf-protection=none", "-nostdlib", "-Wall", "-Wextra", "-Werror"),
]
COLUMNS = 100
EMULATIONS = {"x86_64": ("-m64", "elf_x86_64"), "i386": ("-m32", "elf_i386")}
SCRIPT = """SECTIONS {
  . = 0;
  .all : { *(.head) *(.text .text.*) *(.rodata .rodata.*) _GLOBAL_OFFSET_TABLE_ = .; }
  /DISCARD/ : { *(.comment) *(.note*) *(.eh_frame) *(.data .data.*) *(.bss) }
}
"""


def image(source: Path, architecture: str) -> bytes:
    """The code for one architecture, position-independent, its head first."""
    width, emulation = EMULATIONS[architecture]
    with tempfile.TemporaryDirectory() as name:
        room = Path(name)
        (room / "script").write_text(SCRIPT)
        subprocess.run(["gcc", width, *FLAGS, "-c", "-I", str(PACKAGE), str(source), "-o", str(room / "o")], check=True)
        link = ["ld", "-m", emulation, "-T", "script", "--oformat", "binary", "o", "-o", "image"]
        subprocess.run(link, check=True, cwd=room)
        return (room / "image").read_bytes()


def page(piece: str) -> str:
    """The module that holds the images of now's source."""
    source = PACKAGE / piece / f"{piece}.c"
    lines = [
        f'"""The compiled {piece}, by architecture: written by tools/images.py from {source.name}, not by hand."""',
        "",
    ]
    lines += ["from base64 import b85decode", "from collections.abc import Mapping", "from typing import Final", ""]
    lines += [f'SOURCE: Final = "{hashlib.sha256(HEADER.read_bytes() + source.read_bytes()).hexdigest()}"']
    lines += ['"""The SHA-256 of the source that was compiled."""', ""]
    lines += ["IMAGES: Final[Mapping[str, bytes]] = {"]
    for architecture in PIECES[piece]:
        lines += [f'    "{architecture}": b85decode(']
        text = b85encode(image(source, architecture)).decode()
        lines += [f'        "{text[at : at + COLUMNS]}"' for at in range(0, len(text), COLUMNS)]
        lines += ["    ),"]
    return "\n".join([*lines, "}", ""])


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write each code.py")
    write = parser.parse_args().write
    for piece in PIECES:
        if write:
            (PACKAGE / piece / "code.py").write_text(page(piece))
        else:
            print(page(piece), end="")


if __name__ == "__main__":
    main()
