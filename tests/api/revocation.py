"""How soon what was revoked ends, and who was removed hears nothing more: idle, while the channel is busy, and while the
session is just coming back. Over both transports; the greatest latency of each case is printed. See `run`.

A latency runs from when the change was answered to the last frame, or to the end of the connection, whichever is later.
"""

import asyncio
import os
import random
import sys
import time

from fanfare import NOT_A_MEMBER, Device, Failed, Server, Session, SessionEnded, client_message_id
from http_client import Http
from running import RunningServer, raise_file_limit
from wire import Frame

PASSWORD, OTHER_PASSWORD = "correct horse battery", "another horse battery"
REVOKED, RESUME_REFUSED, LOGIN_ENDED, REAUTHENTICATE = 2008, 2006, 2014, 2007
# What guarantees.md (G7, and "Sessions" among the attacks) allows; and how often a resume is interrupted.
WITHIN_S, RESUMES = 2.0, 20
# Sends under way in the busy channel; what it has committed, and what the victim has seen, before anything is changed.
IN_FLIGHT, BUSY_AT, SEEN = 30, 50, 100


class Watched(Session):
    """Notes when frames come: all, and those of each channel with the highest seq that a DELIVER had."""

    def __init__(self, device, link):
        super().__init__(device, link)
        self.last = 0.0
        self.of_channel = {}

    def take(self, frame):
        self.last = time.monotonic()
        if frame.channel:
            _, seq = self.of_channel.get(frame.channel, (0, 0))
            self.of_channel[frame.channel] = (self.last, max(seq, frame.seq if frame.type == "DELIVER" else 0))
        super().take(frame)
        if frame.type == "DELIVER":
            # Thousands, which nobody asks for again.
            self.seen.pop()


class Scene:
    """A server, the owner of its channels, and a process that fills them."""

    def __init__(self, running):
        self.running, self.api = running, Http(running.server.http)
        self.admin = running.admin["token"]
        self.worst = {}
        # Sessions that were welcomed again before they were ended.
        self.came_back = 0
        self.accounts = 0

    async def begin(self):
        token = await asyncio.to_thread(self.running.token, "alice")
        # Without SYNC it is sent nothing of its channels.
        self.owner = await Session.open(self.running.server, Device("owner"), "ws", token=token, delivery="TIERED")
        self.noise = await Noise.begin(self.running)
        self.carol = self.api.good("GET", "/v1/account", token=self.running.token("carol"))["user"]

    async def user(self, kind, name):
        token = await asyncio.to_thread(self.running.token, name)
        session = await Watched.open(self.running.server, Device(name), kind, token=token, delivery="TIERED")
        await session.sync()
        return session

    async def channel(self, *members):
        wish = {"name": f"busy-{random.randrange(10**9)}", "members": ["bob", *members]}
        token = await asyncio.to_thread(self.running.token, "alice")
        made = await asyncio.to_thread(self.api.good, "POST", "/v1/channels", wish, token)
        return int(made["channel"])

    def signed_up(self):
        """(name, device, what signing in gave)."""
        self.accounts += 1
        name, device = f"victim-{self.accounts}", Device("victim")
        self.api.good("POST", "/v1/accounts", {"name": name, "password": PASSWORD})
        return name, device, self.sign_in(name, device)

    def sign_in(self, name, device):
        wish = {"name": name, "password": PASSWORD, "device": str(device.number)}
        return self.api.good("POST", "/v1/sessions", wish)

    def note(self, case, seconds):
        self.worst[case] = max(self.worst.get(case, 0.0), seconds)

    # ------------------------------------------------------------ ways to end a session

    def log_out(self, name, device, signed_in):
        self.api.good("DELETE", "/v1/sessions/current", token=signed_in["token"])

    def change_password(self, name, device, signed_in):
        self.api.good("PUT", "/v1/account/password", {"old": PASSWORD, "new": OTHER_PASSWORD}, signed_in["token"])

    def remove_device(self, name, device, signed_in):
        other = self.sign_in(name, Device("other"))
        self.api.good("DELETE", f"/v1/devices/{device.number}", token=other["token"])

    def sign_out_everywhere(self, name, device, signed_in):
        self.api.good("DELETE", "/v1/sessions", token=signed_in["token"])

    def disable(self, name, device, signed_in):
        self.running.run("user", "disable", name)

    def revoke(self, name, device, signed_in):
        self.running.run("user", "revoke", name)

    def refresh_reuse(self, name, device, signed_in):
        """A refresh token that two parties use ends the login."""
        first = signed_in["refresh_token"]
        again = self.api.good("POST", "/v1/sessions/refresh", {"refresh_token": first})
        self.api.good("POST", "/v1/sessions/refresh", {"refresh_token": again["refresh_token"]})
        self.api.refused(401, LOGIN_ENDED, "POST", "/v1/sessions/refresh", {"refresh_token": first})

    WAYS = (log_out, change_password, remove_device, sign_out_everywhere, disable, revoke, refresh_reuse)


