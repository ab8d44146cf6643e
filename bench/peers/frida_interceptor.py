"""frida: code of its own in the program, no stop; a handler in JavaScript that counts."""

from interface import Armed, Place, main, wait_for_end

TITLE = "frida, JavaScript handler in the program"
CALLS = 20_000
PACKAGES = ("frida",)

SCRIPT = """
let hits = 0;
Interceptor.attach(ptr("%#x"), { onEnter() { hits++; } });
rpc.exports = { hits() { return hits; } };
"""


def serve(place: Place, armed: Armed) -> int:
    """The handler runs in the program's own thread."""
    import frida

    session = frida.attach(place.pid)
    script = session.create_script(SCRIPT % place.address)
    script.load()
    armed()
    wait_for_end()
    hits = int(script.exports_sync.hits())
    script.unload()
    session.detach()
    return hits


if __name__ == "__main__":
    main(serve)
