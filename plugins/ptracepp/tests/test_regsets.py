"""Register sets of other processors are those of the kernel's headers, and are moved as this kernel moves them."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping
from ctypes import addressof, c_uint64
from pathlib import Path
from typing import Final

import pytest

from ubpx import PtraceFailed, UsageError
from ubpx.core.ubp import ARCHITECTURES, architecture
from ubpx_ptracepp.regsets import (
    AARCH64,
    AARCH64_CALL,
    CONVENTIONS,
    RISCV64,
    X86_64,
    X86_64_GENERAL,
    Convention,
    RegisterSet,
    fetch,
    store,
)
from ubpx_ptracepp.requests import PTRACE_DETACH, PTRACE_GETREGS, PTRACE_INTERRUPT, PTRACE_SEIZE, WAIT_THREAD, request

HEADERS = {"aarch64": Path("/usr/aarch64-linux-gnu/include"), "riscv64": Path("/usr/riscv64-linux-gnu/include")}
PACKAGES = {"aarch64": "linux-libc-dev-arm64-cross", "riscv64": "linux-libc-dev-riscv64-cross"}
OTHERS = pytest.mark.parametrize("convention", [AARCH64, RISCV64], ids=lambda each: each.architecture)

# What a register of ours is called in the kernel's structures, where that is not its name.
MEMBERS: Mapping[str, tuple[tuple[str, str], ...]] = {
    "struct user_pt_regs": ((r"x(\d+)", r"regs[\1]"),),
    "struct user_fpsimd_state": ((r"v(\d+)", r"vregs[\1]"),),
    "struct __riscv_d_ext_state": ((r"f(\d+)", r"f[\1]"),),
}


def headers_of(convention: Convention) -> list[str]:
    """Arguments by which gcc takes the other kernel's headers, and no others; the test is skipped without them."""
    name = convention.architecture
    if shutil.which("gcc") is None:
        pytest.skip("there is no gcc here")
    if not (HEADERS[name] / "asm" / "ptrace.h").exists():
        pytest.skip(f"the kernel's headers for {name} are not here; apt-get install {PACKAGES[name]}")
    built_in = subprocess.run(
        ["gcc", "-print-file-name=include"], capture_output=True, text=True, check=True
    ).stdout.strip()
    return ["-nostdinc", "-isystem", built_in, "-isystem", str(HEADERS[name])]


def member(registers: RegisterSet, name: str) -> str:
    """What the kernel calls it."""
    for pattern, replacement in MEMBERS.get(registers.kernel_type, ()):
        name = re.sub(f"^{pattern}$", replacement, name)
    return name


@OTHERS
def test_layouts_are_those_of_the_kernels_headers(convention: Convention, tmp_path: Path) -> None:
    """Invariant: place and size of every register, and the size of each set: both are LP64 and little-endian, too."""
    arguments = headers_of(convention)
    checked = [each for each in (convention.general, *convention.others) if each.kernel_type.startswith("struct")]
    expected = [(each.size, [(field.offset, field.size) for field in each.fields]) for each in checked]
    lines = ["#include <asm/ptrace.h>", "#include <stddef.h>", "int printf(const char *, ...);", "int main(void) {"]
    for each in checked:
        lines.append(f'printf("set %zu\\n", sizeof({each.kernel_type}));')
        for field in each.fields:
            place = member(each, field.name)
            size = f"sizeof((({each.kernel_type} *)0)->{place})"
            lines.append(f'printf("%zu %zu\\n", offsetof({each.kernel_type}, {place}), {size});')
    source = tmp_path / "layout.c"
    source.write_text("\n".join([*lines, "}"]))
    subprocess.run(["gcc", *arguments, "-c", "-o", tmp_path / "layout.o", source], check=True)
    subprocess.run(["gcc", "-o", tmp_path / "layout", tmp_path / "layout.o"], check=True)
    printed = subprocess.run([tmp_path / "layout"], capture_output=True, text=True, check=True).stdout
    found: list[tuple[int, list[tuple[int, int]]]] = []
    for line in printed.splitlines():
        if line.startswith("set "):
            found.append((int(line.removeprefix("set ")), []))
        else:
            at, occupied = map(int, line.split())
            found[-1][1].append((at, occupied))
    assert found == expected


_SPECIFIC: Final = 244
"""Where numbers begin that asm-generic/unistd.h leaves to each architecture."""


def numbers(definitions: Mapping[str, str]) -> Mapping[str, int]:
    """System calls by name; a definition may be another's name."""
    found = {}
    for name, value in definitions.items():
        meant = definitions.get(value, value)
        specific = re.fullmatch(r"\(__NR_arch_specific_syscall \+ (\d+)\)", meant)
        if not name.startswith("__NR_") or name in ("__NR_syscalls", "__NR_arch_specific_syscall"):
            continue
        found[name.removeprefix("__NR_")] = _SPECIFIC + int(specific[1]) if specific else int(meant)
    return found


