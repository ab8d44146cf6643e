"""The page of the protocol says what the code does; and a client that was written after it alone gets its hits.

python plugins/froggy/tests/test_protocol_page.py --write     # makes the page's session anew
"""

from __future__ import annotations

import ast
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import pytest

from ubpx_froggy import messages as m
from ubpx_froggy import wire

ROOT: Final = Path(__file__).resolve().parents[3]
PAGE: Final = ROOT / "docs" / "reference" / "protocol.md"
CLIENT: Final = Path(__file__).with_name("client.c")
BEGIN: Final = "<!-- session: made by plugins/froggy/tests/test_protocol_page.py --write -->\n```\n"
END: Final = "```\n<!-- end of the session -->"
CODE: Final = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
"""Blocks: their language, none for definitions, and what stands in them."""
PATIENCE_S: Final = 20.0


# The messages, as the page writes them ----------------------------------------------------------

WORDS: Final = {
    "Handle": "handle", "Registers": "registers", "Call": "call", "Any": "any", "msgspec.Raw": "any", "None": "nil",
    "True": "true", "False": "false", "'": '"',
}  # fmt: skip


def in_page(code: ast.expr) -> str:
    """A type or value of Python's in the page's words."""
    text = ast.unparse(code)
    if text == r"msgspec.Raw(b'\xc0')":
        return "nil"
    if isinstance(code, ast.Constant) and isinstance(code.value, str) and code.value.endswith("Info"):
        return code.value  # a type that is named before it is defined
    for word, other in WORDS.items():
        text = re.sub(rf"(?<!\w){re.escape(word)}(?!\w)" if word.isalpha() else re.escape(word), other, text)
    return text.replace('"LeaseInfo"', "LeaseInfo")


def definition(node: ast.ClassDef) -> str:
    """One message or value: its name, tag, fields, and what its reply carries."""
    fields = [repr(each.value.value).replace("'", '"') for each in node.keywords if each.arg == "tag"]  # type: ignore[attr-defined]
    for each in node.body:
        if isinstance(each, ast.AnnAssign):
            default = "" if each.value is None else f" = {in_page(each.value)}"
            fields.append(f"{ast.unparse(each.target)}: {in_page(each.annotation)}{default}")
    return f"{node.name} = [{', '.join(fields)}]{gives(node)}"


def gives(node: ast.ClassDef) -> str:
    """What a request's reply carries, by its docstring."""
    if not hasattr(m, node.name) or getattr(m, node.name) not in m.Call.__args__:
        return ""
    if node.name == "Wait":
        return " -> int | nil"
    found = re.search(r"Gives ``([^`]+)``|Gives (nil|bytes|int)\b", ast.get_docstring(node) or "")
    assert found, node.name
    return f" -> {'registers' if found[1] == 'Registers' else found[1] or found[2]}"


def definitions() -> list[str]:
    """All of them, in the order of the module."""
    module = ast.parse(Path(m.__file__).read_text())
    return [definition(node) for node in module.body if isinstance(node, ast.ClassDef) and node.name[0] != "_"]


def test_the_page_defines_every_message_as_the_code_does_in_its_order() -> None:
    """Invariant: each message, its tag, fields, types, defaults and reply stand there, and none that is not."""
    blocks = [text for language, text in CODE.findall(PAGE.read_text().partition(BEGIN)[0]) if not language]
    written = re.split(r" (?=[A-Z]\w+ = \[)", " ".join(" ".join(blocks).split()))
    assert written == definitions()


def test_the_page_speaks_of_every_field() -> None:
    """Invariant: each field is explained outside of the definitions too, by its name."""
    prose = CODE.sub("", PAGE.read_text())
    names = {
        each.target.id
        for node in ast.parse(Path(m.__file__).read_text()).body
        if isinstance(node, ast.ClassDef)
        for each in node.body
        if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)
    }
    assert sorted(name for name in names if f"`{name}`" not in prose) == []


@pytest.mark.parametrize("name", ["HELLO_BYTES", "REQUEST_BYTES", "REPLY_BYTES", "DEPTH", "ITEMS", "MEMORY_BYTES"])
def test_the_page_has_the_caps_of_the_code(name: str) -> None:
    value = getattr(wire, name, None) or getattr(m, name)
    assert f"| `{name}` | {value:,} |" in PAGE.read_text()


