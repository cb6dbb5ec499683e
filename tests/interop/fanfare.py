"""A small client of Fanfare, written from docs/protocol.md: sessions, sends that are repeated until their outcome is
known, logs of channels as sets of seqs, acknowledgement, and the way back."""

import asyncio
import json
import os
import random
import struct
import time
import urllib.request
from dataclasses import dataclass, field

import transport
import wire
from wire import Frame

WAIT_S = 10
ACK_FRAMES, ACK_BYTES, ACK_S = 256, 64 * 1024, 10
DIRECT_RECEIPT_S = 0.25
NOT_A_MEMBER, FORBIDDEN, CONFLICT, EXPIRED, CLIENT_ID_AHEAD = 3001, 3002, 3003, 3004, 3005
NO_SUCH_TARGET, RECALLED, NOT_SERVED, BODY_TOO_LARGE = 3006, 3007, 5008, 4002
RATE_LIMITED, TOO_MANY_IN_FLIGHT, RETRY_LATER, OUTCOME_UNKNOWN, READ_ONLY = 4001, 4003, 5001, 5002, 5003
WAIT_AND_REPEAT = {RATE_LIMITED, TOO_MANY_IN_FLIGHT, RETRY_LATER, READ_ONLY}


class Failed(Exception):
    """A request that the server refused."""

    def __init__(self, code, text=""):
        super().__init__(f"{code} {text}")
        self.code = code


class SessionEnded(Exception):
    def __init__(self, closed, error):
        super().__init__(f"closed with {closed}, CLOSE said {error}")
        self.close_code, self.error = closed.code if closed else None, error


@dataclass
class Server:
    host: str
    port: int
    http: str
    certificates: tuple = ()

    def read_certificate(self):
        with urllib.request.urlopen(f"{self.http}/.well-known/fanfare.json", timeout=5) as answer:
            self.certificates = tuple(json.load(answer)["certificate_sha256"])
        assert self.certificates and all(len(bytes.fromhex(one)) == 32 for one in self.certificates)

    def check_certificate(self, der):
        assert transport.sha256(der) in self.certificates, "the certificate is not one that the server names"


def client_message_id(now_ms):
    """A UUIDv7."""
    data = bytearray(struct.pack(">Q", now_ms)[2:] + os.urandom(10))
    data[6] = data[6] & 0x0F | 0x70
    data[8] = data[8] & 0x3F | 0x80
    return bytes(data)


@dataclass
class Log:
    """What a device holds of one channel."""

    epoch: int = 0
    # seq: DELIVER frame
    entries: dict = field(default_factory=dict)
    position: int = 0
    head: int = 0
    kind: str = ""
    state: dict = field(default_factory=dict)
    # Of this session: seqs in the order they came, what GAP left out, and repeats.
    live: list = field(default_factory=list)
    gaps: list = field(default_factory=list)
    followed: bool = False

    def hold(self, seq, frame):
        self.entries[seq] = frame
        self.head = max(self.head, seq)
        while self.position + 1 in self.entries:
            self.position += 1


class Device:
    """What outlives a session: the device's number, its logs, its acknowledgements and the resume secret."""

    def __init__(self, name):
        self.name = name
        self.number = random.randrange(1, 2**63)
        self.logs = {}
        self.ack_number = 0
        self.confirmed = 0
        # number: positions of it that are not confirmed
        self.unconfirmed = {}
        self.resume = b""

    def log(self, channel):
        return self.logs.setdefault(channel, Log())

    def confirm(self, number):
        self.confirmed = max(self.confirmed, number)
        self.unconfirmed = {n: p for n, p in self.unconfirmed.items() if n > number}


