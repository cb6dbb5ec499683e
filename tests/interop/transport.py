"""The two transports of docs/protocol.md section 1, as one pair of queues: whole frames come in, frames go out.

`frames` yields wire.Frame objects; at the end one `Closed`.
"""

import asyncio
import hashlib
import ssl
from dataclasses import dataclass

import websockets
from aioquic.asyncio.client import connect as quic_connect
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.quic import events
from aioquic.quic.configuration import QuicConfiguration
from cryptography.hazmat.primitives.serialization import Encoding

import wire

SUBPROTOCOL, PATH, ALPN = "fanfare.v1", "/v1/ws", "fanfare/1"
CONTROL = 0
# What each frame of a client travels on over QUIC; the rest goes on control.
ON_UPLINK = {"SEND", "RECEIPT", "TYPING"}


@dataclass
class Closed:
    code: int | None
    reason: str = ""


class WebSocket:
    """One WebSocket connection; frames that are sent together travel in one message."""

    kind = "ws"

    def __init__(self, socket):
        self.socket = socket
        self.frames = asyncio.Queue()
        self.reader = asyncio.create_task(self.read())

    @classmethod
    async def connect(cls, server, tls=False):
        options = {"subprotocols": [SUBPROTOCOL], "compression": None, "max_size": wire.FRAME_BYTES_MAX}
        # No keep-alive of the library's own: the protocol has PING.
        options |= {"ping_interval": None, "open_timeout": 10, "close_timeout": 2, "proxy": None}
        scheme = "ws"
        if tls:
            scheme, options["ssl"] = "wss", unchecked_tls()
        url = f"{scheme}://{server.host}:{server.port}{PATH}"
        socket = await websockets.connect(url, **options)
        assert socket.subprotocol == SUBPROTOCOL
        assert not socket.protocol.extensions, "no extension is ever negotiated"
        if tls:
            server.check_certificate(socket.transport.get_extra_info("ssl_object").getpeercert(True))
        return cls(socket)

    async def read(self):
        try:
            async for message in self.socket:
                assert isinstance(message, bytes), "only binary messages"
                for frame in wire.decode_all(message):
                    self.frames.put_nowait(frame)
        except websockets.ConnectionClosed:
            pass
        except Exception as error:  # noqa: BLE001 - whoever waits for frames must hear of it
            self.frames.put_nowait(error)
        self.frames.put_nowait(Closed(self.socket.close_code, self.socket.close_reason or ""))

    async def send(self, *frames):
        await self.send_bytes(b"".join(frame.encode() for frame in frames))

    async def send_bytes(self, data):
        try:
            await self.socket.send(data)
        except websockets.ConnectionClosed:
            pass

    async def fetch(self, frame):
        await self.send(frame)

    async def hint(self, frame):
        await self.send(frame)

    async def close(self):
        await self.socket.close()
        await self.reader

    async def cut(self):
        """As a phone that lost its network: no close, no goodbye."""
        self.socket.transport.abort()
        await self.reader


class Connection(QuicConnectionProtocol):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.frames = asyncio.Queue()
        self.buffers = {}
        self.ended = asyncio.Event()

    def quic_event_received(self, event):
        try:
            self.handle(event)
        except Exception as error:  # noqa: BLE001 - whoever waits for frames must hear of it
            self.frames.put_nowait(error)

    def handle(self, event):
        if isinstance(event, events.StreamDataReceived):
            buffer = self.buffers.setdefault(event.stream_id, wire.FrameBuffer())
            for frame in buffer.feed(event.data):
                frame.stream = event.stream_id
                self.frames.put_nowait(frame)
            if event.end_stream:
                if buffer.data:
                    raise wire.Refused(wire.TRUNCATED, f"stream {event.stream_id}")
                del self.buffers[event.stream_id]
        elif isinstance(event, events.DatagramFrameReceived):
            for frame in wire.decode_all(event.data):
                assert frame.type in ("TYPING", "PRESENCE"), frame.type
                frame.stream = None
                self.frames.put_nowait(frame)
        elif isinstance(event, events.ConnectionTerminated):
            self.frames.put_nowait(Closed(event.error_code, event.reason_phrase))
            self.ended.set()


class Quic:
    """One QUIC connection: control, uplink, and a stream for each FETCH."""

    kind = "quic"

    def __init__(self, context, connection):
        self.context, self.connection = context, connection
        self.frames = connection.frames
        control = connection._quic.get_next_available_stream_id()
        assert control == CONTROL
        self.uplink = None
        self.fetches = asyncio.Semaphore(3)

    @classmethod
    async def connect(cls, server):
        configuration = QuicConfiguration(
            is_client=True,
            alpn_protocols=[ALPN],
            # The hash of the certificate is compared instead of a chain.
            verify_mode=ssl.CERT_NONE,
            server_name="localhost",
            max_datagram_frame_size=1200,
            idle_timeout=60,
        )
        context = quic_connect(server.host, server.port, configuration=configuration, create_protocol=Connection)
        connection = await asyncio.wait_for(context.__aenter__(), 10)
        certificate = connection._quic.tls._peer_certificate
        server.check_certificate(certificate.public_bytes(Encoding.DER))
        return cls(context, connection)

    def put(self, stream, data, end=False):
        self.connection._quic.send_stream_data(stream, data, end)
        self.connection.transmit()

    async def send(self, *frames):
        for frame in frames:
            stream = CONTROL
            if frame.type in ON_UPLINK:
                if self.uplink is None:
                    self.uplink = self.connection._quic.get_next_available_stream_id(is_unidirectional=True)
                stream = self.uplink
            self.put(stream, frame.encode())

    async def send_bytes(self, data):
        self.put(CONTROL, data)

    async def fetch(self, frame):
        """On a stream of its own, with FIN behind it."""
        stream = self.connection._quic.get_next_available_stream_id()
        self.put(stream, frame.encode(), end=True)

    async def hint(self, frame):
        self.connection._quic.send_datagram_frame(frame.encode())
        self.connection.transmit()

    async def close(self):
        self.connection.close()
        await self.context.__aexit__(None, None, None)

    async def cut(self):
        self.connection._transport.abort()
        if self.connection._timer:
            self.connection._timer.cancel()
        self.connection.transmit = lambda: None
        # Nothing comes that would tell aioquic so: whoever ends its context would wait for ever.
        self.connection._closed.set()
        await self.context.__aexit__(None, None, None)
        self.frames.put_nowait(Closed(None, "cut"))


def unchecked_tls():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def sha256(data):
    return hashlib.sha256(data).hexdigest()


TRANSPORTS = {"ws": WebSocket.connect, "quic": Quic.connect}
