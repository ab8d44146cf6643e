"""Addresses that are looked up against addresses that programs say themselves."""

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ubpx._errors import AmbiguousSymbol, NotExecutable, TargetGone, UnknownModule, UnknownSymbol, UnreadableModule
from ubpx.core.values import MappedRange
from ubpx.symbols import files

Start = Callable[..., Any]
Build = Callable[..., Path]

PLAIN = r"""
int counter = 3;
KEPT int add(int a, int b) { return a + b * counter; }
extern __typeof__(add) sum __attribute__((alias("add")));
static KEPT int hidden_away(int a) { return a * 7 + counter; }
int main(void) {
    tell("add", add); tell("sum", sum); tell("hidden_away", hidden_away); tell("main", main); tell("counter", &counter);
    wait_for_end();
    return 0;
}
"""

LINKAGES = {
    "pie": ("-pie", "-fPIE"),
    "fixed": ("-no-pie", "-fno-pie"),
    "static": ("-static", "-no-pie", "-fno-pie"),
    "static-pie": ("-static-pie", "-fPIE"),
    "one-segment": ("-no-pie", "-fno-pie", "-Wl,-z,noseparate-code"),
    "huge-pages": ("-pie", "-fPIE", "-Wl,-z,max-page-size=0x200000"),
}


def sizes(program: Path) -> dict[str, int]:
    """The second opinion: what nm says."""
    output = subprocess.run(["nm", "-S", program], capture_output=True, text=True, check=True, timeout=60).stdout
    return {line.split()[3]: int(line.split()[1], 16) for line in output.splitlines() if len(line.split()) == 4}


@pytest.mark.parametrize("linkage", LINKAGES)
def test_functions_are_where_the_program_says(build: Build, start: Start, linkage: str) -> None:
    """Invariant: for every kind of executable, name -> address is what the program prints, with the symbol's bounds."""
    path = build("plain", {"plain.c": PLAIN}, *LINKAGES[linkage])
    program = start(path)
    for name in ("add", "sum", "hidden_away", "main"):
        place = program.resolve(name)
        assert place.address == place.symbol_start == program.said[name]
        assert place.symbol_end == place.address + sizes(path)[name]
        assert place.name == f"plain:{name}"
        behind = program.resolve(f"plain:{name}+2")
        assert (behind.address, behind.symbol_start) == (place.address + 2, place.address)
        assert behind.name == f"plain:{name}+0x2"


@pytest.mark.parametrize("linkage", ["pie", "fixed", "static"])
def test_an_address_leads_to_its_function(build: Build, start: Start, linkage: str) -> None:
    """Invariant: an address inside a function gives the function's bounds, as int and as text."""
    program = start(build("plain", {"plain.c": PLAIN}, *LINKAGES[linkage]))
    start_of_main = program.said["main"]
    by_number, by_text = program.resolve(start_of_main + 5), program.resolve(f"{start_of_main + 5:#x}")
    assert by_number == by_text
    assert (by_number.name, by_number.symbol_start) == ("plain:main+0x5", start_of_main)
    assert program.resolve(program.said["add"]).name == "plain:add"


def test_data_and_unmapped_memory_are_refused(build: Build, start: Start) -> None:
    """Invariant: what is not executable is NotExecutable and carries the address, asked by name or by number."""
    program = start(build("plain", {"plain.c": PLAIN}))
    with pytest.raises(NotExecutable) as caught:
        program.resolve("counter")
    assert caught.value.address == program.said["counter"]
    for address in (0, program.said["counter"], 2**63, 2**64 - 1):
        with pytest.raises(NotExecutable):
            program.resolve(address)
    with pytest.raises(NotExecutable):
        program.resolve("main+0x7fffffff")


def test_a_wrong_name_is_answered_with_the_nearest(build: Build, start: Start) -> None:
    """Invariant: UnknownSymbol says what was asked, and the nearest names first; a library's name where it lives."""
    program = start(build("plain", {"plain.c": PLAIN}))
    with pytest.raises(UnknownSymbol) as caught:
        program.resolve("hiden_away+4")
    assert caught.value.spec == "hiden_away+4"
    assert caught.value.nearest[0] == "hidden_away"
    assert len(caught.value.nearest) == 3
    with pytest.raises(UnknownSymbol) as caught:
        program.resolve("getchar")
    assert caught.value.nearest[0] == "libc.so.6:getchar"
    with pytest.raises(UnknownModule) as refused:
        program.resolve("libv:write")
    assert refused.value.module == "libv"
    assert "libc.so.6" in refused.value.nearest


