"""Compile the guard, what traced programs run if their tracer is killed, to the bytes that ubpx-ptracepp ships.

    python tools/guard.py            print the page that belongs beside guard.c
    python tools/guard.py --write    write it

Needs gcc with -m32 (gcc-multilib) and ld.
"""

import argparse
import hashlib
import subprocess
import tempfile
from base64 import b85encode
from pathlib import Path

ROOM = Path(__file__).resolve().parent.parent / "plugins" / "ptracepp" / "ubpx_ptracepp" / "guard"
SOURCE, PAGE = ROOM / "guard.c", ROOM / "code.py"
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


def image(architecture: str) -> bytes:
    """The guard's code for programs of one architecture, position-independent, its head first."""
    width, emulation = EMULATIONS[architecture]
    with tempfile.TemporaryDirectory() as name:
        room = Path(name)
        (room / "script").write_text(SCRIPT)
        subprocess.run(["gcc", width, *FLAGS, "-c", str(SOURCE), "-o", str(room / "o")], check=True)
        link = ["ld", "-m", emulation, "-T", "script", "--oformat", "binary", "o", "-o", "image"]
        subprocess.run(link, check=True, cwd=room)
        return (room / "image").read_bytes()


def page() -> str:
    """The module that holds the images of now's source."""
    lines = ['"""The compiled guard, by architecture: written by tools/guard.py from guard.c, not by hand."""', ""]
    lines += ["from base64 import b85decode", "from collections.abc import Mapping", "from typing import Final", ""]
    lines += [f'SOURCE: Final = "{hashlib.sha256(SOURCE.read_bytes()).hexdigest()}"']
    lines += ['"""The SHA-256 of the source that was compiled."""', ""]
    lines += ["IMAGES: Final[Mapping[str, bytes]] = {"]
    for architecture in EMULATIONS:
        lines += [f'    "{architecture}": b85decode(']
        text = b85encode(image(architecture)).decode()
        lines += [f'        "{text[at : at + COLUMNS]}"' for at in range(0, len(text), COLUMNS)]
        lines += ["    ),"]
    return "\n".join([*lines, "}", ""])


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write code.py")
    if parser.parse_args().write:
        PAGE.write_text(page())
    else:
        print(page(), end="")


if __name__ == "__main__":
    main()
