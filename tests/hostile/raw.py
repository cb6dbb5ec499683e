"""WebSocket by hand, so that it can be wrong: upgrades with any head, frames with any header."""

import asyncio
import struct

CLOSE, PING, BINARY, TEXT, CONTINUATION = 8, 9, 2, 1, 0
HEAD = {
    "Host": "127.0.0.1",
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Protocol": "fanfare.v1",
}


class Raw:
    """One TCP connection."""

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer

    @classmethod
    async def connect(cls, server, address="127.0.0.1"):
        return cls(*await asyncio.open_connection(server.host, server.port, local_addr=(address, 0)))

    @classmethod
    async def upgraded(cls, server, address="127.0.0.1"):
        raw = await cls.connect(server, address)
        status, _ = await raw.upgrade()
        assert status == 101, status
        return raw

    async def write(self, data):
        """A server that has closed already is no error: what it said is still to be read."""
        try:
            self.writer.write(data)
            await self.writer.drain()
        except OSError:
            pass

    async def upgrade(self, head=HEAD, line="GET /v1/ws HTTP/1.1", more=()):
        lines = [line, *(f"{name}: {value}" for name, value in (*head.items(), *more)), "", ""]
        await self.write("\r\n".join(lines).encode())
        return await self.answer()

    async def answer(self, seconds=8):
        """(status, headers) of an HTTP answer; (None, {}) where the connection just ends."""
        try:
            async with asyncio.timeout(seconds):
                head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin1")
        except (asyncio.IncompleteReadError, OSError):
            return None, {}
        status, *lines = head.strip().split("\r\n")
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        return int(status.split()[1]), headers

    async def frame(self, opcode, payload=b"", fin=True, rsv=0, mask=True, length=None, header=None):
        await self.write(frame(opcode, payload, fin, rsv, mask, length, header))

    async def ended(self, seconds=8):
        """The close code that the server ends the connection with, None where it ends without; TimeoutError."""
        try:
            async with asyncio.timeout(seconds):
                while True:
                    first, second = await self.reader.readexactly(2)
                    length = second & 0x7F
                    if length == 126:
                        (length,) = struct.unpack(">H", await self.reader.readexactly(2))
                    elif length == 127:
                        (length,) = struct.unpack(">Q", await self.reader.readexactly(8))
                    payload = await self.reader.readexactly(length)
                    if first & 0x0F == CLOSE:
                        return struct.unpack(">H", payload[:2])[0] if payload else None
        except (asyncio.IncompleteReadError, OSError):
            return None

    async def eof(self, seconds=8):
        """Waits until the server closes the socket, whatever it says before."""
        try:
            async with asyncio.timeout(seconds):
                while await self.reader.read(65_536):
                    pass
        except OSError:
            pass

    def close(self):
        self.writer.close()


def frame(opcode, payload=b"", fin=True, rsv=0, mask=True, length=None, header=None):
    """A client's frame; `length` and `header` (the bytes behind the first) may lie."""
    first = bytes([(0x80 if fin else 0) | rsv << 4 | opcode])
    bit = 0x80 if mask else 0
    given = len(payload) if length is None else length
    if header is None:
        if given < 126:
            header = bytes([bit | given])
        elif given < 65_536:
            header = bytes([bit | 126]) + struct.pack(">H", given)
        else:
            header = bytes([bit | 127]) + struct.pack(">Q", given)
    # A mask of zeros leaves the payload as it is.
    return first + header + (bytes(4) if mask else b"") + payload