def test_a_stripped_program_has_no_names_but_its_functions_have_bounds(build: Build, start: Start) -> None:
    """Invariant: without symbols a name is unknown; unwind data say where an address's function starts and ends."""
    program = start(build("stripped", {"plain.c": PLAIN}, "-s"))
    with pytest.raises(UnknownSymbol):
        program.resolve("add")
    add = program.said["add"]
    place = program.resolve(add)
    assert (place.name, place.symbol_start) == (f"{add:#x}", add)
    assert place.gap is not None
    assert f"in a function without a name from {add:#x}" in place.gap
    assert place.symbol_end is not None
    inside = program.resolve(place.symbol_end - 1)
    assert (inside.name, inside.symbol_start, inside.symbol_end) == (f"{inside.address:#x}", add, place.symbol_end)
    assert program.resolve("libc:getchar").symbol_start


GAP = r"""
asm(".text\n.p2align 4\n.type padded, @function\npadded: ret\n.size padded, .-padded\n.skip 20, 0xcc\n"
    ".type behind, @function\nbehind: ret\n.size behind, .-behind\n");
extern char padded, behind;
int main(void) { tell("padded", &padded); tell("behind", &behind); wait_for_end(); return 0; }
"""


def test_an_address_in_no_function_is_in_a_gap_that_is_described(build: Build, start: Start) -> None:
    """Invariant: the gap's bounds and its neighbours are told; without symbols what unwind data know of them."""
    program = start(build("gap", {"gap.c": GAP}))
    first, last = program.said["padded"] + 1, program.said["behind"]
    place = program.resolve(first + 3)
    assert (place.symbol_start, place.symbol_end) == (None, None)
    said = f"from {first:#x} (the end of gap:padded) to {last:#x} (the start of gap:behind)"
    assert place.gap is not None
    assert said in place.gap
    bare = start(build("gap", {"gap.c": GAP}, "-s"))
    place = bare.resolve(bare.said["padded"] + 4)
    assert place.symbol_start is None
    assert place.gap is not None
    assert "a function without a name" in place.gap


def test_the_linkers_stubs_are_proved_from_their_sections_start(build: Build, start: Start) -> None:
    """Invariant: an entry of the PLT is inside a section that is decoded from its start."""
    stubs = 'int main(void) { tell("main", main); wait_for_end(); return getpid(); }'
    path = build("stubs", {"stubs.c": stubs}, "-no-pie", "-s")
    program = start(path)
    listed = subprocess.run(["readelf", "-SW", path], check=True, capture_output=True, text=True).stdout
    address, size = (int(field, 16) for field in re.search(r" \.plt +PROGBITS +(\w+) \w+ (\w+)", listed).groups())  # type: ignore[union-attr]
    place = program.resolve(address + 16)
    assert (place.symbol_start, place.symbol_end) == (address, address + size)


NESTED = r"""
asm(".text\n.type outer, @function\nouter: nop\n.type inner, @function\ninner: nop\nret\n.size inner, .-inner\n"
    "tag: nop\n.type table, @object\ntable: .quad 1\n.size table, .-table\nret\n.size outer, .-outer\n");
extern char outer, tag, table;
int main(void) { tell("outer", &outer); tell("tag", &tag); tell("table", &table); wait_for_end(); return 0; }
"""


@pytest.mark.parametrize("spec", ["outer", "inner", "tag", "outer+2"])
def test_a_function_inside_another_is_proved_from_the_outer_ones_start(build: Build, start: Start, spec: str) -> None:
    """Invariant: wherever in it, the outermost function is decoded; functions in it are entries, objects in it data."""
    program = start(build("nested", {"nested.c": NESTED}))
    place = program.resolve(spec)
    outer, table = program.said["outer"], program.said["table"]
    assert (place.symbol_start, place.symbol_end) == (outer, table + 9)
    assert place.entries == (outer + 1,)
    assert place.data == ((table, table + 8),)


TWIN = 'static KEPT int twin(int a) {{ return a + {0}; }}\nvoid tell_{1}(void) {{ tell("{1}", twin); }}\n'


