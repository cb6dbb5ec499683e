"""Whole conversations against the real binary: once with everybody's first device on WebSocket, once on QUIC, the
second devices on the other one. What each saw must be one history, byte by byte."""

import asyncio
import os
import time
import traceback

import wire
from fanfare import (
    BODY_TOO_LARGE,
    CLIENT_ID_AHEAD,
    CONFLICT,
    EXPIRED,
    FORBIDDEN,
    NO_SUCH_TARGET,
    NOT_A_MEMBER,
    RATE_LIMITED,
    RECALLED,
    Device,
    Failed,
    Session,
    SessionEnded,
    client_message_id,
)
from running import RunningServer
from wire import BAD_FIELD, OUT_OF_STATE, UNKNOWN_TYPE, Frame

OTHER = {"ws": "quic", "quic": "ws"}
DAY_MS = 24 * 3600 * 1000
TOKEN_MISSING, TOKEN_MALFORMED, TEXT_MESSAGE, BAD_BODY, VERSION_UNSUPPORTED = 2001, 2002, 1008, 1004, 1007


async def refused(wanted, what):
    try:
        answer = await what
    except Failed as failed:
        assert failed.code == wanted, f"{failed}, not {wanted}"
        return
    raise AssertionError(f"{wanted} was wanted, came {answer}")


