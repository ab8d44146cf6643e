"""From the path of a socket to a broker that has said welcome, without keeping the event loop waiting."""

import asyncio
import contextlib
import socket

from ubpx_froggy.client import dialling
from ubpx_froggy.client.conversation import hello, welcome
from ubpx_froggy.client.dialling import (
    CHUNK,
    CLOSED_EARLY,
    RETRY_S,
    Dialled,
    accepted,
    check_server,
    connecting,
    first_body,
    new_socket,
    shaking_hands,
    try_to_connect,
)
from ubpx_froggy.messages import Handle
from ubpx_froggy.wire import HELLO_BYTES, Framer


async def dial(path: str, *, channel: Handle | None = None) -> Dialled:
    """Connect to the broker at ``path``; with ``channel`` as the channel of another connection.

    The socket of what it gives does not block. Raises as ``client.dialling.dial`` does.
    """
    connected = new_socket(path)
    connected.settimeout(0)
    until = asyncio.get_running_loop().time() + dialling.PATIENCE_S
    try:
        with connecting(path):
            async with asyncio.timeout_at(until):
                while not try_to_connect(connected, path):
                    await asyncio.sleep(RETRY_S)
        check_server(connected, path)
        return await _shake_hands(connected, path, channel, until)
    except BaseException:
        connected.close()
        raise


async def _shake_hands(connected: socket.socket, path: str, channel: Handle | None, until: float) -> Dialled:
    loop = asyncio.get_running_loop()
    framer = Framer(HELLO_BYTES)
    with shaking_hands(path):
        async with asyncio.timeout_at(until):
            with contextlib.suppress(*CLOSED_EARLY):
                await loop.sock_sendall(connected, hello(channel))
            body = None
            while body is None:
                body = first_body(framer, await loop.sock_recv(connected, CHUNK))
        answer = welcome(body)
    return accepted(connected, framer, answer, path)