# ---------------------------------------------------------------- noise


class Noise:
    """A process of its own whose session fills channels as fast as its sends are answered, with hints and cursors between."""

    @classmethod
    async def begin(cls, running):
        server, token = running.server, await asyncio.to_thread(running.token, "bob")
        noise = cls()
        noise.process = await asyncio.create_subprocess_exec(
            sys.executable, __file__, "noise", server.host, str(server.port), server.http, token,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )
        noise.sends, noise.seconds = 0, 0.0
        return noise

    async def say(self, line, wanted):
        self.process.stdin.write(f"{line}\n".encode())
        answer = await asyncio.wait_for(self.process.stdout.readline(), 20)
        assert answer.decode().startswith(wanted), f"the noise broke off: {answer}"
        return answer.decode().split()

    async def start(self, channel):
        """Returns when entries of it are committed."""
        await self.say(channel, "busy")

    async def stop(self):
        _, sends, seconds = await self.say("stop", "stopped")
        self.sends, self.seconds = self.sends + int(sends), self.seconds + float(seconds)

    async def end(self):
        self.process.stdin.close()
        assert await self.process.wait() == 0


async def noise(host, port, http, token):
    """The process of `Noise`."""
    server = Server(host, int(port), http)
    server.read_certificate()
    talker = await Session.open(server, Device("noise"), "ws", token=token, delivery="TIERED")
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    sent, head, filling, busy = 0, 0, None, asyncio.Event()

    async def fill(channel):
        nonlocal sent, head
        while True:
            id_ = client_message_id(talker.now_ms())
            ack = await talker.attempt(channel, {"message": {"text": "x" * 200}}, id_)
            if ack.get("outcome") == "OK":
                sent, head = sent + 1, max(head, ack["seq"])
            if sent >= BUSY_AT:
                busy.set()

    async def hints(channel):
        while True:
            await talker.typing(channel)
            if head:
                await talker.receipt(channel, delivered=head, read=head)
            await asyncio.sleep(0.2)

    while line := (await lines.readline()).decode().strip():
        if line == "stop":
            filling.cancel()
            done = await asyncio.gather(filling, return_exceptions=True)
            assert isinstance(done[0], asyncio.CancelledError), f"{done[0]!r}"
            print("stopped", sent, time.monotonic() - began, flush=True)
            continue
        sent, head, began = 0, 0, time.monotonic()
        busy.clear()
        filling = asyncio.gather(hints(int(line)), *(fill(int(line)) for _ in range(IN_FLIGHT)))
        await asyncio.wait({filling, asyncio.ensure_future(busy.wait())}, return_when=asyncio.FIRST_COMPLETED)
        print("busy", flush=True)
    await talker.close()


# ---------------------------------------------------------------- cases


async def ended(session, changed_at):
    """How long after that moment the session ended, with REVOKED; its last frame came before."""
    try:
        await asyncio.wait_for(asyncio.shield(session.ended), WITHIN_S + 3)
    except TimeoutError:
        raise AssertionError(f"over {session.link.kind} the session goes on") from None
    took = max(0.0, max(session.last, time.monotonic()) - changed_at)
    assert session.error == REVOKED, f"ended by {session.error}"
    await session.stop()
    return took


async def void(scene, device, signed_in, kind):
    """Nothing that the victim proved itself with lets it in any more."""
    for proof, numbers in (({"token": signed_in["token"]}, (REVOKED,)), ({"resume": device.resume}, (RESUME_REFUSED, REVOKED))):
        try:
            await Session.open(scene.running.server, device, kind, delivery="TIERED", **proof)
        except (Failed, SessionEnded) as refused:
            assert refused.error in numbers, f"{list(proof)}: {refused}"
        else:
            raise AssertionError(f"{list(proof)} lets it in again")
    api = scene.api
    await asyncio.to_thread(api.refused, 401, REVOKED, "GET", "/v1/account", None, signed_in["token"])
    refresh = {"refresh_token": signed_in["refresh_token"]}
    await asyncio.to_thread(api.refused, 401, LOGIN_ENDED, "POST", "/v1/sessions/refresh", refresh)


async def sessions(scene, kind, busy):
    """Every way to end a session, while it is idle or in the middle of a fan-out."""
    for way in Scene.WAYS:
        name, device, signed_in = await asyncio.to_thread(scene.signed_up)
        channel = await scene.channel(name)
        live = await Watched.open(scene.running.server, device, kind, token=signed_in["token"], delivery="TIERED")
        await live.sync()
        if busy:
            await scene.noise.start(channel)
            await live.until(lambda: live.of_channel.get(channel, (0, 0))[1] > SEEN, "entries")  # noqa: B023
        await asyncio.to_thread(way, scene, name, device, signed_in)
        took = await ended(live, time.monotonic())
        if busy:
            await scene.noise.stop()
        scene.note(f"{way.__name__}, {'busy' if busy else 'idle'}, {kind}", took)
        await void(scene, device, signed_in, kind)