@OTHERS
def test_system_calls_are_those_of_the_kernels_headers(convention: Convention) -> None:
    """Invariant: every number that the headers have; ours may know newer ones, behind theirs, or the architecture's."""
    defined = subprocess.run(
        ["gcc", *headers_of(convention), "-E", "-dM", "-x", "c", "-"],
        input="#include <asm/unistd.h>\n", capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    found = numbers(dict(re.findall(r"#define (__NR\w+) (.+)", defined)))
    assert len(found) > 250
    assert {name: convention.calls.get(name) for name in found} == found
    newest = max(found.values())
    newer = {name: number for name, number in convention.calls.items() if name not in found}
    assert all(number > newest or name.startswith("riscv_") for name, number in newer.items()), newer


def test_numbers_of_sets_are_those_of_the_kernels_headers() -> None:
    """Invariant: by elf.h of the other kernel."""
    names = {"NT_PRSTATUS": 1, "NT_PRFPREG": 2, "NT_ARM_TLS": 0x401, "NT_ARM_SYSTEM_CALL": 0x404}
    defined = subprocess.run(
        ["gcc", *headers_of(AARCH64), "-E", "-dM", "-x", "c", "-"],
        input="#include <linux/elf.h>\n", capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    found = dict(re.findall(r"#define (NT_\w+)\s+(\w+)", defined))
    assert {name: int(found[name], 0) for name in names} == names
    sets = [each for convention in CONVENTIONS.values() for each in (convention.general, *convention.others)]
    assert {each.note for each in (*sets, AARCH64_CALL)} == set(names.values())


@pytest.mark.parametrize("convention", CONVENTIONS.values(), ids=CONVENTIONS)
def test_a_convention_speaks_of_registers_that_are_there(convention: Convention) -> None:
    """Invariant: of the general set, which is what the core calls a thread's words, and each once."""
    names = [field.name for field in convention.general.fields]
    assert len(set(names)) == len(names)
    spoken = [convention.number, convention.result, *convention.arguments, *convention.parameters, *convention.returned]
    assert set(spoken) <= set(names)
    assert convention.link is None or convention.link in names
    assert len(convention.arguments) == 6
    if convention.architecture in ARCHITECTURES:
        described = architecture(convention.architecture)
        assert list(described.register_names) == names
        assert {convention.calls["rt_sigreturn"]} == described.sigreturn_calls
        regs = {name: place for place, name in enumerate(names)}
        found = [described.argument(place, regs, _NOTHING) for place in range(len(convention.parameters))]
        assert found == [regs[name] for name in convention.parameters]


def test_values_go_in_and_out() -> None:
    """Invariant: other registers and what is reserved stay; a name or a value that cannot be is refused."""
    vectors = AARCH64.others[0]
    before = bytes(range(256)) * 2 + bytes(range(16))
    after = vectors.changed(before, {"v1": 2**128 - 1, "fpcr": 7})
    assert after[16:32] == b"\xff" * 16
    assert (after[:16], after[32:516], after[520:]) == (before[:16], before[32:516], before[520:])
    assert vectors.values(after)["fpcr"] == 7
    assert "fpcr" not in vectors.values(after[:512])
    with pytest.raises(UsageError, match="has no register 'x0'"):
        vectors.changed(before, {"x0": 1})
    with pytest.raises(UsageError, match="no value for fpsr"):
        vectors.changed(before, {"fpsr": 1 << 32})


class _Nothing:
    """A Memory in which nothing is mapped."""

    def read(self, address: int, size: int) -> bytes:
        raise AssertionError(f"{size} bytes at {address:#x} were read")

    def write(self, address: int, data: bytes) -> None:
        raise AssertionError(f"{data!r} was written at {address:#x}")

    patch = write


_NOTHING = _Nothing()


# On this machine ----------------------------------------------------------------------------


@pytest.fixture
def stopped() -> Iterator[int]:
    """A program of this machine that is traced, and stopped."""
    with subprocess.Popen(["sleep", "60"]) as program:
        assert request(PTRACE_SEIZE, program.pid)
        assert request(PTRACE_INTERRUPT, program.pid)
        assert os.waitpid(program.pid, WAIT_THREAD)[0] == program.pid
        yield program.pid
        program.kill()


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="compares with PTRACE_GETREGS, which x86_64 has")
def test_the_general_set_is_what_getregs_gives(stopped: int) -> None:
    """Invariant: by the same words, in the same order; what is stored is there."""
    words = (c_uint64 * (X86_64_GENERAL.size // 8))()
    assert request(PTRACE_GETREGS, stopped, 0, addressof(words))
    data = fetch(stopped, X86_64_GENERAL)
    assert data == bytes(words)
    values = X86_64_GENERAL.values(data)
    assert values["rip"] == words[16]
    assert store(stopped, X86_64_GENERAL, X86_64_GENERAL.changed(data, {"r12": 0x1234}))
    assert X86_64_GENERAL.values(fetch(stopped, X86_64_GENERAL) or b"")["r12"] == 0x1234
    assert store(stopped, X86_64_GENERAL, data)
    assert request(PTRACE_DETACH, stopped)
    assert X86_64.calls["read"] == 0


def test_a_set_that_is_not_there_is_an_error(stopped: int) -> None:
    """Invariant: it is the kernel's, with its number; of a thread that is gone there is none."""
    missing = AARCH64_CALL if os.uname().machine != "aarch64" else RegisterSet(
        note=0x9999, kernel_type="none", fields=(), size=8
    )  # fmt: skip
    with pytest.raises(PtraceFailed, match="PTRACE_GETREGSET"):
        fetch(stopped, missing)
    os.kill(stopped, signal.SIGKILL)
    os.waitpid(stopped, WAIT_THREAD)
    assert fetch(stopped, X86_64_GENERAL) is None
    assert not store(stopped, X86_64_GENERAL, bytes(X86_64_GENERAL.size))
