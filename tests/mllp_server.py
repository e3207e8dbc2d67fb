"""A receiver of HL7 v2 over MLLP: the hl7 package's server, which answers as a test tells it."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import hl7
from hl7.mllp import start_hl7_server

LONGEST = 64 * 2**20


@dataclass
class MllpServer:
    """The receiver as a test sees it.

    Attributes
    ----------
    port
    code
        What the next acknowledgement says; empty for silence, "hang up" for a cut connection.
    codes
        Of the acknowledgements before that one.
    messages
        As they came, undecoded beyond UTF-8.
    """

    port: int = 0
    code: str = "AA"
    codes: list[str] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    wrong_control_id: bool = False

    def url(self, scheme: str = "mllp") -> str:
        return f"{scheme}://127.0.0.1:{self.port}"


@contextmanager
def mllp_server(tls: ssl.SSLContext | None = None) -> Iterator[MllpServer]:
    """Run a receiver in a thread."""
    server = MllpServer()
    loop = asyncio.new_event_loop()
    ready, end = threading.Event(), asyncio.Event()

    async def received(reader: hl7.mllp.HL7StreamReader, writer: hl7.mllp.HL7StreamWriter) -> None:
        block = (await reader.readblock()).decode()
        server.messages.append(block)
        code = server.codes.pop(0) if server.codes else server.code
        if code == "hang up":
            writer.close()
        elif code:
            answer = hl7.parse(block).create_ack(code)
            if server.wrong_control_id:
                answer.segment("MSA")[2] = "SOMETHING ELSE"
            writer.writemessage(answer)
            await writer.drain()
            writer.close()

    async def run() -> None:
        listening = await start_hl7_server(
            received, "127.0.0.1", 0, limit=LONGEST, encoding="utf-8", ssl=tls
        )
        server.port = listening.sockets[0].getsockname()[1]
        ready.set()
        await end.wait()
        listening.close()

    thread = threading.Thread(target=loop.run_until_complete, args=(run(),))
    thread.start()
    ready.wait(10)
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(end.set)
        thread.join()
        loop.close()
