"""Names with several meanings: versions, and functions that choose their implementation at run time."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ubpx._errors import AmbiguousSymbol, UnboundIfunc, UnknownSymbol

Start = Callable[..., Any]
Build = Callable[..., Path]

VERSIONED = """
KEPT int old_answer(void) { return 1; }
KEPT int new_answer(void) { return 2; }
KEPT int only_old(void) { return 3; }
KEPT int first_lost(void) { return 4; }
KEPT int second_lost(void) { return 5; }
KEPT int plain(void) { return 6; }
__asm__(".symver old_answer, answer@V_1");
__asm__(".symver new_answer, answer@@V_2");
__asm__(".symver only_old, retired@V_1");
__asm__(".symver first_lost, lost@V_1");
__asm__(".symver second_lost, lost@V_2");
"""
SCRIPT = "V_1 { global: plain; }; V_2 { } V_1;"

ASKING = """
int main(int c, char **v) {
    void *library = dlopen(v[1], RTLD_NOW);
    tell("answer@V_1", dlvsym(library, "answer", "V_1"));
    tell("answer@V_2", dlvsym(library, "answer", "V_2"));
    tell("answer", dlsym(library, "answer"));
    tell("retired@V_1", dlvsym(library, "retired", "V_1"));
    tell("plain", dlsym(library, "plain"));
    wait_for_end();
}
"""


@pytest.mark.parametrize("strip", [(), ("-s",)], ids=["full", "stripped"])
@pytest.mark.contract("spec-4")
def test_a_version_is_chosen_as_the_dynamic_linker_chooses(build: Build, start: Start, strip: tuple[str, ...]) -> None:
    """Invariant: @VERSION picks that version, no version the default one, and a hidden one only if it is alone."""
    sources = {"versioned.c": VERSIONED, "script": SCRIPT}
    flags = ("-shared", "-fPIC", "-Wl,--version-script=script", "-Wl,-soname,libversioned.so.1")
    program = start(build("asking", {"main.c": ASKING}), build("libversioned-0.9.so", sources, *flags, *strip))
    said = program.said
    for spec in ("answer@V_1", "answer@V_2", "answer", "retired@V_1", "plain"):
        assert program.resolve(f"libversioned:{spec}").address == said[spec]
    assert program.resolve("libversioned.so.1:answer@@V_2").address == said["answer"]
    assert program.resolve("libversioned:plain@V_1").address == said["plain"]
    retired = program.resolve("libversioned-0.9.so:retired")
    assert (retired.address, retired.name) == (said["retired@V_1"], "libversioned.so.1:retired@V_1")
    with pytest.raises(UnknownSymbol) as caught:
        program.resolve("libversioned:answer@V_3")
    assert set(caught.value.nearest) >= {"answer@V_1", "answer@@V_2"}
    with pytest.raises(UnknownSymbol):
        program.resolve("libversioned:answer@@V_1")
    with pytest.raises(AmbiguousSymbol) as ambiguous:
        program.resolve("libversioned:lost")
    assert len(ambiguous.value.candidates) == 2


CHOOSING = """
static KEPT int chosen_plain(int a) { return a + 1; }
static KEPT int chosen_fast(int a) { return a + 2; }
static void *resolve_chosen(void) { return chosen_fast; }
int chosen(int a) __attribute__((ifunc("resolve_chosen")));
"""

LINKAGES = {
    "pie": ("-pie", "-fPIE"),
    "fixed": ("-no-pie", "-fno-pie"),
    "static": ("-static", "-no-pie", "-fno-pie"),
    "i386-pie": ("-m32", "-pie", "-fPIE"),
    "i386-fixed": ("-m32", "-no-pie", "-fno-pie"),
    "i386-static": ("-m32", "-static", "-no-pie", "-fno-pie"),
}


@pytest.mark.parametrize("linkage", LINKAGES)
@pytest.mark.contract("spec-5")
def test_an_ifunc_of_the_program_is_its_implementation(build: Build, start: Start, linkage: str) -> None:
    """Invariant: an IFUNC's place is the function that runs, with that function's bounds, not its resolver."""
    text = (
        CHOOSING
        + """
    int main(int c, char **v) {
        tell("fast", chosen_fast); tell("resolver", resolve_chosen); chosen(c); wait_for_end();
    }
    """
    )
    program = start(build("chooser", {"main.c": text}, *LINKAGES[linkage]))
    place = program.resolve("chosen")
    assert place.address == place.symbol_start == program.said["fast"]
    assert place.symbol_end == program.resolve("chosen_fast").symbol_end
    assert program.resolve("chosen+3").address == place.address + 3
    assert program.resolve(program.said["resolver"]).name in {"chooser:chosen[resolver]", "chooser:resolve_chosen"}


@pytest.mark.parametrize("bits", [64, 32])
@pytest.mark.parametrize("binding", ["now", "lazy"])
@pytest.mark.contract("spec-5")
def test_an_ifunc_of_a_library_is_what_the_programs_got_holds(
    build: Build, start: Start, binding: str, bits: int
) -> None:
    """Invariant: another module's GOT word tells the implementation, in a stripped library too."""
    library = build("libchoosing.so", {"choosing.c": CHOOSING}, f"-m{bits}", "-shared", "-fPIC", "-s")
    text = """
    int chosen(int a);
    int main(int c, char **v) {
        chosen(c); tell("chosen", dlsym(RTLD_DEFAULT, "chosen")); wait_for_end();
    }
    """
    program = start(build("user", {"main.c": text}, library, f"-m{bits}", f"-Wl,-rpath,{library.parent},-z,{binding}"))
    place = program.resolve("libchoosing:chosen")
    assert place.address == place.symbol_start == program.said["chosen"]
    assert place.symbol_end is not None
    assert 0 < place.symbol_end - place.address <= 16


