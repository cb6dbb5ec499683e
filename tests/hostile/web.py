"""Hostile WebSocket peers."""

import asyncio
import random
import socket

import raw
import wire
from fanfare import Device, Session
from raw import BINARY, CLOSE, CONTINUATION, HEAD, PING, TEXT, Raw
from wire import Frame

# Close codes by error number: docs/protocol.md, section 8.
FRAME_TOO_LARGE, TEXT_MESSAGE, WEBSOCKET, TRUNCATED, UNKNOWN_TYPE = 4302, 4308, 4309, 4310, 4301
TOKEN_MALFORMED, HANDSHAKE_TIMEOUT, PING_FLOOD, PER_USER, PER_ADDRESS, RATE_LIMITED = 4218, 4157, 4156, 4152, 4153, 4001
PROTOCOL_ERROR, TOO_BIG, NOT_UTF8, POLICY = 1002, 1009, 1007, 1008
# From the handshake's 5 s to a busy machine's clock.
HANDSHAKE_S_MAX = 9
OTHER_ADDRESS = "127.0.0.2"


async def upgrades(running):
    """Upgrades that are refused with their status, or granted without what was offered."""
    without = lambda name: {n: v for n, v in HEAD.items() if n != name}  # noqa: E731
    for what, wanted, arguments in (
        ("as it should be", 101, {}),
        ("a page of another origin", 403, {"more": [("Origin", "https://evil.example")]}),
        ("an origin that ends like ours", 403, {"more": [("Origin", "http://127.0.0.1.evil.example")]}),
        ("a null origin", 403, {"more": [("Origin", "null")]}),
        ("another path", 404, {"line": "GET /v2/ws HTTP/1.1"}),
        ("another method", 405, {"line": "POST /v1/ws HTTP/1.1"}),
        ("no upgrade", 426, {"head": without("Upgrade")}),
        ("version 8", 426, {"head": HEAD | {"Sec-WebSocket-Version": "8"}}),
        ("no key", 400, {"head": without("Sec-WebSocket-Key")}),
        ("no subprotocol", 400, {"head": without("Sec-WebSocket-Protocol")}),
        ("another subprotocol", 400, {"head": HEAD | {"Sec-WebSocket-Protocol": "mqtt"}}),
        ("65 headers", 431, {"more": [(f"X-{n}", "1") for n in range(60)]}),
        ("a head of 9 KiB", 431, {"more": [("X-Long", "x" * 9000)]}),
        ("no HTTP at all", 400, {"line": "\x01\x02\x03 nonsense"}),
    ):
        connection = await Raw.connect(running.server)
        status, headers = await connection.upgrade(**arguments)
        assert status == wanted, f"{what}: {status}, not {wanted}"
        if wanted == 101:
            assert headers["sec-websocket-protocol"] == "fanfare.v1"
        connection.close()
    for offer in ("permessage-deflate; client_max_window_bits", "x-webkit-deflate-frame", "permessage-deflate, " * 50):
        connection = await Raw.connect(running.server)
        status, headers = await connection.upgrade(more=[("Sec-WebSocket-Extensions", offer)])
        assert status == 101 and "sec-websocket-extensions" not in headers, "compression is never negotiated"
        # A compressed message all the same.
        await connection.frame(BINARY, b"\x02\xff", rsv=4)
        assert await connection.ended() in (PROTOCOL_ERROR, WEBSOCKET)
        connection.close()


async def session(running, user="carol"):
    """A raw connection behind its WELCOME."""
    connection = await Raw.upgraded(running.server)
    hello = Frame("HELLO", {"version_min": 1, "version_max": 1, "device": random.randrange(1, 2**63), "token": running.token(user)})
    await connection.frame(BINARY, hello.encode())
    first = await asyncio.wait_for(connection.reader.readexactly(2), 5)
    length = first[1] if first[1] < 126 else int.from_bytes(await connection.reader.readexactly(2))
    message = await connection.reader.readexactly(length)
    assert wire.decode_all(message)[0].type == "WELCOME"
    return connection