@pytest.mark.contract("spec-7")
def test_two_static_functions_of_one_name_are_ambiguous(build: Build, start: Start) -> None:
    """Invariant: both addresses are listed, with the files that they come from; each works as an address."""
    sources = {
        "one.c": TWIN.format(1, "one"),
        "two.c": TWIN.format(2, "two"),
        "main.c": "int main(void) { tell_one(); tell_two(); wait_for_end(); }",
    }
    program = start(build("twins", sources))
    with pytest.raises(AmbiguousSymbol) as caught:
        program.resolve("twin")
    found = {re.search(r"\((.*)\)", text)[1]: int(text.split()[0], 16) for text in caught.value.candidates}  # type: ignore[index]
    assert found == {
        "twins:twin of one.c": program.said["one"],
        "twins:twin of two.c": program.said["two"],
    }
    assert [program.resolve(address).name for address in found.values()] == ["twins:twin"] * 2


ASSEMBLER = """
    .text
    .globl untyped
untyped:
    nop
    nop
inner:
    ret
    .globl sizeless
    .type sizeless, @function
sizeless:
    nop
    ret
    .globl after
after:
    ret
    .section .note.GNU-stack,"",@progbits
"""


def test_labels_of_assembler_are_symbols(build: Build, start: Start) -> None:
    """Invariant: NOTYPE symbols in code are found, and end, like functions without a size, at the next symbol."""
    text = """
    extern char untyped[], sizeless[], after[];
    int main(void) { tell("untyped", untyped); tell("sizeless", sizeless); tell("after", after); wait_for_end(); }
    """
    program = start(build("labels", {"main.c": text, "labels.S": ASSEMBLER}))
    said = program.said
    untyped, inner, sizeless = (program.resolve(name) for name in ("untyped", "inner", "sizeless"))
    assert (untyped.symbol_start, untyped.symbol_end) == (said["untyped"], said["untyped"] + 2)
    assert (inner.symbol_start, inner.symbol_end) == (said["untyped"] + 2, said["sizeless"])
    assert (sizeless.symbol_start, sizeless.symbol_end) == (said["sizeless"], said["after"])
    assert program.resolve(said["sizeless"] + 1).name == "labels:sizeless+0x1"


@pytest.mark.contract("spec-2")
def test_a_module_with_a_slash_is_one_file(build: Build, start: Start, tmp_path: Path) -> None:
    """Invariant: a path means the mapped file by device and inode: links lead to it, a copy does not."""
    path = build("plain", {"plain.c": PLAIN})
    program = start(path)
    link = tmp_path / "link:with+signs"
    link.symlink_to(path)
    copy = tmp_path / "plain"
    shutil.copy(path, copy)
    relative = os.path.relpath(path)
    for module in (path, link, relative if "/" in relative else f"./{relative}"):
        assert program.resolve(f"{module}:add").address == program.said["add"]
    for module in (copy, tmp_path / "nothing"):
        with pytest.raises(UnknownModule):
            program.resolve(f"{module}:add")


def may_read_map_files() -> bool:
    """CAP_SYS_ADMIN (21) or CAP_CHECKPOINT_RESTORE (40)."""
    effective = int(re.search(r"CapEff:\s*(\w+)", Path("/proc/self/status").read_text())[1], 16)  # type: ignore[index]
    return bool(effective & (1 << 21 | 1 << 40))


def without_map_files(proc: str, ranges: tuple[MappedRange, ...]) -> list[str]:
    """Where files are looked for by someone without these capabilities."""
    return [f"{proc}/root{ranges[0].path}", f"{proc}/exe"]