class Conversation:
    """alice and bob with two devices each, carol with one; `kind` is the first devices' transport."""

    def __init__(self, running, kind):
        self.running, self.server, self.kind = running, running.server, kind

    async def open(self, user, kind, number=1):
        device = Device(f"{user}-{self.kind}-{number}")
        return await Session.open(self.server, device, kind, token=self.running.token(user), delivery="TIERED")

    async def run(self):
        kind, other = self.kind, OTHER[self.kind]
        self.alice = await self.open("alice", kind)
        self.alice2 = await self.open("alice", other, 2)
        self.bob = await self.open("bob", kind)
        self.bob2 = await self.open("bob", other, 2)
        self.carol = await self.open("carol", other)
        self.all = [self.alice, self.alice2, self.bob, self.bob2, self.carol]
        for step in (
            self.welcome,
            self.cold_sync,
            self.direct,
            self.repeats,
            self.group,
            self.amendments,
            self.typing,
            self.presence,
            self.receipts_and_counts,
            self.paging,
            self.resume,
            self.acknowledged,
            self.renew,
            self.membership,
            self.refusals,
            self.bursts,
            self.one_history,
        ):
            began = time.monotonic()
            await step()
            print(f"  {kind}: {step.__name__.replace('_', ' ')} ({(time.monotonic() - began) * 1000:.0f} ms)", flush=True)
        for session in self.all:
            await session.close()

    async def welcome(self):
        welcome = self.alice.welcome
        assert welcome["version"] == 1 and welcome["user_name"] == "alice"
        assert welcome["user"] == self.alice2.welcome["user"] != self.bob.welcome["user"]
        assert welcome["session"] != self.alice2.welcome["session"]
        assert abs(welcome["server_time_ms"] - time.time() * 1000) < 5_000
        assert welcome["resume"] and welcome["resume_until_ms"] > welcome["server_time_ms"]
        assert welcome["heartbeat_ms"] >= 1_000 and not welcome.get("resumed")
        limits = welcome["limits"]
        assert limits["frame_bytes_max"] == 65_536 and limits["body_bytes_max"] == 16_384
        assert limits["entry_bytes_max"] == 24_576 and limits["fetch_messages_max"] == 100
        pong = await self.alice.ping()
        assert abs(pong["server_time_ms"] - time.time() * 1000) < 5_000
        self.ids = {name: getattr(self, name).welcome["user"] for name in ("alice", "bob", "carol")}

    async def cold_sync(self):
        for session in self.all:
            states = await session.sync()
            named = {state.get("name"): state for state in states.values()}
            assert "general" in named, "the seeded group"
            assert named["general"]["kind"] == "GROUP" and named["general"]["role"]

    async def direct(self):
        opened = await self.alice.open_channel(direct=self.ids["bob"])
        channel = self.dm = opened["channel"]
        assert opened["kind"] == "DIRECT" and opened["peer"] == self.ids["bob"]
        again = await self.bob.open_channel(direct=self.ids["alice"])
        assert again["channel"] == channel and again["peer"] == self.ids["alice"]
        ack = await self.alice.say(channel, f"hello bob, over {self.kind}")
        assert ack["epoch"] and ack["seq"] and not ack.get("repeated_send")
        assert abs((ack["message_id"] >> 21) + 1_735_689_600_000 - time.time() * 1000) < 5_000
        for session in (self.alice, self.alice2, self.bob, self.bob2):
            await session.holds(channel, ack["seq"])
            entry = session.device.log(channel).entries[ack["seq"]]
            assert entry.body["sender"] == self.ids["alice"] and entry.flags & wire.COUNTED
            assert entry.body["message"]["text"] == f"hello bob, over {self.kind}"
            assert entry.body["message_id"] == ack["message_id"]
        answer = await self.bob2.say(channel, "hello alice")
        assert answer["seq"] == ack["seq"] + 1 and answer["ordinal"] == ack["ordinal"] + 1
        await self.alice.holds(channel, answer["seq"])
        # Everybody tells by itself what was delivered; the other side hears of it.
        await self.bob.frame(
            "RECEIPT",
            lambda frame: frame.channel == channel
            and any(c["user"] == self.ids["alice"] and c.get("delivered", 0) >= answer["seq"]
                    for c in frame.body.get("cursors", [])),
        )

    async def repeats(self):
        """The same client message id, three times, from two sessions: one entry."""
        id_ = client_message_id(self.alice.now_ms())
        first = await self.alice.send(self.dm, id_, message={"text": "once"})
        times = {"first_attempt_ms": self.alice.now_ms() - 50, "last_attempt_ms": self.alice.now_ms(), "flags": wire.RETRY}
        for session in (self.alice, self.alice2):
            again = await session.attempt(self.dm, {"message": {"text": "once"}}, id_, **times)
            assert again["outcome"] == "OK" and again.get("repeated_send"), again
            assert (again["seq"], again["message_id"]) == (first["seq"], first["message_id"])
        await refused(CONFLICT, self.alice.send(self.dm, id_, message={"text": "another"}))
        # Many attempts at once: still one.
        id_ = client_message_id(self.alice.now_ms())
        acks = await asyncio.gather(
            *(s.send(self.dm, id_, message={"text": "together"}) for s in (self.alice, self.alice2, self.alice))
        )
        assert len({ack["seq"] for ack in acks}) == 1 and acks[0]["seq"] == first["seq"] + 1
        # The same id of another sender, or in another channel, is another message.
        other = await self.bob.send(self.dm, id_, message={"text": "mine"})
        assert other["seq"] == first["seq"] + 2

    async def group(self):
        id_ = client_message_id(self.alice.now_ms())
        group = {
            "name": f"crabs-{self.kind}",
            "members": [self.ids["bob"], self.ids["carol"]],
            "history": "FROM_JOIN",
            "join": "BY_INVITATION",
        }
        opened = await self.alice.open_channel(id_, group=group)
        again = await self.alice.open_channel(id_, group=group)
        channel = self.crabs = opened["channel"]
        assert again["channel"] == channel, "OPEN is idempotent by its client message id"
        assert opened["role"] == "OWNER" and opened["members"] == 3 and opened["name"] == group["name"]
        for session in (self.bob, self.bob2, self.carol):
            told = await session.frame("CHANNEL", lambda frame: frame.channel == channel)
            assert told.seq == 0 and told.body["role"] == "MEMBER"
        self.said = []
        everything = {
            "content_type": "text/markdown",
            "mentions": [self.ids["bob"]],
            "attachments": [{"id": "a", "url": "https://assets.example/a", "name": "ü.png", "bytes": 12, "sha256": b"\1" * 32}],
        }
        for session, text, more in (
            (self.alice, "first", everything),
            (self.bob, "second \U0001f980", {}),
            (self.carol, "third", {}),
        ):
            ack = await session.say(channel, text, **more)
            self.said.append(ack["seq"])
        reply = await self.bob2.say(channel, "a reply", reply_to=self.said[0])
        opaque = await self.carol.send(channel, message={"opaque": bytes(range(256))})
        longest = await self.alice.say(channel, "x" * 16_384)
        for session in self.all:
            await session.holds(channel, longest["seq"])
            entries = session.device.log(channel).entries
            assert entries[self.said[0]].body["message"] == {"text": "first"} | everything
            assert entries[reply["seq"]].body["message"]["reply_to"] == self.said[0]
            assert entries[opaque["seq"]].body["message"] == {"opaque": bytes(range(256))}
            assert entries[opaque["seq"]].flags & wire.OPAQUE and not entries[reply["seq"]].flags & wire.OPAQUE
            assert len(entries[longest["seq"]].body["message"]["text"]) == 16_384

    async def amendments(self):
        channel, (first, second, third) = self.crabs, self.said
        await self.bob.send(channel, edit={"target": second, "message": {"text": "second, better"}})
        edited = await self.bob.send(channel, edit={"target": second, "message": {"text": "second, best"}})
        await refused(FORBIDDEN, self.carol.send(channel, edit={"target": second, "message": {"text": "mine"}}))
        await refused(FORBIDDEN, self.carol.send(channel, recall={"target": second}))
        await self.carol.send(channel, recall={"target": third})
        await refused(RECALLED, self.carol.send(channel, edit={"target": third, "message": {"text": "back"}}))
        for session in (self.alice, self.bob, self.carol):
            await session.send(channel, reaction={"target": first, "emoji": "\U0001f44d"})
        await self.bob.send(channel, reaction={"target": first, "emoji": "\U0001f980"})
        last = await self.carol.send(channel, reaction={"target": first, "emoji": "\U0001f44d", "remove": True})
        assert not last.get("repeated_send")
        await refused(NO_SUCH_TARGET, self.bob.send(channel, reaction={"target": 10**9, "emoji": "x"}))
        for session in self.all:
            await session.holds(channel, last["seq"])
            assert not session.device.log(channel).entries[edited["seq"]].flags & wire.COUNTED
        for session, mine in ((self.bob, True), (self.carol, False)):
            entries, amendments, hidden = await session.history(channel)
            # From their join on, which is the entry behind the one that made the group.
            assert hidden <= {1}, hidden
            edit = wire.decode(amendments[second]["frame"])
            assert edit.seq == edited["seq"] and edit.body["edit"]["message"]["text"] == "second, best"
            assert entries[second].body["message"]["text"] == "second \U0001f980", "what was stored stays as it was"
            assert entries[third].flags & wire.STUB and "message" not in entries[third].body
            assert wire.decode(amendments[third]["frame"]).body["recall"]["target"] == third
            counts = {r["emoji"]: (r["count"], r.get("mine", False)) for r in amendments[first]["reactions"]}
            assert counts == {"\U0001f44d": (2, mine), "\U0001f980": (1, mine)}, counts

    async def typing(self):
        before = len(self.alice.seen)

        def others(frame):
            return frame.channel == self.crabs and frame.body.get("user") == self.ids["bob"]

        await self.bob.typing(self.crabs)
        for session in (self.alice, self.alice2, self.carol):
            frame = await session.frame("TYPING", others)
            assert not frame.body.get("stopped")
        # At most once in 3 s and user: a hundred more are one or none.
        for _ in range(20):
            await self.bob.typing(self.crabs)
        await self.bob.ping()
        await self.alice.ping()
        assert sum(f.type == "TYPING" for f in self.alice.seen[before:]) <= 2

    async def presence(self):
        bob, carol, nobody = self.ids["bob"], self.ids["carol"], 1

        def told(user, status, since=0):
            def matches(frame):
                users = [(one["user"], one.get("status", "NOT_TOLD")) for one in frame.body.get("users", [])]
                return (user, status) in users and any(frame is one for one in self.alice.seen[since:])

            return matches

        await self.alice.watch([bob, carol, nobody])
        for user, status in ((bob, "ONLINE"), (carol, "ONLINE"), (nobody, "NOT_TOLD")):
            await self.alice.frame("PRESENCE", told(user, status))
        for audience, status in (("NOBODY", "NOT_TOLD"), ("SHARED_CHANNELS", "ONLINE")):
            since = len(self.alice.seen)
            await self.carol.seen_by(audience)
            await self.alice.frame("PRESENCE", told(carol, status, since))
        await self.alice.watch([])

    async def receipts_and_counts(self):
        channel = self.crabs
        seq, log = self.said[1], self.bob.device.log(channel)
        await self.bob.receipt(channel, delivered=seq, read=seq, read_ordinal=log.entries[seq].body["ordinal"])

        def of_bob(frame):
            return frame.channel == channel and any(
                c["user"] == self.ids["bob"] and c.get("read", 0) >= seq for c in frame.body.get("cursors", [])
            )

        await self.alice.frame("RECEIPT", of_bob)
        await self.carol.frame("RECEIPT", of_bob)
        counts = await self.alice.counts(channel, seq)
        assert counts["members"] == 3 and counts["read"] >= 1, counts
        assert counts["delivered"] >= counts["read"]
        states = await self.bob2.sync()
        state = states[channel]
        assert state["read"] == seq
        assert state["ordinal"] - state["read_ordinal"] == sum(
            1 for s, entry in log.entries.items() if s > seq and entry.flags & wire.COUNTED
        ), "unread = ordinal - read_ordinal"

    async def paging(self):
        """Small pages, big pages, on their own stream and on control: the same entries, and those that were live."""
        channel = self.crabs
        small, _, _ = await self.alice.history(channel, messages_max=1)
        large, _, _ = await self.alice2.history(channel)
        assert {s: f.raw for s, f in small.items()} == {s: f.raw for s, f in large.items()}
        live = self.alice.device.log(channel).entries
        for seq, frame in live.items():
            assert large[seq].flags & wire.STUB or large[seq].raw == frame.raw, f"seq {seq}"
        pages = await self.alice.fetch(channel, on_control=True, after=self.said[0], before=self.said[2])
        assert [f.seq for p in pages for f in wire.decode_all(p.get("frames", b""))] == [self.said[1]]
        assert pages[-1]["complete"] and pages[-1]["head"] == max(large)

    async def resume(self):
        """A device loses its network, misses entries of two channels, resumes, and SYNC fills exactly those."""
        device, kind = self.alice2.device, self.alice2.link.kind
        before = {c: device.log(c).position for c in (self.dm, self.crabs)}
        await self.alice2.cut()
        self.all.remove(self.alice2)
        missed = {self.dm: [], self.crabs: []}
        for number in range(5):
            missed[self.dm].append((await self.bob.say(self.dm, f"missed {number}"))["seq"])
            missed[self.crabs].append((await self.carol.say(self.crabs, f"missed too {number}"))["seq"])
        for log in device.logs.values():
            log.live, log.gaps, log.followed = [], [], False
        self.alice2 = await Session.open(self.server, device, kind, resume=device.resume, delivery="TIERED")
        self.all.append(self.alice2)
        assert self.alice2.welcome.get("resumed"), "the secret was taken"
        positions = [{"channel": c, "epoch": device.log(c).epoch, "seq": seq} for c, seq in before.items()]
        states = await self.alice2.sync(positions=positions)
        for channel, seqs in missed.items():
            assert states[channel]["head"] == seqs[-1] and states[channel]["position"] == before[channel]
            await self.alice2.holds(channel, seqs[-1])
            assert device.log(channel).live == seqs, "exactly what was missed, in order"
            assert not device.log(channel).gaps, "from the tail"
        # And live goes on behind it.
        more = await self.bob.say(self.dm, "and on")
        await self.alice2.holds(self.dm, more["seq"])
        # A used or foreign secret is refused; the token beside it decides.
        broken = bytes(len(device.resume))
        token = self.running.token("alice")
        both = await Session.open(self.server, Device("both"), kind, token=token, resume=broken, delivery="TIERED")
        assert not both.welcome.get("resumed")
        await both.close()

    async def acknowledged(self):
        """What an ACK says is where the server starts, once it is confirmed."""
        session = self.carol
        head = session.device.log(self.crabs).head
        await session.holds(self.crabs, head)
        await session.acknowledge()
        number = session.device.ack_number

        async def confirmed():
            return (await session.ping()).get("acks_confirmed", 0) >= number

        deadline = time.monotonic() + 30
        while not await confirmed():
            assert time.monotonic() < deadline, "the ACK was never confirmed"
            await asyncio.sleep(1.2)
        assert not session.device.unconfirmed
        device, kind = session.device, session.link.kind
        await session.cut()
        self.all.remove(session)
        for log in device.logs.values():
            log.live, log.gaps, log.followed = [], [], False
        self.carol = await Session.open(self.server, device, kind, token=self.running.token("carol"), delivery="TIERED")
        self.all.append(self.carol)
        assert self.carol.welcome.get("acks_confirmed", 0) >= number
        states = await self.carol.sync()
        assert states[self.crabs]["position"] == head, states[self.crabs]
        await self.carol.ping()
        assert device.log(self.crabs).live == [], "nothing comes twice"

    async def renew(self):
        answer = await self.bob.renew(self.running.token("bob"))
        assert answer["until_ms"] > self.bob.now_ms() and answer["resume"]

    async def membership(self):
        channel = self.crabs
        dave = await self.open("dave", self.kind)
        self.all.append(dave)
        dave_id = dave.welcome["user"]
        await dave.sync()
        await refused(NOT_A_MEMBER, dave.say(channel, "let me in"))
        await refused(NOT_A_MEMBER, dave.fetch(channel))
        await refused(NOT_A_MEMBER, dave.send(channel, membership={"change": "JOINED", "users": [dave_id]}))
        await refused(FORBIDDEN, self.carol.send(channel, membership={"change": "JOINED", "users": [dave_id]}))
        joined = await self.alice.send(channel, membership={"change": "JOINED", "users": [dave_id]})
        told = await dave.frame("CHANNEL", lambda frame: frame.channel == channel)
        assert told.body["role"] == "MEMBER" and told.body["members"] == 4
        ack = await dave.say(channel, "thank you")
        await dave.holds(channel, ack["seq"])
        entries, _, hidden = await dave.history(channel)
        assert min(entries) >= joined["seq"] and hidden == set(range(1, min(entries))), "from the join on"
        await self.alice.send(channel, membership={"change": "ROLE_CHANGED", "users": [self.ids["bob"]], "role": "ADMIN"})
        await self.bob.send(channel, channel_change={"name": f"lobsters-{self.kind}"})
        removed = await self.bob.send(channel, membership={"change": "REMOVED", "users": [dave_id]})
        out = await dave.frame("CHANNEL", lambda frame: frame.channel == channel and not frame.body.get("role"))
        assert out.seq == 0
        last = await self.carol.say(channel, "without dave")
        await self.alice.holds(channel, last["seq"])
        await dave.ping()
        assert last["seq"] not in dave.device.log(channel).entries and removed["seq"] < last["seq"]
        await refused(NOT_A_MEMBER, dave.say(channel, "still here"))
        for session in (self.alice, self.bob2, self.carol):
            await session.holds(channel, last["seq"])
            assert session.device.log(channel).entries[removed["seq"]].body["membership"] == {
                "change": "REMOVED",
                "users": [dave_id],
            }

    async def refusals(self):
        """Numbers of requests that fail while the session goes on, then of sessions that end."""
        alice = self.alice
        await refused(NOT_A_MEMBER, alice.say(12_345, "nobody there"))
        await refused(NOT_A_MEMBER, alice.fetch(12_345))
        await refused(NOT_A_MEMBER, alice.counts(12_345, 1))
        await refused(BODY_TOO_LARGE, alice.say(self.dm, "x" * 16_385))
        await refused(BAD_FIELD, alice.fetch(self.dm, messages_max=101))
        await refused(BAD_FIELD, alice.fetch(self.dm, on_control=True, messages_max=0))
        await refused(BAD_FIELD, alice.send(self.dm))
        await refused(BAD_FIELD, alice.send(self.dm, b"no UUID", message={"text": "x"}))
        await refused(EXPIRED, alice.send(self.dm, client_message_id(alice.now_ms() - 8 * DAY_MS), message={"text": "x"}))
        await refused(CLIENT_ID_AHEAD, alice.send(self.dm, client_message_id(alice.now_ms() + 180_000), message={"text": "x"}))
        await alice.link.send(Frame("TYPING", channel=12_345))
        await alice.frame("ERROR", lambda frame: frame.body["code"] == NOT_A_MEMBER)
        await alice.ping()

        token = self.running.token("alice")
        for kind in ("ws", "quic"):
            for what, code, close, data in (
                ("an unknown type", UNKNOWN_TYPE, 4301, bytes([0x7F]) + bytes(7)),
                ("a server's frame", UNKNOWN_TYPE, 4301, Frame("PONG").encode()),
                ("HELLO again", OUT_OF_STATE, 4305, Frame("HELLO", {"version_max": 1, "device": 1, "token": "t"}).encode()),
                ("a body that ends early", BAD_BODY, 4304, bytes([4, 0, 0, 0, 2, 0, 0, 0, 9, 1])),
                ("an ACK of nothing", BAD_FIELD, 4306, Frame("ACK").encode()),
            ):
                session = await Session.open(self.server, Device(what), kind, token=token, delivery="TIERED")
                await session.link.send_bytes(data)
                await self.ends(session, code, close, f"{what} over {kind}")
            for what, code, close, hello in (
                ("no token", TOKEN_MISSING, 4217, {}),
                ("a broken token", TOKEN_MALFORMED, 4218, {"token": "abc"}),
                ("a version of the future", VERSION_UNSUPPORTED, 4307, {"token": token, "version_min": 9, "version_max": 9}),
                ("no device", BAD_FIELD, 4306, {"token": token, "device": 0}),
            ):
                try:
                    await Session.open(self.server, Device(what), kind, delivery="TIERED", hello=hello)
                    raise AssertionError(f"{what} was welcomed over {kind}")
                except SessionEnded as ended:
                    assert (ended.error, ended.close_code) == (code, close), f"{what} over {kind}: {ended}"
        session = await Session.open(self.server, Device("text"), "ws", token=token, delivery="TIERED")
        await session.link.send_bytes("a text message")
        await self.ends(session, TEXT_MESSAGE, 4308, "a text message")
        expired = self.running.token("alice", "1s")
        await asyncio.sleep(0.1)
        short = await Session.open(self.server, Device("short"), self.kind, token=expired, delivery="TIERED")
        asked = await short.frame("AUTH")
        assert asked.body["required_within_ms"] > 0, "asked 60 s before the end, so at once"
        await short.renew(token)
        await short.close()
        wss = await type(self.alice2.link if self.alice2.link.kind == "ws" else self.alice.link).connect(
            self.server, tls=True
        )
        await wss.send(Frame("HELLO", {"version_min": 1, "version_max": 1, "device": 1, "token": token}))
        assert (await asyncio.wait_for(wss.frames.get(), 5)).type == "WELCOME", "TLS on the same port"
        await wss.close()

    async def ends(self, session, code, close, what):
        closed = await asyncio.wait_for(session.ended, 5)
        assert (session.error, closed.code) == (code, close), f"{what}: CLOSE {session.error}, close code {closed.code}"
        await session.stop()
        if session.link.kind == "quic":
            await session.link.close()

    async def bursts(self):
        """Beyond the burst sends are told to wait, and a client that waits gets all of them through, once each."""
        attempts = await asyncio.gather(
            *(self.carol.attempt(self.crabs, {"message": {"text": f"burst {n}"}}, client_message_id(self.carol.now_ms()))
              for n in range(50))
        )
        limited = [ack for ack in attempts if ack.get("outcome", "FAIL") == "FAIL"]
        assert limited and all(ack["code"] == RATE_LIMITED and ack["retry_after_ms"] > 0 for ack in limited)
        assert len(limited) < 45, "the burst passed"
        acks = await asyncio.gather(*(self.carol.say(self.crabs, f"patient {n}") for n in range(4)))
        seqs = sorted(ack["seq"] for ack in acks)
        assert seqs == list(range(seqs[0], seqs[0] + 4))
        self.last = seqs[-1]

    async def one_history(self):
        """All devices of all members, live on either transport and paged by a cold one, hold the same bytes."""
        for session in (self.alice, self.alice2, self.bob, self.bob2, self.carol):
            await session.holds(self.crabs, self.last)
        cold = await self.open("bob", OTHER[self.kind], 3)
        states = await cold.sync()
        assert states[self.crabs]["head"] == self.last
        for channel, members in (
            (self.crabs, (self.alice, self.alice2, self.bob, self.bob2, self.carol)),
            (self.dm, (self.alice, self.alice2, self.bob, self.bob2)),
        ):
            paged, _, hidden = await cold.history(channel)
            assert sorted(set(paged) | hidden) == list(range(1, states[channel]["head"] + 1)), "dense from 1"
            assert hidden <= {1}, hidden
            texts = [(f.body["sender"], f.body["client_message_id"]) for f in paged.values() if f.body.get("client_message_id")]
            assert len(texts) == len(set(texts)), "no client message id twice"
            for session in members:
                held = session.device.log(channel).entries
                for seq, frame in held.items():
                    paged_frame = paged[seq] if seq not in hidden else frame
                    same = paged_frame.flags & wire.STUB or frame.raw == paged_frame.raw
                    assert same, f"{session.device.name} seq {seq}"
                live = session.device.log(channel).live
                assert live == sorted(live), "in order"
        await cold.close()


async def main():
    with RunningServer(os.environ["FANFARE"]) as running:
        for kind in ("ws", "quic"):
            await asyncio.wait_for(Conversation(running, kind).run(), 150)
    print("interop: ok: the conversation over WebSocket and over QUIC, one history")


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except Exception:  # noqa: BLE001 - the end of the program
        traceback.print_exc()
        raise SystemExit("interop: failed") from None