class Session:
    """One live connection of a device. Every rule of the page that a server could break is asserted as frames come."""

    def __init__(self, device, link):
        self.device, self.link = device, link
        self.requests = {}
        self.last_request = 0
        self.synced = None
        self.welcome = None
        self.waiting = []
        self.seen = []
        self.ended = asyncio.get_running_loop().create_future()
        self.error = None
        self.to_ack = {}
        self.ack_frames = self.ack_bytes = 0
        self.offset_ms = 0
        self.tasks = []
        self.problem = None
        self.resyncing = False

    # ------------------------------------------------------------ opening and closing

    @classmethod
    async def open(cls, server, device, kind, token="", resume=b"", delivery="FULL", hello=None):
        link = await transport.TRANSPORTS[kind](server)
        session = cls(device, link)
        body = {
            "version_min": 1,
            "version_max": 1,
            "delivery": delivery,
            "token": token,
            "resume": resume,
            "device": device.number,
            "device_name": device.name,
            "agent": "fanfare-interop/1",
        }
        await link.send(Frame("HELLO", body | (hello or {})))
        session.tasks.append(asyncio.create_task(session.read()))
        await session.until(lambda: session.welcome, "WELCOME")
        return session

    async def close(self):
        """With every position acknowledged and confirmed."""
        await self.acknowledge()
        await self.link.send(Frame("CLOSE"))
        await self.link.close()
        await self.stop()

    async def cut(self):
        await self.link.cut()
        await self.stop()

    async def stop(self):
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        if self.problem:
            raise self.problem

    # ------------------------------------------------------------ receiving

    async def read(self):
        while True:
            frame = await self.link.frames.get()
            try:
                if isinstance(frame, Exception):
                    raise frame
                if isinstance(frame, transport.Closed):
                    self.ended.set_result(frame)
                    for waiter in list(self.requests.values()):
                        if not waiter.done():
                            waiter.set_exception(SessionEnded(frame, self.error))
                    self.wake()
                    return
                self.seen.append(frame)
                self.take(frame)
            except Exception as problem:  # noqa: BLE001 - told to whoever waits
                self.problem = self.problem or problem
            self.wake()

    def wake(self):
        waiting, self.waiting = self.waiting, []
        for waiter in waiting:
            if not waiter.done():
                waiter.set_result(None)

    async def until(self, holds, what, seconds=WAIT_S):
        """Waits until `holds()`; a broken rule, a close or the time ends it."""
        deadline = time.monotonic() + seconds
        while True:
            if self.problem:
                raise self.problem
            if result := holds():
                return result
            if self.ended.done():
                raise SessionEnded(self.ended.result(), self.error)
            waiter = asyncio.get_running_loop().create_future()
            self.waiting.append(waiter)
            try:
                await asyncio.wait_for(waiter, max(0, deadline - time.monotonic()))
            except TimeoutError:
                raise AssertionError(f"{self.device.name} over {self.link.kind}: no {what} within {seconds} s") from None

    async def frame(self, type_, matches=lambda frame: True, seconds=WAIT_S):
        """The first frame of that type that came, or comes, and matches."""
        return await self.until(
            lambda: next((f for f in self.seen if f.type == type_ and matches(f)), None), type_, seconds
        )

    def take(self, frame):
        handler = getattr(self, f"on_{frame.type.lower()}", None)
        if handler:
            handler(frame)
        if frame.type in ("SEND_ACK", "PAGE", "COUNTS", "CHANNEL", "REFUSED") and frame.seq:
            self.answer(frame)

    def answer(self, frame):
        waiter = self.requests.get(frame.seq)
        assert waiter, f"{frame.type} answers request {frame.seq}, which waits for nothing"
        if frame.type == "PAGE":
            waiter.pages.append(frame.body)
            if frame.body.get("more"):
                return
        del self.requests[frame.seq]
        if waiter.done():
            return
        if frame.type == "REFUSED":
            waiter.set_exception(Failed(frame.body.get("code", 0), frame.body.get("text", "")))
        else:
            waiter.set_result(waiter.pages if frame.type == "PAGE" else frame)

    def on_welcome(self, frame):
        assert self.welcome is None, "WELCOME twice"
        self.welcome = frame.body
        self.offset_ms = frame.body["server_time_ms"] - int(time.time() * 1000)
        self.device.resume = frame.body.get("resume", b"") or self.device.resume
        self.device.confirm(frame.body.get("acks_confirmed", 0))
        self.tasks.append(asyncio.create_task(self.beat(frame.body["heartbeat_ms"] / 1000)))
        self.tasks.append(asyncio.create_task(self.acknowledge_in_time()))

    def on_auth(self, frame):
        if frame.body.get("resume"):
            self.device.resume = frame.body["resume"]

    def on_pong(self, frame):
        self.device.confirm(frame.body.get("acks_confirmed", 0))

    def on_close(self, frame):
        self.error = frame.body.get("code", 0)

    def on_synced(self, frame):
        for state in frame.body.get("channels", []):
            self.follow(state)
        self.synced.append(frame.body)

    def on_channel(self, frame):
        state = frame.body
        assert state["channel"] == frame.channel
        if state.get("role"):
            self.follow(state)
        else:
            self.device.log(frame.channel).followed = False

    def follow(self, state):
        log = self.device.log(state["channel"])
        log.state, log.kind, log.epoch = state, state.get("kind", ""), state.get("epoch", 0)
        if not log.followed:
            log.followed = True
            # Live frames go on behind this position; what lies before it this device may hold or fetch.
            log.position = max(log.position, state.get("position", 0))
        log.head = max(log.head, state.get("head", 0))

    def on_deliver(self, frame):
        log = self.device.log(frame.channel)
        if not log.followed:
            # The answer to OPEN comes on control, which has no order with entries: they may come first.
            opening = self.link.kind == "quic" and self.requests
            assert opening, f"DELIVER of {frame.channel} before its state"
            log.followed, log.position = True, max(log.position, frame.seq - 1)
        assert frame.body.get("epoch", 0) & 0xFF == frame.epoch
        if frame.seq in log.entries:
            assert log.entries[frame.seq].raw == frame.raw, "a repeat with other bytes"
            return
        covered = any(after < frame.seq and log.position + 1 >= after + 1 for after, _ in log.gaps)
        assert frame.seq <= log.position + 1 or covered or frame.seq - 1 in log.entries, (
            f"{self.device.name}: seq {frame.seq} behind {log.position} without GAP"
        )
        log.live.append(frame.seq)
        log.hold(frame.seq, frame)
        self.to_ack[frame.channel] = log
        self.ack_frames += 1
        self.ack_bytes += len(frame.raw)
        if self.ack_frames >= ACK_FRAMES or self.ack_bytes >= ACK_BYTES:
            self.tasks.append(asyncio.create_task(self.acknowledge()))
        if log.kind == "DIRECT":
            self.tasks.append(asyncio.create_task(self.direct_receipt(frame.channel, log)))

    def on_gap(self, frame):
        log = self.device.log(frame.channel)
        log.gaps.append((frame.body.get("after", 0), frame.seq))
        log.head = max(log.head, frame.seq)

    on_notify = on_gap

    # ------------------------------------------------------------ heartbeat and acknowledgement

    async def beat(self, seconds):
        while True:
            await asyncio.sleep(seconds * random.uniform(0.8, 1.2))
            await self.link.send(Frame("PING", {"time_ms": int(time.time() * 1000)}))

    async def ping(self):
        """A PING that is answered: its PONG's body."""
        stamp = random.randrange(1, 2**63)
        await self.link.send(Frame("PING", {"time_ms": stamp}))
        return (await self.frame("PONG", lambda frame: frame.body.get("time_ms") == stamp)).body

    async def acknowledge_in_time(self):
        while True:
            await asyncio.sleep(ACK_S * random.uniform(0.8, 1.2))
            await self.acknowledge()

    async def acknowledge(self):
        if not self.to_ack:
            return
        logs, self.to_ack, self.ack_frames, self.ack_bytes = self.to_ack, {}, 0, 0
        positions = [{"channel": c, "epoch": log.epoch, "seq": log.position} for c, log in logs.items()]
        self.device.ack_number += 1
        self.device.unconfirmed[self.device.ack_number] = positions
        await self.link.send(Frame("ACK", {"number": self.device.ack_number, "positions": positions}))

    async def direct_receipt(self, channel, log):
        await asyncio.sleep(DIRECT_RECEIPT_S * 0.8)
        if getattr(log, "receipted", 0) < log.position:
            log.receipted = log.position
            await self.receipt(channel, delivered=log.position)

    # ------------------------------------------------------------ requests

    def now_ms(self):
        return int(time.time() * 1000) + self.offset_ms

    def request(self):
        self.last_request += 1
        waiter = asyncio.get_running_loop().create_future()
        waiter.pages = []
        self.requests[self.last_request] = waiter
        return self.last_request, waiter

    async def ask(self, frame, put=None):
        frame.seq, waiter = self.request()
        await (put or self.link.send)(frame)
        return await asyncio.wait_for(waiter, WAIT_S)

    async def sync(self, window=0, positions=None):
        """The whole list of channels, page by page; positions that no confirmed ACK holds go with the first."""
        if positions is None:
            positions = {}
            for sent in self.device.unconfirmed.values():
                positions |= {p["channel"]: p for p in sent}
            for channel, log in self.to_ack.items():
                positions[channel] = {"channel": channel, "epoch": log.epoch, "seq": log.position}
            positions = list(positions.values())
        self.synced, cursor, states = [], b"", []
        while True:
            await self.link.send(Frame("SYNC", {"positions": positions, "window": window, "cursor": cursor}))
            done = len(self.synced)

            def last():
                return next((b for b in self.synced[done:] if b.get("complete") or b.get("cursor")), None)  # noqa: B023

            answer = await self.until(last, "SYNCED")
            if answer.get("complete"):
                break
            cursor, positions = answer["cursor"], []
        for body in self.synced:
            states += body.get("channels", [])
        return {state["channel"]: state for state in states}

    async def attempt(self, channel, content, id_, flags=0, **times):
        """One attempt: the SEND_ACK's body."""
        frame = Frame("SEND", {"client_message_id": id_} | times | content, channel=channel, flags=flags)
        answer = await self.ask(frame)
        assert answer.type == "SEND_ACK" and answer.channel == channel
        return answer.body

    async def send(self, channel, id_=None, **content):
        """Until its outcome is known: the SEND_ACK's body, or Failed."""
        id_ = id_ or client_message_id(self.now_ms())
        first = last = 0
        for _ in range(60):
            now = self.now_ms()
            repeat = {"first_attempt_ms": first, "last_attempt_ms": last, "flags": wire.RETRY} if first else {}
            ack = await self.attempt(channel, content, id_, **repeat)
            first, last = first or now, now
            outcome = ack.get("outcome", "FAIL")
            if outcome == "OK":
                return ack
            code = ack.get("code", 0)
            if outcome == "FAIL" and code not in WAIT_AND_REPEAT:
                raise Failed(code, ack.get("text", ""))
            await asyncio.sleep(max(ack.get("retry_after_ms", 0), 20) / 1000)
        raise AssertionError("a send that never ended")

    async def say(self, channel, text, **more):
        return await self.send(channel, message={"text": text} | more)

    async def open_channel(self, id_=None, **target):
        id_ = id_ or client_message_id(self.now_ms())
        answer = await self.ask(Frame("OPEN", {"client_message_id": id_} | target))
        assert answer.type == "CHANNEL"
        return answer.body

    async def fetch(self, channel, on_control=False, **range_):
        """The PAGE bodies of one FETCH."""
        put = None if on_control else self.link.fetch
        return await self.ask(Frame("FETCH", {"messages_max": 100} | range_, channel=channel), put)

    async def history(self, channel, messages_max=100):
        """All of it: {seq: DELIVER frame}, {target: amendment}, hidden seqs."""
        entries, amendments, hidden, before = {}, {}, set(), 0
        while True:
            pages = await self.fetch(channel, before=before, messages_max=messages_max)
            for page in pages:
                for frame in wire.decode_all(page.get("frames", b"")):
                    assert frame.seq not in entries, "a seq twice"
                    entries[frame.seq] = frame
                for range_ in page.get("hidden", []):
                    hidden |= set(range(range_["first"], range_["last"] + 1))
                assert not page.get("corrupt")
                amendments |= {a["target"]: a for a in page.get("amendments", [])}
                if page.get("last"):
                    covered = set(range(page["first"], page["last"] + 1))
                    assert covered <= set(entries) | hidden, "a silent hole"
                    assert before == 0 or page["last"] < before
            if pages[-1].get("complete"):
                return entries, amendments, hidden
            assert pages[-1]["first"] < (before or 2**63), "no progress"
            before = pages[-1]["first"]

    async def counts(self, channel, of):
        return (await self.ask(Frame("COUNTS", {"of": of}, channel=channel))).body

    async def receipt(self, channel, **cursor):
        await self.link.send(Frame("RECEIPT", {"cursors": [cursor]}, channel=channel))

    async def typing(self, channel, stopped=False):
        await self.link.hint(Frame("TYPING", {"stopped": stopped}, channel=channel))

    async def watch(self, users):
        await self.link.send(Frame("PRESENCE", {"watch": users}))

    async def seen_by(self, audience):
        await self.link.send(Frame("PRESENCE", {"audience": audience}))
        await self.frame("PRESENCE", lambda frame: frame.body.get("audience") == audience)

    async def renew(self, token):
        def answers():
            return [frame.body for frame in self.seen if frame.type == "AUTH" and frame.body.get("until_ms")]

        before = len(answers())
        await self.link.send(Frame("AUTH", {"token": token}))
        return (await self.until(lambda: answers()[before:], "AUTH"))[0]

    async def holds(self, channel, seq):
        """Waits until this device holds the channel without a hole up to `seq`, fetching what a GAP left out."""
        log = self.device.log(channel)
        await self.until(lambda: log.head >= seq, f"head {seq}")
        while log.position < seq:
            known = len(log.entries)
            if not log.gaps:
                await self.until(lambda: len(log.entries) > known or log.gaps, f"seq {seq}")
                continue
            log.gaps.clear()
            before = 0
            while True:
                pages = await self.fetch(channel, after=log.position, before=before)
                frames = [frame for page in pages for frame in wire.decode_all(page.get("frames", b""))]
                complete = pages[-1].get("complete")
                before = pages[-1].get("first", 0)
                for frame in frames:
                    log.entries.setdefault(frame.seq, frame)
                if complete:
                    break
            while log.position + 1 in log.entries:
                log.position += 1