@pytest.mark.skipif(not may_read_map_files(), reason="/proc/PID/map_files needs CAP_CHECKPOINT_RESTORE")
def test_a_deleted_and_replaced_file_is_not_mistaken(
    build: Build, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Invariant: symbols come from the file that is mapped, or not at all, whatever stands at its path now."""
    path = tmp_path / "replaced"
    shutil.copy(build("plain", {"plain.c": PLAIN}, "-no-pie"), path)
    library = tmp_path / "libgone.so"
    shutil.copy(build("libgone.so", {"gone.c": "KEPT int gone(void) { return 1; }"}, "-shared", "-fPIC"), library)
    text = 'int main(int c, char **v) { tell("gone", dlsym(dlopen(v[1], 2), "gone")); wait_for_end(); }'
    program, loader = start(path), start(build("loader", {"main.c": text}), library)
    for file in (path, library):
        file.unlink()
        shutil.copy("/proc/self/exe", file)
    assert program.resolve("add").address == program.resolve("replaced:add").address == program.said["add"]
    with pytest.raises(UnknownModule):
        program.resolve(f"{path}:add")
    assert loader.resolve("libgone:gone").address == loader.said["gone"]
    monkeypatch.setattr(files, "_candidates", without_map_files)
    assert program.resolve("add").address == program.said["add"]
    with pytest.raises(UnreadableModule, match=str(library)):
        loader.resolve("libgone:gone")


def test_a_library_without_its_first_pages_is_found(build: Build, start: Start) -> None:
    """Invariant: the load bias needs no mapping of offset 0, and protections that split the code do not matter."""
    library = build("libcut.so", {"cut.c": "KEPT int cut(void) { return 1; }"}, "-shared", "-fPIC")
    text = """
    int main(int c, char **v) {
        Dl_info info;
        char *cut = dlsym(dlopen(v[1], 2), "cut"), *page = (char *)((long)main & -4096);
        dladdr(cut, &info);
        munmap(info.dli_fbase, 4096);
        mprotect(page, 4096, PROT_READ | PROT_WRITE | PROT_EXEC);
        tell("cut", cut); tell("main", main);
        wait_for_end();
    }
    """
    program = start(build("cutter", {"main.c": text}), library)
    ranges = [mapped for mapped in program.mappings() if mapped.path == str(library)]
    assert ranges[0].offset > 0
    assert program.resolve("libcut:cut").address == program.said["cut"]
    assert program.resolve("main").address == program.said["main"]


def test_a_library_loaded_twice_is_ambiguous(build: Build, start: Start) -> None:
    """Invariant: each copy of a library counts: both addresses are listed."""
    library = build("libtwo.so", {"two.c": "KEPT int two(void) { return 1; }"}, "-shared", "-fPIC", "-nostdlib")
    text = """
    int main(int c, char **v) {
        tell("first", dlsym(dlopen(v[1], RTLD_NOW), "two"));
        tell("second", dlsym(dlmopen(LM_ID_NEWLM, v[1], RTLD_NOW), "two"));
        wait_for_end();
    }
    """
    program = start(build("twice", {"main.c": text}), library)
    with pytest.raises(AmbiguousSymbol) as caught:
        program.resolve("libtwo:two")
    assert {int(text.split()[0], 16) for text in caught.value.candidates} == set(program.said.values())
    for address in program.said.values():
        place = program.resolve(address)
        assert (place.name, place.symbol_start) == ("libtwo.so:two", address)


def test_a_file_with_garbled_tables_is_refused_and_its_addresses_stand(
    build: Build, start: Start, tmp_path: Path
) -> None:
    """Invariant: a mapped file that is no sound ELF gives UnreadableModule for names, no symbol for addresses."""
    path = tmp_path / "garbled"
    shutil.copy(build("plain", {"plain.c": PLAIN}), path)
    data = bytearray(path.read_bytes())
    data[40:48] = b"\xff" * 7 + b"\x7f"  # e_shoff
    path.write_bytes(data)
    program = start(path)
    with pytest.raises(UnreadableModule):
        program.resolve("add")
    assert program.resolve(program.said["add"]).symbol_start is None
    assert program.resolve("libc:getchar").symbol_start


def test_a_process_that_has_ended_is_gone(build: Build, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Invariant: a process that ends between the list of its mappings and the look-up is TargetGone."""
    program = start(build("plain", {"plain.c": PLAIN}))
    mappings = program.mappings()
    monkeypatch.setattr(program, "mappings", lambda: mappings)
    program._popen.kill()
    program._popen.wait(30)
    with pytest.raises(TargetGone):
        program.resolve("main")


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="makes an i386 program, which x86_64 alone runs")
def test_a_32_bit_program_is_read_too(build: Build, start: Start) -> None:
    """Invariant: names lead to the right places in ELF32 as well, and its vdso's."""
    text = """
    .globl _start
_start:
    mov $4, %eax; mov $1, %ebx; mov $line, %ecx; mov $1, %edx; int $0x80
    mov $3, %eax; mov $0, %ebx; mov $line, %ecx; mov $1, %edx; int $0x80
    mov $1, %eax; int $0x80
    .type tail, @function
tail: ret
    .size tail, .-tail
    .data
line: .byte 10
    .section .note.GNU-stack,"",@progbits
    """
    path = build("small", {"small.S": text}, "-m32", "-nostdlib", "-static", "-no-pie")
    program = start(path)
    output = subprocess.run(["nm", path], capture_output=True, text=True, check=True, timeout=60).stdout
    expected = {line.split()[2]: int(line.split()[0], 16) for line in output.splitlines()}
    for name in ("_start", "tail"):
        assert program.resolve(name).address == expected[name]
    assert program.resolve("[vdso]:__kernel_vsyscall").symbol_start
    with pytest.raises(NotExecutable):
        program.resolve("line")