# A session, byte by byte ------------------------------------------------------------------------

TOKEN, TARGET, OWNER, LEASE = (bytes([first << 4 | each for each in range(16)]) for first in (0xA, 0xB, 0xC, 0xD))
NAMES: Final = ["rdi", "rsi", "rsp", "rip"]
WORK: Final = 0x401136
WORDS_AT_HIT: Final = b"".join(each.to_bytes(8, "little") for each in (42, 0, 0x7FFC_0000_1000, WORK))


def lease_info(state: str, hits: int) -> m.LeaseInfo:
    return m.LeaseInfo(
        lease=LEASE, spec="work", address=WORK, state=state, hits=hits, errors=0, dropped=0, mode="sync",
        persistent=False, priority=0, exclusive=False, forced=None, obstacle=None,
    )  # fmt: skip


SESSION: Final[list[tuple[str, Any, Any]]] = [
    ("peer -> broker, connection", m.Hello([1], "demo"), None),
    ("broker -> peer, connection", m.Welcome(1, "ubpx-froggy 0.1.0", 4700, TOKEN), None),
    ("peer -> broker, channel", m.Hello([1], "demo", TOKEN), None),
    ("broker -> peer, channel", m.Welcome(1, "ubpx-froggy 0.1.0", 4700, b""), None),
    ("peer -> broker, connection", m.Ask(1, m.Join()), None),
    ("broker -> peer, connection", m.Reply(1), m.TargetInfo(TARGET, 4711, "x86_64", NAMES, "rip", 1.0, spawned=False)),
    ("peer -> broker, connection", m.Ask(2, m.OpenClient(TARGET, "c")), None),
    ("broker -> peer, connection", m.Reply(2), m.ClientInfo(OWNER, [])),
    ("peer -> broker, connection", m.Ask(3, m.Probe(OWNER, "work")), None),
    ("broker -> peer, connection", m.Reply(3), lease_info("ARMED", 0)),
    ("broker -> peer, channel", m.Hit(1, LEASE, 4711, WORDS_AT_HIT), None),
    ("peer -> broker, channel", m.Answer(1), None),
    ("peer -> broker, connection", m.Ask(4, m.Release([LEASE])), None),
    ("broker -> peer, connection", m.Reply(4), [lease_info("RELEASED", 1)]),
]
"""Way, message, and the value where it is a reply."""


def with_value(message: Any, value: Any) -> Any:
    return message if value is None else m.Reply(message.id, m.as_raw(value))


def parts(value: Any, name: str, depth: int = 0, carried: Any = None) -> Iterator[tuple[int, bytes, str]]:
    """The values that it is made of, each with its own bytes and what it says.

    ``name`` is the field's that it stands in, ``carried`` the value of a reply.
    """
    note = f"{name}: " if name else ""
    if isinstance(value, msgspec.Struct):
        tag = type(value).__struct_config__.tag
        fields = value.__struct_fields__
        yield depth, bytes([0x90 + len(fields) + (tag is not None)]), f"{note}{type(value).__name__}"
        if tag is not None:
            yield depth + 1, msgspec.msgpack.encode(tag), f'"{tag}"'
        for field in fields:
            own = carried if isinstance(value, m.Reply) and field == "value" else getattr(value, field)
            yield from parts(own, field, depth + 1)
    elif isinstance(value, list):
        yield depth, bytes([0x90 + len(value)]), f"{note}{len(value)} {'item' if len(value) == 1 else 'items'}"
        for each in value:
            yield from parts(each, "", depth + 1)
    else:
        shown = f"{len(value)} bytes" if isinstance(value, bytes) else msgspec.json.encode(value).decode()
        yield depth, msgspec.msgpack.encode(value), note + shown.replace("null", "nil")


def dump() -> str:
    """The session with a line for each value: its bytes, and what they say."""
    lines = []
    for way, message, value in SESSION:
        frame = wire.pack(with_value(message, value))
        made = [(0, frame[:4], f"{len(frame) - 4} bytes follow"), *parts(message, "", carried=value)]
        assert b"".join(data for _, data, _ in made) == frame
        lines += [f"{way}", *(line for each in made for line in shown(*each)), ""]
    return "\n".join(lines)