async def broken_frames(running):
    """WebSocket framing that is broken, before and after authentication."""
    broken = (1002, WEBSOCKET)
    long = (TOO_BIG, FRAME_TOO_LARGE, WEBSOCKET)
    ping = Frame("PING").encode()
    cases = [
        ("a 64-bit length with its top bit set", broken, raw.frame(BINARY, b"x", header=b"\xff" + b"\xff" * 8)),
        ("a 64-bit length of 2^40", long, raw.frame(BINARY, b"x", header=b"\xff" + (2**40).to_bytes(8))),
        ("a length of 64 KiB and a byte", long, raw.frame(BINARY, b"x", length=65_537)),
        ("a length that is not the shortest", broken, raw.frame(BINARY, ping, header=b"\xfe" + len(ping).to_bytes(2))),
        ("no mask", broken, raw.frame(BINARY, ping, mask=False)),
        ("reserved bits", broken, raw.frame(BINARY, ping, rsv=7)),
        ("an unknown opcode", broken, raw.frame(5, ping)),
        ("a control frame of 126 bytes", broken, raw.frame(PING, b"x" * 126)),
        ("a control frame in fragments", broken, raw.frame(PING, b"x", fin=False)),
        ("a continuation of nothing", broken, raw.frame(CONTINUATION, ping)),
        ("a message inside of another", broken, raw.frame(BINARY, b"\x04", fin=False) + raw.frame(BINARY, ping)),
        ("a close of one byte", broken, raw.frame(CLOSE, b"x")),
        ("a close code of 1005", broken, raw.frame(CLOSE, (1005).to_bytes(2))),
        ("text", (TEXT_MESSAGE,), raw.frame(TEXT, b"hello")),
        ("text that is not UTF-8", (TEXT_MESSAGE, NOT_UTF8, *broken), raw.frame(TEXT, b"\xff\xfe")),
        ("65 fragments", (POLICY, *broken), raw.frame(BINARY, b"", fin=False) + raw.frame(CONTINUATION, b"", fin=False) * 64),
        ("a thousand empty fragments", (POLICY, *broken), raw.frame(BINARY, b"", fin=False) + raw.frame(CONTINUATION, b"", fin=False) * 1000),
    ]
    for what, wanted, data in cases:
        for connection in (await Raw.upgraded(running.server), await session(running)):
            await connection.write(data)
            code = await connection.ended()
            assert code in wanted, f"{what}: {code}, not of {wanted}"
            connection.close()
    # Beyond what may come before HELLO, in one message and in dribbles.
    hello = Frame("HELLO", {"version_max": 1, "device": 1, "token": "t" * 4096, "resume": bytes(5000)}).encode()
    for data in (raw.frame(BINARY, hello), raw.frame(PING, b"x" * 100) * 9):
        connection = await Raw.upgraded(running.server)
        await connection.write(data)
        if len(data) > 8192:
            assert await connection.ended() in (HANDSHAKE_TIMEOUT, PER_USER, *long)
        connection.close()
    # An empty message is none; whole frames in many fragments are frames.
    connection = await session(running)
    await connection.frame(BINARY, b"")
    for at, byte in enumerate(ping):
        await connection.frame(BINARY if at == 0 else CONTINUATION, bytes([byte]), fin=at == len(ping) - 1)
    first = await asyncio.wait_for(connection.reader.readexactly(2), 5)
    assert wire.decode_all(await connection.reader.readexactly(first[1]))[0].type == "PONG"
    connection.close()


async def floods(running):
    """Frames, requests and pings far beyond the rates: numbers, and nothing worse."""
    token = running.token("carol")
    flooder = await Session.open(running.server, Device("flood"), "ws", token=token, delivery="TIERED")
    await flooder.sync()
    channel = next(iter(flooder.device.logs))
    await flooder.link.send(*(Frame("TYPING", channel=channel) for _ in range(500)))
    await flooder.frame("ERROR", lambda frame: frame.body["code"] == RATE_LIMITED)
    fetches = await asyncio.gather(*(flooder.fetch(channel) for _ in range(250)), return_exceptions=True)
    refused = [answer for answer in fetches if isinstance(answer, Exception)]
    assert refused and all(getattr(answer, "code", 0) == RATE_LIMITED for answer in refused), refused[:3]
    await flooder.ping()
    await flooder.close()
    for kind in ("ws", "quic"):
        flooder = await Session.open(running.server, Device("pings"), kind, token=token, delivery="TIERED")
        for _ in range(100):
            await flooder.link.send(Frame("PING", {"time_ms": 1}))
        closed = await asyncio.wait_for(flooder.ended, 5)
        assert closed.code == PING_FLOOD, closed
        await flooder.stop()
    for connection in (await Raw.upgraded(running.server), await session(running)):
        await connection.write(raw.frame(PING, b"x") * 200)
        code = await connection.ended()
        assert code in (PING_FLOOD, HANDSHAKE_TIMEOUT, POLICY), code
        connection.close()


