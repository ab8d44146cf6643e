"""The disassemblers: which is taken, and what they answer."""

import subprocess
import sys
from pathlib import Path

import pytest

import ubpx.core.ubp
from ubpx._errors import UsageError
from ubpx.core.ubp import ARCHITECTURES, architecture
from ubpx.core.ubp.decode import CapstoneDecoder, Decoder, IcedDecoder, default_decoder
from ubpx.core.ubp.i386 import I386
from ubpx.core.ubp.x86_64 import X86_64

ROOT = Path(ubpx.core.ubp.__file__).parents[3]


def test_no_disassembler_is_loaded_at_import() -> None:
    """Invariant: importing the layer loads no disassembler."""
    check = "import sys, ubpx.core.ubp; print({'iced_x86', 'capstone'} & set(sys.modules))"
    found = subprocess.run(
        [sys.executable, "-W", "error", "-c", check], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "set()"


def test_iced_is_preferred() -> None:
    """Invariant: the fastest decoder that is installed is taken."""
    assert isinstance(default_decoder(), IcedDecoder)


def test_capstone_serves_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Invariant: a machine without a wheel of iced-x86 can analyse."""
    monkeypatch.setitem(sys.modules, "iced_x86", None)
    assert isinstance(default_decoder(), CapstoneDecoder)


def test_no_disassembler_at_all_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Invariant: an error says what to do next."""
    monkeypatch.setitem(sys.modules, "iced_x86", None)
    monkeypatch.setitem(sys.modules, "capstone", None)
    with pytest.raises(UsageError, match="pip install capstone"):
        default_decoder()


def test_factory_knows_both_modes_and_says_so() -> None:
    """Invariant: an unknown architecture is refused with the names of the known ones."""
    assert isinstance(architecture("x86_64"), X86_64)
    assert isinstance(architecture("i386"), I386)
    with pytest.raises(UsageError, match=f"no architecture 'vax'; there is {', '.join(sorted(ARCHITECTURES))}"):
        architecture("vax")


def test_register_names_are_those_of_user_regs_struct(x86: X86_64) -> None:
    """Invariant: 27 words, r15 first, as PTRACE_GETREGS fills them."""
    assert len(set(x86.register_names)) == len(x86.register_names) == 27
    assert x86.register_names.index(x86.pc_name) * 8 == 128
    assert x86.register_names.index("rsp") * 8 == 152


@pytest.mark.parametrize(
    ("text", "shown"),
    [("55", "push rbp"), ("f3 0f 1e fa", "endbr64"), ("e8 fb 0f 00 00", "call 0x2000"), ("c3", "ret")],
)
def test_text_is_for_people(decoder: Decoder, text: str, shown: str) -> None:
    """Invariant: both decoders show Intel syntax with absolute branch targets in C's hexadecimal."""
    decoded = decoder.decode(bytes.fromhex(text), 0x1000)
    assert decoded is not None
    assert decoded.text == shown


def test_address_at_the_end_of_the_address_space(decoder: Decoder) -> None:
    """Invariant: every 64-bit address can be given."""
    decoded = decoder.decode(b"\x90", 2**64 - 1)
    assert decoded is not None
    assert decoded.length == 1