def shown(depth: int, data: bytes, note: str) -> list[str]:
    rows = [data[start : start + 18].hex(" ") for start in range(0, len(data), 18)]
    margin = "  " * (depth + 1)
    return [f"{margin + rows[0]:<64}{note}", *(margin + row for row in rows[1:])]


def test_the_session_in_the_page_is_what_the_code_makes() -> None:
    assert PAGE.read_text().partition(BEGIN)[2].partition(END)[0] == dump()


def test_the_session_in_the_page_can_be_read_back() -> None:
    """Invariant: the hexadecimal in the page alone, cut by its lengths, is the session's messages."""
    sides = {"peer": m.FromPeerOnChannel, "broker": m.FromBroker | m.FromBrokerOnChannel}
    got = []
    for block in PAGE.read_text().partition(BEGIN)[2].partition(END)[0].strip().split("\n\n"):
        way, *lines = block.splitlines()
        data = bytes.fromhex("".join(re.match(r" +((?:[0-9a-f]{2}(?: |$))+)", line)[1] for line in lines))  # type: ignore[index]
        parser = wire.Parser(sides[way.split()[0]])
        got += [parser.parse(body) for body in wire.Framer(wire.HELLO_BYTES).feed(data)]
    assert got == [with_value(message, value) for _, message, value in SESSION]


# The client in C --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, compiled."""
    program = tmp_path_factory.mktemp("client") / "client"
    subprocess.run(["gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-o", program, CLIENT], check=True)
    return program


class Script:
    """A broker that says what a test wants it to say."""

    def __init__(self, path: Path) -> None:
        self.path: Final = path
        self._listening: Final = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(path))
        self._listening.listen()
        self._listening.settimeout(PATIENCE_S)
        self._talks: Final[list[Talk]] = []

    def accept(self, types: Any) -> Talk:
        self._talks.append(Talk(self._listening.accept()[0], types))
        return self._talks[-1]

    def close(self) -> None:
        self._listening.close()
        for talk in self._talks:
            talk.close()


class Talk:
    """One of its connections."""

    def __init__(self, connected: socket.socket, types: Any) -> None:
        self._connected: Final = connected
        self._connected.settimeout(PATIENCE_S)
        self._framer: Final = wire.Framer(wire.REQUEST_BYTES)
        self._parser: Final = wire.Parser(types)

    def hear(self) -> Any:
        """The next message; None at the end."""
        while True:
            data = self._connected.recv(1)  # one byte at a time: never more than the message
            if not data:
                return None
            for body in self._framer.feed(data):
                return self._parser.parse(body)

    def say(self, *messages: Any) -> None:
        self._connected.sendall(b"".join(map(wire.pack, messages)))

    def close(self) -> None:
        self._connected.close()


def up_to_probe(script: Script, mode: str) -> tuple[Talk, Talk | None]:
    """What the client does first: hello, its channel if it needs one, join, client, probe; the probe's reply is due."""
    control, channel = script.accept(m.FromPeer), None
    hello = control.hear()
    assert (hello.versions, hello.channel) == ([1], None)
    control.say(m.Welcome(1, "script", 1, TOKEN))
    if mode == "sync":
        channel = script.accept(m.FromPeerOnChannel)
        assert channel.hear().channel == TOKEN
        channel.say(m.Welcome(1, "script", 1, b""))
    assert control.hear() == m.Ask(1, m.Join())
    control.say(
        m.Reply(1, m.as_raw(m.TargetInfo(TARGET, 4711, "x86_64", ["rax", "rdi", "rip"], "rip", 1.0, spawned=True)))
    )
    assert control.hear() == m.Ask(2, m.OpenClient(TARGET, "c"))
    control.say(m.Reply(2, m.as_raw(m.ClientInfo(OWNER, []))))
    assert control.hear() == m.Ask(3, m.Probe(OWNER, "libc:write", mode))
    return control, channel


def registers(rdi: int) -> bytes:
    return b"".join(each.to_bytes(8, "little") for each in (1, rdi, WORK))