async def silent(running):
    """Connections that say nothing, or next to nothing, are cut; all at once, beside the two who chat."""

    async def nothing():
        connection = await Raw.connect(running.server, OTHER_ADDRESS)
        await connection.eof(HANDSHAKE_S_MAX)
        connection.close()

    async def half_a_head():
        connection = await Raw.connect(running.server, OTHER_ADDRESS)
        await connection.write(b"GET /v1/ws HTTP/1.1\r\nHost: x\r\n")
        await connection.eof(HANDSHAKE_S_MAX)
        connection.close()

    async def dripping_head():
        connection = await Raw.connect(running.server, OTHER_ADDRESS)
        ended = asyncio.create_task(connection.eof(HANDSHAKE_S_MAX))
        for byte in b"GET /v1/ws HTTP/1.1\r\nHost: a.very.patient.client.example\r\n" * 9:
            if ended.done():
                break
            await connection.write(bytes([byte]))
            await asyncio.sleep(0.1)
        await ended
        connection.close()

    async def half_a_tls_hello():
        connection = await Raw.connect(running.server, OTHER_ADDRESS)
        await connection.write(b"\x16\x03\x01\x02\x00\x01\x00")
        await connection.eof(HANDSHAKE_S_MAX)
        connection.close()

    async def no_hello():
        connection = await Raw.upgraded(running.server, OTHER_ADDRESS)
        assert await connection.ended(HANDSHAKE_S_MAX) == HANDSHAKE_TIMEOUT
        connection.close()

    async def half_a_hello():
        connection = await Raw.upgraded(running.server, OTHER_ADDRESS)
        await connection.write(raw.frame(BINARY, b"\x01\x00\x00\x00", length=100))
        assert await connection.ended(HANDSHAKE_S_MAX) == HANDSHAKE_TIMEOUT
        connection.close()

    async def only_pings():
        connection = await Raw.upgraded(running.server, OTHER_ADDRESS)
        ended = asyncio.create_task(connection.ended(HANDSHAKE_S_MAX))
        while not ended.done():
            await connection.frame(PING, b"x")
            await asyncio.sleep(1)
        assert await ended == HANDSHAKE_TIMEOUT
        connection.close()

    kinds = [nothing, half_a_head, dripping_head, half_a_tls_hello, no_hello, half_a_hello, only_pings]
    await asyncio.gather(*(kind() for kind in kinds for _ in range(20)))


async def too_many(running):
    """More connections than a user and an address may have; others are let in meanwhile."""
    token = running.token("dave")
    sessions = [
        await Session.open(running.server, Device(f"many {n}"), "ws", token=token, delivery="TIERED") for n in range(16)
    ]
    try:
        one_more = await Session.open(running.server, Device("17th"), "ws", token=token, delivery="TIERED")
    except Exception as ended:  # noqa: BLE001 - judged here
        assert getattr(ended, "close_code", None) == PER_USER, ended
    else:
        raise AssertionError(f"a 17th connection was welcomed: {one_more}")
    for opened in sessions:
        await opened.close()
    held = []
    for _ in range(260):
        reader, writer = await asyncio.open_connection(
            running.server.host, running.server.port, local_addr=(OTHER_ADDRESS, 0)
        )
        held.append(Raw(reader, writer))
    await asyncio.gather(*(one.upgrade() for one in held))
    hello = Frame("HELLO", {"version_max": 1, "device": 1, "token": "t"}).encode()
    await asyncio.gather(*(one.frame(BINARY, hello) for one in held))
    codes = await asyncio.gather(*(one.ended() for one in held))
    assert codes.count(PER_ADDRESS) == 60 and codes.count(TOKEN_MALFORMED) == 200, f"of 260: {set(codes)}"
    other = await Session.open(running.server, Device("another"), "ws", token=token, delivery="TIERED")
    await other.close()
    for one in held:
        one.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        one.close()