async def resumes(scene, kind):
    """The session is in the middle of coming back, at another moment each time."""
    for turn in range(RESUMES):
        way = Scene.WAYS[turn % len(Scene.WAYS)]
        name, device, signed_in = await asyncio.to_thread(scene.signed_up)
        channel = await scene.channel(name)
        live = await Watched.open(scene.running.server, device, kind, token=signed_in["token"], delivery="TIERED")
        await live.sync()
        await live.cut()
        for log in device.logs.values():
            log.live, log.gaps, log.followed = [], [], False
        secret, back = device.resume, []

        async def come_back():
            try:
                session = await Watched.open(
                    scene.running.server, device, kind, resume=secret, delivery="TIERED"  # noqa: B023
                )
                back.append(session)  # noqa: B023
                await session.sync()
                await session.until(lambda: False, "an end", WITHIN_S + 3)
            except SessionEnded as over:
                assert over.error in (RESUME_REFUSED, REVOKED), over
                return over
            raise AssertionError(f"{way.__name__}: a session that came back goes on")  # noqa: B023

        await scene.noise.start(channel)
        change = asyncio.to_thread(way, scene, name, device, signed_in)
        # From before the connection is there to behind its SYNC.
        early = random.uniform(-0.15, 0.05)
        coming = asyncio.create_task(delayed(come_back(), -early))
        await delayed(change, early)
        changed_at = time.monotonic()
        await coming
        took = max(0.0, time.monotonic() - changed_at) if back else 0.0
        for session in back:
            took = max(took, session.last - changed_at)
            await session.stop()
        await scene.noise.stop()
        scene.note(f"any way, resuming, {kind}", took)
        scene.came_back += len(back)
        await void(scene, device, signed_in, kind)
    assert scene.came_back, "every change came before its session was back: nothing was interrupted"
    print(f"  of {RESUMES} sessions {scene.came_back} were back when they were ended", flush=True)
    scene.came_back = 0


async def delayed(what, seconds):
    await asyncio.sleep(max(0.0, seconds))
    return await what


async def removals(scene, kind, busy):
    """Who is removed from a channel: no entry behind the removal, ever, and no frame of the channel later than in time."""
    channel = await scene.channel("carol")
    victim = await scene.user(kind, "carol")
    if busy:
        await scene.noise.start(channel)
        await victim.until(lambda: victim.of_channel.get(channel, (0, 0))[1] > SEEN, "entries")
    removal = await scene.owner.send(channel, membership={"change": "REMOVED", "users": [int(scene.carol)]})
    removed_at = time.monotonic()
    try:
        await victim.fetch(channel)
        raise AssertionError("history is served to who was removed")
    except Failed as refused:
        assert refused.code == NOT_A_MEMBER, refused
    if not busy:
        await scene.noise.start(channel)
    case = f"removal, {'busy' if busy else 'idle'}, {kind}"
    await silence(scene, victim, channel, removal["seq"], removed_at, case)
    await scene.noise.stop()
    await victim.close()


async def resumed_removals(scene, kind):
    """As above, many times, in the middle of HELLO and SYNC."""
    channel = await scene.channel("carol")
    await scene.noise.start(channel)
    case = f"removal, resuming, {kind}"
    for turn in range(RESUMES):
        if turn:
            await scene.owner.send(channel, membership={"change": "JOINED", "users": [int(scene.carol)]})
        live = await scene.user(kind, "carol")
        device = live.device
        await live.cut()
        for log in device.logs.values():
            log.live, log.gaps, log.followed = [], [], False
        back = await Watched.open(scene.running.server, device, kind, resume=device.resume, delivery="TIERED")
        change = scene.owner.send(channel, membership={"change": "REMOVED", "users": [int(scene.carol)]})
        sync = asyncio.create_task(delayed(back.sync(), random.uniform(0, 0.02)))
        removal = await delayed(change, random.uniform(0, 0.02))
        removed_at = time.monotonic()
        await sync
        await until_quiet(back, channel, removed_at)
        judge(scene, back, channel, removal["seq"], removed_at, case)
        if turn < RESUMES - 1:
            await back.cut()
    await silence(scene, back, channel, removal["seq"], removed_at, case)
    await scene.noise.stop()
    await back.close()


async def until_quiet(session, channel, since):
    """The session answers, and has had nothing of the channel for a while."""
    await session.ping()
    while time.monotonic() - max(since, session.of_channel.get(channel, (0, 0))[0]) < 0.1:
        await asyncio.sleep(0.02)
        assert time.monotonic() - since < WITHIN_S + 3, "frames of the channel go on and on"