def sync_session(script: Script) -> None:
    control, channel = up_to_probe(script, "sync")
    assert channel is not None
    channel.say(m.Hit(1, LEASE, 5, registers(7)))
    assert channel.hear() == m.Answer(1)  # before the reply: the thread may be one that the reply waits for
    control.say(m.Reply(3, m.as_raw(lease_info("ARMED", 1))))
    channel.say(m.Hit(2, LEASE, 6, registers(1 << 63)), m.Hit(1 << 40, LEASE, 5, registers(3)))
    assert [channel.hear(), channel.hear()] == [m.Answer(2), m.Answer(1 << 40)]
    assert control.hear() == m.Ask(4, m.Release([LEASE]))
    channel.say(m.Hit(70000, LEASE, 5, registers(100)))
    assert channel.hear() == m.Answer(70000)
    control.say(m.Reply(4, m.as_raw([lease_info("RELEASED", 4)])))
    assert control.hear() is None


def notify_session(script: Script) -> None:
    control, _ = up_to_probe(script, "notify")
    record = (LEASE, 5, 1.5e9, registers(7))
    control.say(m.Hits([record]), m.Reply(3, m.as_raw(lease_info("ARMED", 1))), m.Hits([record] * 20, {LEASE: 300}))
    control.say(m.Hits([]), m.Hits([record], {LEASE: 70000}))
    assert control.hear() == m.Ask(4, m.Release([LEASE]))
    control.say(m.Reply(4, m.as_raw([lease_info("RELEASED", 1 << 33)])))
    assert control.hear() is None


def refusing(script: Script) -> None:
    control = script.accept(m.FromPeer)
    control.hear()
    control.say(m.Refused("this broker is full"))


def failing(script: Script) -> None:
    control, _ = up_to_probe(script, "sync")
    control.say(
        m.Failed(3, m.Failure("UnknownSymbol", "no symbol for 'libc:write'", {"nearest": ["a", "b"], "x": -1.5}))
    )


def evicting(script: Script) -> None:
    control, _ = up_to_probe(script, "sync")
    control.say(m.Reply(3, m.as_raw(lease_info("ARMED", 0))), m.Evicted("it has not answered"))


def cutting_short(script: Script) -> None:
    control, _ = up_to_probe(script, "notify")
    control._connected.sendall(wire.pack(m.Reply(3, m.as_raw(lease_info("ARMED", 0))))[:-1])


class Case(NamedTuple):
    """A session, and what the client makes of it."""

    play: Callable[[Script], None]
    mode: str
    hits: int
    output: str = ""
    error: str = ""


CASES: Final = (
    Case(sync_session, "sync", 3, output=f"ready\nhits=4 sum={(1 << 63) + 110} broker=4\n"),
    Case(notify_session, "notify", 70022, output=f"ready\nhits=22 sum={22 * 7} broker={1 << 33}\n"),
    Case(refusing, "sync", 1, error="client: this broker is full\n"),
    Case(failing, "sync", 1, error="client: no symbol for 'libc:write'\n"),
    Case(evicting, "sync", 1, output="ready\n", error="client: it has not answered\n"),
    Case(cutting_short, "notify", 1, error="client: the broker is gone, or sends too much\n"),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.play.__name__)
def test_a_client_that_knows_the_page_alone_is_served(client: Path, tmp_path: Path, case: Case) -> None:
    """Invariant: it gets, answers and sums all hits, in whatever order messages come; or says why it was refused."""
    script, failures = Script(tmp_path / "socket"), []

    def run() -> None:
        try:
            case.play(script)
        except BaseException as failure:  # noqa: BLE001 - the test's own thread tells of it
            failures.append(failure)
        finally:
            script.close()

    thread = threading.Thread(target=run)
    thread.start()
    command = [str(each) for each in (client, script.path, "libc:write", case.hits, case.mode)]
    outcome = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    thread.join(PATIENCE_S)
    assert failures == []
    assert (outcome.stdout, outcome.stderr) == (case.output, case.error)
    assert outcome.returncode == (1 if case.error else 0)


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit(f"usage: {sys.argv[0]} --write")
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(before + BEGIN + dump() + END + rest.partition(END)[2])
