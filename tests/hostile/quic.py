"""Hostile QUIC peers: raw datagrams, half-open handshakes, streams beyond the limits, and readers that do not read."""

import asyncio
import os
import random
import socket
import ssl
import time

import transport
from aioquic.asyncio.client import connect as quic_connect
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from fanfare import Device, Session, SessionEnded, client_message_id
from raw import Raw
from wire import Frame

# Close codes by error number: docs/protocol.md, section 8.
SLOW_READER, HANDSHAKE_TIMEOUT, STREAM, TRUNCATED, UNKNOWN_TYPE = 4054, 4157, 4312, 4310, 4301
OTHER_ADDRESS = "127.0.0.3"
AMPLIFICATION_MAX = 3.0
STREAM_LIMIT_ERROR = 4
SLOW_CONTENT_BYTES, SLOW_MESSAGES = 16_000, 700


class Spoofer:
    """A UDP socket that counts what it sends and what comes back, and never answers."""

    def __init__(self, server, address="127.0.0.1"):
        self.server = (server.host, server.port)
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind((address, 0))
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self.socket.setblocking(False)
        self.sent = self.received = 0

    def send(self, data):
        try:
            self.sent += self.socket.sendto(data, self.server)
        except BlockingIOError:
            pass

    async def count(self, seconds):
        """What came back within that time."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                self.received += len(self.socket.recv(65_536))
            except (BlockingIOError, ConnectionRefusedError):
                await asyncio.sleep(0.02)
        return self.received

    def close(self):
        self.socket.close()


def configuration(**more):
    return QuicConfiguration(
        is_client=True, alpn_protocols=["fanfare/1"], verify_mode=ssl.CERT_NONE, server_name="localhost", **more
    )


def initial(server):
    """The first datagram of a client that means it."""
    connection = QuicConnection(configuration=configuration())
    connection.connect((server.host, server.port), now=time.time())
    (data, _), *_ = connection.datagrams_to_send(now=time.time())
    assert len(data) >= 1200
    return data


async def datagrams(running):
    """Garbage, broken and unanswered first datagrams: what comes back is at most three times what went out."""
    whole = initial(running.server)
    flip = random.Random(7)

    def flipped():
        data = bytearray(initial(running.server))
        for _ in range(flip.randrange(1, 4)):
            data[flip.randrange(len(data))] ^= 1 << flip.randrange(8)
        return bytes(data)

    version = b"\x1a\x2a\x3a\x4a"
    for what, seconds, data in (
        ("random bytes", 0.3, [os.urandom(random.randrange(1, 1400)) for _ in range(3000)]),
        ("short headers", 0.3, [b"\x40" + os.urandom(random.randrange(20, 1300)) for _ in range(1000)]),
        ("every length of an Initial", 0.3, [whole[:cut] for cut in range(1, len(whole), 3)]),
        ("an unknown version", 0.3, [whole[:1] + version + whole[5:]] * 50),
        ("an unknown version, short", 0.3, [(whole[:1] + version + whole[5:])[:60]] * 50),
        ("flipped Initials", 0.5, [flipped() for _ in range(200)]),
        ("two Initials in one datagram", 0.3, [whole + whole[:200]] * 20),
    ):
        spoofer = Spoofer(running.server)
        for number, one in enumerate(data):
            spoofer.send(one)
            if number % 100 == 99:
                await asyncio.sleep(0.01)
        received = await spoofer.count(seconds)
        ratio = received / spoofer.sent
        spoofer.close()
        assert ratio <= AMPLIFICATION_MAX, f"{what}: {ratio:.2f} times what was sent"
    # One Initial, and silence: the answer and all its retransmissions.
    spoofers = [Spoofer(running.server) for _ in range(8)]
    for spoofer in spoofers:
        spoofer.send(initial(running.server))
    await asyncio.gather(*(spoofer.count(4) for spoofer in spoofers))
    ratios = [spoofer.received / spoofer.sent for spoofer in spoofers]
    for spoofer in spoofers:
        spoofer.close()
    assert all(0 < ratio <= AMPLIFICATION_MAX for ratio in ratios), ratios
    print(f"    amplification of an unanswered Initial: {max(ratios):.2f}", flush=True)


async def half_open(running):
    """600 handshakes that are never finished; then a client that means it is let in, by Retry if need be."""
    spoofer = Spoofer(running.server, OTHER_ADDRESS)
    for number in range(600):
        spoofer.send(initial(running.server))
        if number % 50 == 49:
            await asyncio.sleep(0)
    token = running.token("carol")
    session = await Session.open(running.server, Device("honest"), "quic", token=token, delivery="TIERED")
    await session.ping()
    await session.close()
    await spoofer.count(0.5)
    spoofer.close()
    assert spoofer.received / spoofer.sent <= AMPLIFICATION_MAX


async def connected(running):
    """A QUIC connection without a session, and what ends it."""
    context = quic_connect(
        running.server.host, running.server.port, configuration=configuration(), create_protocol=transport.Connection
    )
    connection = await asyncio.wait_for(context.__aenter__(), 10)
    return context, connection


async def ended(connection, seconds=9):
    while True:
        closed = await asyncio.wait_for(connection.frames.get(), seconds)
        if isinstance(closed, transport.Closed):
            return closed.code


async def finished(context, connection):
    connection.close()
    await context.__aexit__(None, None, None)


async def streams(running):
    """Connections that are silent, and streams that the protocol does not know, before and after authentication."""

    async def silence(keep_alive):
        context, connection = await connected(running)
        ending = asyncio.create_task(ended(connection))
        while not ending.done():
            if keep_alive:
                connection._quic.send_ping(0)
                connection.transmit()
            await asyncio.sleep(0.5)
        assert await ending == HANDSHAKE_TIMEOUT, "connected, and no HELLO"
        await finished(context, connection)

    async def before_hello():
        """Control unfinished, and a stream of another kind before any HELLO."""
        context, connection = await connected(running)
        quic = connection._quic
        quic.send_stream_data(quic.get_next_available_stream_id(), b"\x01\x00")
        quic.send_stream_data(quic.get_next_available_stream_id(is_unidirectional=True), Frame("TYPING", channel=7).encode())
        connection.transmit()
        assert await ended(connection) is not None
        await finished(context, connection)

    await asyncio.gather(*(silence(n % 2 == 0) for n in range(10)), before_hello())

    token = running.token("carol")

    async def session():
        return await Session.open(running.server, Device("streams"), "quic", token=token, delivery="TIERED")

    async def beyond(unidirectional):
        """More streams than allowed, by a peer that does not hold back."""
        one = await session()
        quic = one.link.connection._quic
        if unidirectional:
            quic._remote_max_streams_uni = 1000
        else:
            quic._remote_max_streams_bidi = 1000
        for _ in range(20):
            quic.send_stream_data(quic.get_next_available_stream_id(is_unidirectional=unidirectional), b"\x88")
        one.link.connection.transmit()
        closed = await asyncio.wait_for(one.ended, 9)
        assert closed.code in (STREAM_LIMIT_ERROR, STREAM), closed
        await one.stop()

    async def wrong(what, unidirectional, data, end):
        one = await session()
        quic = one.link.connection._quic
        quic.send_stream_data(quic.get_next_available_stream_id(is_unidirectional=unidirectional), data, end)
        one.link.connection.transmit()
        closed = await asyncio.wait_for(one.ended, 9)
        assert closed.code is not None and 4000 <= closed.code < 4400, f"{what}: {closed}"
        await one.stop()

    async def window():
        """A fetch stream that never ends its frame holds its window, not more, and harms nobody."""
        one = await session()
        quic = one.link.connection._quic
        stream = quic.get_next_available_stream_id()
        quic.send_stream_data(stream, b"\x88\x00\x00\x00\xff\xf0\x00\x00" + bytes(20))
        one.link.connection.transmit()
        await one.ping()
        quic.reset_stream(stream, 0)
        one.link.connection.transmit()
        await goes_on_or_ends_with_a_number(one)

    await beyond(True)
    await beyond(False)
    await wrong("a SEND on a stream for FETCH", False, Frame("SEND", channel=7, seq=1).encode(), True)
    await wrong("an unknown type on the uplink", True, b"\x7f" + bytes(7), False)
    await wrong("half a frame on the uplink", True, b"\x81\x00\x00", True)
    await window()
    # Datagrams that are no hints are dropped, or end it with a number.
    one = await session()
    for data in (b"", b"\x00", os.urandom(500), Frame("SEND", channel=7, seq=1).encode(), Frame("TYPING").encode()[:9]):
        one.link.connection._quic.send_datagram_frame(data)
    one.link.connection.transmit()
    await goes_on_or_ends_with_a_number(one)


async def goes_on_or_ends_with_a_number(session):
    try:
        await session.ping()
        await session.close()
    except SessionEnded:
        code = session.ended.result().code
        assert code is not None and 4000 <= code < 4400, code


async def slow_readers(running):
    """A WebSocket and a QUIC reader that stop reading while 11 MB are due to each: they are cut, others are not."""
    server = running.server
    carol, dave = running.token("carol"), running.token("dave")
    sender = await Session.open(server, Device("sender"), "ws", token=carol, delivery="TIERED")
    reader = await Session.open(server, Device("reader"), "quic", token=dave, delivery="TIERED")
    await sender.sync()
    await reader.sync()
    user = reader.welcome["user"]
    channel = (await sender.open_channel(group={"name": "much", "members": [user]}))["channel"]
    await reader.frame("CHANNEL", lambda frame: frame.channel == channel)

    # Over TCP: a small window, and nobody reads.
    slow_socket = socket.socket()
    slow_socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    slow_socket.setblocking(False)
    await asyncio.get_running_loop().sock_connect(slow_socket, (server.host, server.port))
    slow = Raw(*await asyncio.open_connection(sock=slow_socket, limit=4096))
    assert (await slow.upgrade())[0] == 101
    hello = {"version_min": 1, "version_max": 1, "device": 77, "token": dave}
    await slow.frame(2, Frame("HELLO", hello).encode())
    await slow.frame(2, Frame("SYNC").encode())
    slow.writer.transport.pause_reading()

    # Over QUIC: the windows are never opened again.
    stalled_device = Device("stalled")
    stalled = await Session.open(server, stalled_device, "quic", token=dave, delivery="TIERED")
    stalled.link.connection._quic._write_connection_limits = lambda *_, **__: None
    stalled.link.connection._quic._write_stream_limits = lambda *_, **__: None
    await stalled.sync()

    rss = running.rss_bytes()
    text = "x" * SLOW_CONTENT_BYTES
    last = 0
    for start in range(0, SLOW_MESSAGES, 50):
        acks = await asyncio.gather(*(sender.say(channel, text) for _ in range(start, start + 50)))
        last = max(ack["seq"] for ack in acks)
        await reader.holds(channel, last)
    grown = running.rss_bytes() - rss
    assert grown < 96 << 20, f"two slow readers cost {grown} bytes"

    deadline = time.monotonic() + 30
    while not stalled.ended.done():
        assert time.monotonic() < deadline, "a QUIC reader that does not read was never cut"
        await asyncio.sleep(0.2)
    assert stalled.ended.result().code == SLOW_READER, stalled.ended.result()
    await stalled.stop()
    slow.writer.transport.resume_reading()
    code = await slow.ended(30)
    assert code in (SLOW_READER, None), code
    slow.close()

    # Who was cut comes back and has everything.
    again = await Session.open(server, stalled_device, "quic", token=dave, delivery="TIERED")
    for log in stalled_device.logs.values():
        log.live, log.gaps, log.followed = [], [], False
    await again.sync()
    history, _, _ = await again.history(channel)
    assert max(history) == last and sum("message" in frame.body for frame in history.values()) == SLOW_MESSAGES
    again_id = client_message_id(again.now_ms())
    assert (await again.send(channel, again_id, message={"text": "back"}))["seq"] == last + 1
    for session in (again, sender, reader):
        await session.close()
