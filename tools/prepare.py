"""Prepare .venv: build every distribution as a wheel and install the wheels.

Wheels, not an editable install, so that what runs is what users get: plugins are found by their
entry points or not at all, and a file missing from a wheel is missed here too. Safe to run before every
make target: it compares hashes of the sources, and does nothing (in well under a second) when
nothing changed. Needs the standard library alone.
"""

import argparse
import contextlib
import fcntl
import hashlib
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
VENV_PYTHON = VENV / "bin" / "python"
STATE = VENV / "ubpx-setup.json"
WHEELS = ROOT / "build" / "wheels"
DEBIAN_PACKAGES = (
    "binutils", "g++", "gcc", "gdb", "libc6-arm64-cross", "libc6-dev", "libc6-riscv64-cross",
    "linux-libc-dev-arm64-cross", "linux-libc-dev-riscv64-cross", "make",
)  # fmt: skip
BENCH_DEBIAN_PACKAGES = ("gdbserver", "lldb")
BENCH_PACKAGES = ("frida", "libdebug", "python-ptrace")
"""What ubpx is measured against, in an environment of its own: none of ours depends on any of them there."""
BENCH_VENV = ROOT / "build" / "bench" / "venv"
BUILD_TOOLS = ("hatchling>=1.26",)


class Distribution(NamedTuple):
    """One directory with a pyproject.toml, and what its wheel is made of."""

    name: str
    directory: Path
    extras: tuple[str, ...]
    requirements: str
    """A hash of everything that decides what else must be installed."""
    sources: str
    """A hash of everything that goes into the wheel."""


def main(arguments: Sequence[str]) -> None:
    """Bring .venv up to date."""
    parser = argparse.ArgumentParser(prog="tools/setup", description="Prepare .venv.")
    parser.add_argument("--dev", action="store_true", help="with the tools that test and lint need")
    parser.add_argument("--debian", action="store_true", help="with the Debian packages that tests/real and bench need")
    parser.add_argument("--bench", action="store_true", help="with the peers of bench, as far as they can be had")
    options = parser.parse_args(arguments)
    with only_one_at_a_time():
        if options.debian:
            install_debian_packages()
        if not venv_works():
            create_venv()
        install(wants_tools=options.dev)
        if options.bench:
            install_peers()