async def silence(scene, session, channel, removal, removed_at, case):
    """More than the time that is allowed passes, with noise in the channel; then the last frames are judged."""
    await asyncio.sleep(WITHIN_S + 0.5)
    await session.ping()
    judge(scene, session, channel, removal, removed_at, case)


def judge(scene, session, channel, removal, removed_at, case):
    last, seq = session.of_channel.get(channel, (0.0, 0))
    assert seq <= removal, f"entry {seq} came to who was removed at {removal}"
    scene.note(case, max(0.0, last - removed_at))
    if session.problem:
        raise session.problem


async def old_proofs(scene, kind):
    """A session opened with a new proof cannot be kept by one from before a revocation."""
    running = scene.running
    name, device, signed_in = await asyncio.to_thread(scene.signed_up)
    unbound = running.token(name)
    await asyncio.to_thread(running.run, "user", "revoke", name)
    again = await asyncio.to_thread(scene.sign_in, name, device)
    olds = {"no device": unbound, "the device": signed_in["token"]}
    fresh = {"no device": running.token(name), "the device": again["token"]}
    for old, token in olds.items():
        for new, opening in fresh.items():
            live = await Session.open(running.server, device, kind, token=opening, delivery="TIERED")
            await live.link.send(Frame("AUTH", {"token": token}))
            try:
                await asyncio.wait_for(asyncio.shield(live.ended), 3)
            except TimeoutError:
                raise AssertionError(
                    f"over {kind} a revoked token bound to {old} keeps a session opened by one bound to {new}"
                ) from None
            assert live.error == REVOKED, live.error
            await live.stop()
    # And what was issued after the revocation does keep it.
    live = await Session.open(running.server, device, kind, token=again["token"], delivery="TIERED")
    await live.renew(fresh["no device"])
    await live.renew(again["token"])
    await live.close()


async def races(scene):
    """A refresh and a sign-in at the moment of a revocation leave nothing that is good behind it."""
    for turn in range(20):
        name, device, signed_in = await asyncio.to_thread(scene.signed_up)
        refresh = {"refresh_token": signed_in["refresh_token"]}
        # Of one device alone: the other, which signs in beside it, goes on.
        way = scene.remove_device if turn % 2 else scene.change_password
        change = asyncio.to_thread(way, name, device, signed_in)
        wish = {"name": name, "password": PASSWORD, "device": str(Device("late").number)}
        answers = await asyncio.gather(
            delayed(asyncio.to_thread(scene.api.ask, "POST", "/v1/sessions/refresh", refresh), random.uniform(0, 0.1)),
            delayed(asyncio.to_thread(scene.api.ask, "POST", "/v1/sessions", wish), random.uniform(0, 0.05)),
            change,
        )
        for status, _, answer in answers[: 1 if turn % 2 else 2]:
            assert status in (200, 201, 401, 503), answer
            if status < 300:
                await asyncio.to_thread(scene.api.refused, 401, REVOKED, "GET", "/v1/account", None, answer["token"])
                refresh = {"refresh_token": answer["refresh_token"]}
                await asyncio.to_thread(scene.api.refused, 401, LOGIN_ENDED, "POST", "/v1/sessions/refresh", refresh)


def wanted(part):
    """All, or those named on the command line."""
    return not sys.argv[1:] or part.__name__ in sys.argv[1:]


async def main():
    raise_file_limit()
    with RunningServer(os.environ["FANFARE"], "--limits", "load") as running:
        scene = Scene(running)
        await scene.begin()
        for part, arguments in (
            (old_proofs, ("ws",)),
            (old_proofs, ("quic",)),
            (races, ()),
            *((part, (kind, busy)) for part in (sessions, removals) for kind in ("ws", "quic") for busy in (False, True)),
            *((part, (kind,)) for part in (resumes, resumed_removals) for kind in ("ws", "quic")),
        ):
            if wanted(part):
                began = time.monotonic()
                await part(scene, *arguments)
                print(f"  {part.__name__} {arguments}: ok ({time.monotonic() - began:.1f} s)", flush=True)
        await scene.noise.end()
        await scene.owner.close()
        if scene.noise.seconds:
            rate = scene.noise.sends / scene.noise.seconds
            print(f"  busy: {scene.noise.sends} entries, {rate:.0f} a second", flush=True)
    for case, seconds in scene.worst.items():
        print(f"  {case}: {seconds * 1000:.0f} ms at most", flush=True)
    late = {case: seconds for case, seconds in scene.worst.items() if seconds > WITHIN_S}
    assert not late, f"later than {WITHIN_S} s: {late}"
    print("revocation and removal: ok")


if __name__ == "__main__":
    asyncio.run(noise(*sys.argv[2:]) if sys.argv[1:2] == ["noise"] else main())
