"""Two people who chat, one over WebSocket and one over QUIC, while others misbehave: all of it must arrive, once, in
order and soon."""

import asyncio
import time

from fanfare import Device, Session


class Chat:
    def __init__(self, running, seconds_between):
        self.running, self.pause = running, seconds_between
        self.latencies = []

    async def __aenter__(self):
        self.sessions = []
        for user, kind in (("alice", "ws"), ("bob", "quic")):
            token = self.running.token(user)
            session = await Session.open(self.running.server, Device(user), kind, token=token, delivery="TIERED")
            await session.sync()
            self.sessions.append(session)
        alice, bob = self.sessions
        self.channel = (await alice.open_channel(direct=bob.welcome["user"]))["channel"]
        await alice.say(self.channel, "shall we")
        self.task = asyncio.create_task(self.chat())
        return self

    async def chat(self):
        number = 0
        while True:
            speaker, listener = self.sessions[number % 2], self.sessions[1 - number % 2]
            began = time.monotonic()
            ack = await speaker.say(self.channel, f"line {number}")
            await listener.holds(self.channel, ack["seq"])
            self.latencies.append(time.monotonic() - began)
            number += 1
            await asyncio.sleep(self.pause)

    async def __aexit__(self, kind, error, trace):
        if kind is not None:
            self.task.cancel()
            return
        deadline = time.monotonic() + 30
        while len(self.latencies) < 5 and not self.task.done():
            assert time.monotonic() < deadline, "the chat stands still"
            await asyncio.sleep(0.1)
        assert not self.task.done(), f"the chat broke off: {self.task.exception()!r}"
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        alice, bob = self.sessions
        head = alice.device.log(self.channel).head
        texts = []
        for session in self.sessions:
            await session.holds(self.channel, head)
            log = session.device.log(self.channel)
            assert log.live == sorted(set(log.live)) and not log.gaps, "in order, once, without GAP"
            texts.append([log.entries[seq].raw for seq in sorted(log.entries)])
        assert texts[0] == texts[1]
        for session in self.sessions:
            await session.close()
        worst = sorted(self.latencies)
        print(
            f"  two normal clients: {len(worst)} messages, median {worst[len(worst) // 2] * 1000:.0f} ms, "
            f"worst {worst[-1] * 1000:.0f} ms",
            flush=True,
        )
        assert worst[-1] < 3, "the others were harmed"