@contextlib.contextmanager
def only_one_at_a_time() -> Iterator[None]:
    """Two makes in one checkout wait for each other."""
    (ROOT / "build").mkdir(exist_ok=True)
    with (ROOT / "build" / "setup.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def venv_works() -> bool:
    """Whether .venv is there and its interpreter still runs."""
    if not VENV_PYTHON.exists():
        return False
    probe = [str(VENV_PYTHON), "-c", "import sys, pip; sys.exit(sys.version_info < (3, 11))"]
    return subprocess.run(probe, stderr=subprocess.DEVNULL, check=False).returncode == 0


def create_venv() -> None:
    """A new .venv with pip in it, also where Debian has split ensurepip off (python3-venv)."""
    say(f"creating {VENV} with {sys.executable} ({platform.python_version()})")
    shutil.rmtree(VENV, ignore_errors=True)
    if importlib.util.find_spec("ensurepip"):
        run(sys.executable, "-m", "venv", VENV)
    elif importlib.util.find_spec("venv") and importlib.util.find_spec("pip"):
        run(sys.executable, "-m", "venv", "--without-pip", VENV)
        run(sys.executable, "-m", "pip", "--python", VENV_PYTHON, "install", "-qq", "pip")
    else:
        apt_get_install(["python3-venv"])
        run(sys.executable, "-m", "venv", VENV)


def install(*, wants_tools: bool) -> None:
    """Build and install what changed since the last time."""
    known: dict[str, Any] = json.loads(STATE.read_text()) if STATE.exists() else {}
    distributions = find_distributions()
    wants_tools = wants_tools or known.get("tools", False)
    requirements = {each.name: each.requirements for each in distributions}
    same_requirements = known.get("requirements") == requirements and known.get("tools") == wants_tools
    built: dict[str, str] = known.get("sources", {}) if same_requirements else {}
    changed = [each for each in distributions if built.get(each.name) != each.sources]
    if not changed:
        return
    STATE.unlink(missing_ok=True)
    if not same_requirements:
        pip("install", "-qq", *BUILD_TOOLS)
    say(f"building {', '.join(each.name for each in changed)}")
    wheels = build_wheels(changed)
    if not same_requirements:
        say("installing what they need")
        pip(
            "install",
            "-qq",
            *(f"{wheels[each.name]}{extras(each) if wants_tools else ''}" for each in distributions),
        )
    pip("install", "-qq", "--no-deps", "--force-reinstall", *wheels.values())
    sources = {each.name: each.sources for each in distributions}
    STATE.write_text(json.dumps({"tools": wants_tools, "requirements": requirements, "sources": sources}))


def extras(distribution: Distribution) -> str:
    """What test and lint need of it, in pip's notation."""
    return f"[{','.join(distribution.extras)}]" if distribution.extras else ""


def find_distributions() -> list[Distribution]:
    """The root distribution, then plugins, then examples."""
    directories = [ROOT, *sorted(ROOT.glob("plugins/*")), *sorted(ROOT.glob("examples/*"))]
    return [read_distribution(each) for each in directories if (each / "pyproject.toml").exists()]


def read_distribution(directory: Path) -> Distribution:
    """What pyproject.toml and the files beside it say."""
    data = tomllib.loads((directory / "pyproject.toml").read_text())
    packaging = data["tool"]["hatch"]["build"]
    requirements = hashlib.sha256(json.dumps([data["build-system"], data["project"], packaging]).encode()).hexdigest()
    packages = [directory / package for package in packaging["targets"]["wheel"]["packages"]]
    files = [path for package in packages for path in package.rglob("*") if path.is_file()]
    files += [directory / name for name in ("README.md", "LICENSE") if (directory / name).exists()]
    sources = hashlib.sha256(requirements.encode())
    for path in sorted(path for path in files if path.suffix != ".pyc"):
        sources.update(f"{path.relative_to(directory)}\0{path.stat().st_size}\0".encode())
        sources.update(path.read_bytes())
    return Distribution(
        name=data["project"]["name"],
        directory=directory,
        extras=tuple(each for each in ("test", "lint") if each in data["project"].get("optional-dependencies", {})),
        requirements=requirements,
        sources=sources.hexdigest(),
    )


def build_wheels(distributions: Sequence[Distribution]) -> dict[str, Path]:
    """Build each; return the wheel of each by the distribution's name."""
    WHEELS.mkdir(parents=True, exist_ok=True)
    for each in distributions:
        for stale in WHEELS.glob(f"{wheel_prefix(each)}*.whl"):
            stale.unlink()
    directories = [each.directory for each in distributions]
    pip("wheel", "-qq", "--no-deps", "--no-build-isolation", "--wheel-dir", WHEELS, *directories)
    return {each.name: next(WHEELS.glob(f"{wheel_prefix(each)}*.whl")) for each in distributions}


def wheel_prefix(distribution: Distribution) -> str:
    """What the wheel's file name begins with."""
    return distribution.name.replace("-", "_") + "-"


def install_debian_packages() -> None:
    """What the tests of real programs need: a compiler for their targets, gdb to compare with, others' C libraries."""
    wanted = [*DEBIAN_PACKAGES, *(["gcc-multilib"] if platform.machine() == "x86_64" else [])]
    if shutil.which("dpkg-query") is None:
        missing = [tool for tool in ("gcc", "g++", "gdb", "objdump") if shutil.which(tool) is None]
        if missing:
            fail(f"install {', '.join(missing)} with this system's package manager, then try again")
        return
    query = ["dpkg-query", "--show", "--showformat", "${Package} ${db:Status-Status}\n", *wanted]
    listing = subprocess.run(query, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False).stdout
    installed = {line.removesuffix(" installed") for line in listing.splitlines() if line.endswith(" installed")}
    missing = [package for package in wanted if package not in installed]
    if missing:
        apt_get_install(missing)


def install_peers() -> None:
    """What bench measures ubpx against. What cannot be had is said, and will be missing there; nothing fails."""
    BENCH_VENV.parent.mkdir(parents=True, exist_ok=True)
    absent = [package for package in BENCH_DEBIAN_PACKAGES if shutil.which(package) is None]
    if absent:
        attempt("these will be missing: " + ", ".join(absent), lambda: apt_get_install(absent))
    python = BENCH_VENV / "bin" / "python"
    if not python.exists():
        say(f"creating {BENCH_VENV}")
        attempt("all peers from PyPI will be missing", lambda: run(VENV_PYTHON, "-m", "venv", "--clear", BENCH_VENV))
    for package in BENCH_PACKAGES:
        if python.exists() and not has_package(python, package):
            say(f"installing {package} for bench")
            install = partial(run, VENV_PYTHON, "-m", "pip", "-qq", "--python", python, "install", package)
            attempt(f"{package} will be missing", install)


def has_package(python: Path, package: str) -> bool:
    """Whether an interpreter has it installed."""
    code = f"import importlib.metadata as metadata; metadata.version({package!r})"
    return subprocess.run([python, "-c", code], stderr=subprocess.DEVNULL, check=False).returncode == 0


def attempt(otherwise: str, job: Callable[[], None]) -> None:
    """Do it; where it cannot be done say what that means, and go on."""
    try:
        job()
    except SystemExit:
        say(otherwise)


def apt_get_install(packages: Sequence[str]) -> None:
    """Install Debian packages as root; otherwise print the line that does it and give up."""
    line = f"apt-get install -y --no-install-recommends {' '.join(packages)}"
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        fail(f"packages are missing; run this line, then try again:\n    sudo {line}")
    say(f"installing {' '.join(packages)}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    run("apt-get", "update", "-qq", environment=environment)
    run(*line.split(), "-qq", environment=environment)


def pip(*arguments: str | Path) -> None:
    """Run .venv's pip."""
    run(VENV_PYTHON, "-m", "pip", "--disable-pip-version-check", *arguments)


def run(*command: str | Path, environment: dict[str, str] | None = None) -> None:
    """Run a command from the root; give up with its exit status if it fails."""
    status = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
    if status:
        fail(f"this failed with status {status}: {' '.join(map(str, command))}")


def say(text: str) -> None:
    """Tell what takes time, beside the output of what make runs."""
    print(f"setup: {text}", file=sys.stderr, flush=True)


def fail(text: str) -> NoReturn:
    """Give up."""
    say(text)
    sys.exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