def test_an_ifunc_that_nobody_has_bound_is_refused_with_candidates(build: Build, start: Start) -> None:
    """Invariant: where no GOT word has an answer (a lazy slot before its call too), the error names candidates."""
    library = build("libunbound.so", {"choosing.c": CHOOSING}, "-shared", "-fPIC")
    text = "int chosen(int a); int main(int c, char **v) { if (c > 5) chosen(c); wait_for_end(); }"
    program = start(build("idle", {"main.c": text}, library, f"-Wl,-rpath,{library.parent},-z,lazy"))
    with pytest.raises(UnboundIfunc) as caught:
        program.resolve("libunbound:chosen")
    assert caught.value.candidates == ("libunbound.so:chosen_fast", "libunbound.so:chosen_plain")
    assert program.resolve(caught.value.candidates[0]).symbol_start


def test_a_function_bound_to_the_vdso_is_there(build: Build, start: Start) -> None:
    """Invariant: libc's time() is the kernel's own where libc has bound it so, and has the vdso's bounds."""
    text = (
        'int main(int c, char **v) { time_t t = time(0); tell("time", dlsym(RTLD_DEFAULT, "time")); wait_for_end(); }'
    )
    program = start(build("clock", {"main.c": text}, "-Wl,-z,now"))
    place = program.resolve("libc:time")
    assert place.address == program.said["time"]
    mapped = next(mapped for mapped in program.mappings() if place.address in mapped)
    if mapped.path == "[vdso]":
        assert place.symbol_start == place.address
        assert program.resolve(place.address + 1).name == "linux-vdso.so.1:time+0x1"


PYTHON = """
import ctypes, sys
for name in ("write", "strlen", "memcpy", "getpid", "malloc"):
    print(f"{name}={ctypes.cast(getattr(ctypes.CDLL(None), name), ctypes.c_void_p).value:#x}", end=" ")
print(f"Py_IncRef={ctypes.cast(ctypes.pythonapi.Py_IncRef, ctypes.c_void_p).value:#x}", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def python(start: Start) -> Any:
    """A python3 that has said where some functions are."""
    return start(sys.executable, "-c", PYTHON)


@pytest.mark.contract("spec-3", "spec-5")
def test_libc_of_a_running_python(python: Any) -> None:
    """Invariant: libc's functions, IFUNCs among them, are where dlsym finds them, by each of libc's names."""
    for name in ("write", "strlen", "memcpy", "getpid", "malloc"):
        for module in ("libc", "libc.so.6"):
            place = python.resolve(f"{module}:{name}")
            assert place.address == place.symbol_start == python.said[name]
            assert place.name == f"libc.so.6:{name}"
            assert place.symbol_end - place.address < 10_000
    assert python.resolve(python.said["write"] + 4).name == "libc.so.6:write+0x4"


def test_python_itself(python: Any) -> None:
    """Invariant: the interpreter's functions are found, in its library or in its executable."""
    module = Path(python.resolve(python.said["Py_IncRef"]).name.partition(":")[0]).name
    assert python.resolve(f"{module}:Py_IncRef").address == python.said["Py_IncRef"]
    assert python.resolve("_start").symbol_start


def test_every_exported_function_of_libc_agrees_with_nm(python: Any) -> None:
    """Invariant: for all names that libc exports, nm's address (of the default version) is ours."""
    libc = next(mapped.path for mapped in python.mappings() if "/libc.so.6" in mapped.path)
    command = ["nm", "-D", "--defined-only", "--with-symbol-versions", libc]
    output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    rows = [line.split() for line in output.splitlines()]
    expected = {name: int(address, 16) for address, kind, name in rows if kind in "TW" and "@" in name}
    bias = python.resolve("libc:write").address - expected["write@@GLIBC_2.2.5"]
    assert len(expected) > 1000
    for name, address in expected.items():
        assert python.resolve(f"libc.so.6:{name}").address == address + bias, name
