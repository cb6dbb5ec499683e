"""Who may do what: every operation, by everybody a channel can know, over WebSocket, QUIC and HTTP, against what
docs/protocol.md says of it; and that nobody is ever sent a word of a channel it does not belong to.

A cell is (operation, who, join policy, transport). What is refused must change nothing, so refused cells share a channel
whose head must stay where it was; each allowed cell gets a channel of its own. Every message carries a canary."""

import asyncio
import os
import sys
import time
import urllib.parse

from http_client import Http
from fanfare import Device, Failed, Session
from running import RunningServer
from wire import Frame

NOT_A_MEMBER, FORBIDDEN, NO_SUCH_USER, NO_CHANGE, LAST_OWNER = 3001, 3002, 3008, 3009, 3010
WRONG_KIND, MUTED, BANNED, BLOCKED = 3011, 3016, 3017, 3018
OK = 0
# Said while those who are out by now were in; said after.
INSIDE, AFTER = b"canary-inside", b"canary-after"

RANKS = {"owner": 3, "admin": 2, "member": 1, "muted": 1}
OUT = ["left", "removed", "banned", "invited", "requested", "stranger"]
ACTORS = [*RANKS, *OUT]
# Others that operations name.
TARGETS = ["admin2", "member2", "stranger2"]
NOBODY = 4242
TRANSPORTS = ["ws", "quic", "http"]
POLICIES = {"by_invitation": "BY_INVITATION", "open_to_all": "OPEN_TO_ALL", "by_request": "BY_REQUEST"}


def ranked(least, below=FORBIDDEN):
    """Allowed from that rank on; others in the channel get `below`, those outside learn nothing."""

    def rule(who, _policy):
        rank = RANKS.get(who, 0)
        return NOT_A_MEMBER if rank == 0 else OK if rank >= least else below

    return rule


def speaking(least=1):
    def rule(who, _policy):
        if who == "muted":
            return MUTED
        return ranked(least)(who, _policy)

    return rule


def special(rule, **of):
    """As `rule`, but for those named."""
    return lambda who, policy: of.get(who, rule(who, policy))


def joins(who, policy):
    if who in RANKS:
        return NO_CHANGE if RANKS[who] > 0 else OK
    if policy == "open_to_all":
        return BANNED if who == "banned" else OK
    return OK if who == "invited" else NOT_A_MEMBER


def requests(who, policy):
    if who in RANKS:
        return NO_CHANGE
    if policy != "by_request":
        return NOT_A_MEMBER
    return {"banned": BANNED, "invited": NO_CHANGE, "requested": NO_CHANGE}.get(who, OK)


def declines_own(who, _policy):
    if who in RANKS:
        return NO_CHANGE if RANKS[who] >= 2 else FORBIDDEN
    return OK if who in ("invited", "requested") else NOT_A_MEMBER


class Operation:
    """`content` is a SEND's, made for (scene, who); `http` is (method, path below the channel, body)."""

    def __init__(self, name, rule, content=None, http=None, ask=None, policies=("by_invitation",)):
        self.name, self.rule, self.content, self.http, self.ask = name, rule, content, http, ask
        self.policies = policies


def change(kind, *whom, **more):
    def content(scene, who):
        users = [scene.id_of(one, who) for one in whom]
        return {"membership": {"change": kind, "users": users} | more}

    return content


def mark(method, kind, whom):
    return lambda scene, who: (method, f"/marks/{kind}/{scene.id_of(whom, who)}", None)


def member(method, whom, body=None):
    return lambda scene, who: (method, f"/members/{scene.id_of(whom, who)}", body)


def fixed(method, path, body=None):
    return lambda _scene, _who: (method, path, body)


EMOJI = urllib.parse.quote("\U0001f44d")
EVERY = tuple(POLICIES)
OPERATIONS = [
    Operation("say", speaking(), lambda s, w: {"message": {"text": "x"}}, fixed("POST", "/messages", {"text": "x"})),
    Operation("reply", speaking(), lambda s, w: {"message": {"text": "x", "reply_to": s.by_owner}},
              lambda s, w: ("POST", "/messages", {"text": "x", "reply_to": s.by_owner})),
    Operation("mention everyone", speaking(2), lambda s, w: {"message": {"text": "x", "mention_all": True}}),
    Operation("edit the owner's", special(ranked(4), owner=OK),
              lambda s, w: {"edit": {"target": s.by_owner, "message": {"text": "y"}}},
              lambda s, w: ("PATCH", f"/messages/{s.by_owner}", {"text": "y"})),
    Operation("edit one's own", speaking(),
              lambda s, w: {"edit": {"target": s.own(w), "message": {"text": "y"}}},
              lambda s, w: ("PATCH", f"/messages/{s.own(w)}", {"text": "y"})),
    Operation("recall the owner's", ranked(2), lambda s, w: {"recall": {"target": s.by_owner}},
              lambda s, w: ("DELETE", f"/messages/{s.by_owner}", None)),
    Operation("recall one's own", ranked(1), lambda s, w: {"recall": {"target": s.own(w)}},
              lambda s, w: ("DELETE", f"/messages/{s.own(w)}", None)),
    Operation("react", speaking(), lambda s, w: {"reaction": {"target": s.by_owner, "emoji": "\U0001f44d"}},
              lambda s, w: ("PUT", f"/messages/{s.by_owner}/reactions/{EMOJI}", None)),
    Operation("join", joins, change("JOINED", "self"), fixed("POST", "/join"), policies=EVERY),
    Operation("ask to join", requests, change("REQUESTED", "self"), mark("PUT", "requested", "self"), policies=EVERY),
    Operation("decline one's own", declines_own, change("DECLINED", "self"), mark("DELETE", "invited", "self"), policies=EVERY),
    Operation("decline another's", ranked(2), change("DECLINED", "asking"), mark("DELETE", "requested", "asking")),
    Operation("add", ranked(2), change("JOINED", "stranger2"),
              lambda s, w: ("POST", "/members", {"users": [str(s.ids["stranger2"])]})),
    Operation("add the banned", ranked(2, FORBIDDEN), change("JOINED", "banned2"),
              lambda s, w: ("POST", "/members", {"users": [str(s.ids["banned2"])]})),
    Operation("add nobody", ranked(2), change("JOINED", "nobody"),
              lambda s, w: ("POST", "/members", {"users": [str(NOBODY)]})),
    Operation("leave", special(ranked(1), owner=LAST_OWNER), change("LEFT"), member("DELETE", "self")),
    Operation("remove a member", ranked(2), change("REMOVED", "member2"), member("DELETE", "member2")),
    Operation("remove an admin", ranked(3), change("REMOVED", "admin2"), member("DELETE", "admin2")),
    Operation("remove the owner", special(ranked(4), owner=LAST_OWNER), change("REMOVED", "owner"), member("DELETE", "owner")),
    Operation("promote", ranked(3), change("ROLE_CHANGED", "member2", role="ADMIN"), member("PATCH", "member2", {"role": "admin"})),
    Operation("promote oneself", special(ranked(4), owner=NO_CHANGE), change("ROLE_CHANGED", "self", role="OWNER"),
              member("PATCH", "self", {"role": "owner"})),
    Operation("invite", ranked(2), change("INVITED", "stranger2"), mark("PUT", "invited", "stranger2")),
    Operation("invite nobody", ranked(2), change("INVITED", "nobody"), mark("PUT", "invited", "nobody")),
    Operation("ban a member", ranked(2), change("BANNED", "member2"), mark("PUT", "banned", "member2")),
    Operation("ban a stranger", ranked(2), change("BANNED", "stranger2"), mark("PUT", "banned", "stranger2")),
    Operation("ban an admin", ranked(3), change("BANNED", "admin2"), mark("PUT", "banned", "admin2")),
    Operation("ban the owner", special(ranked(4), owner=LAST_OWNER), change("BANNED", "owner"), mark("PUT", "banned", "owner")),
    Operation("lift a ban", ranked(2), change("UNBANNED", "banned2"), mark("DELETE", "banned", "banned2")),
    Operation("mute a member", ranked(2), change("MUTED", "member2"), mark("PUT", "muted", "member2")),
    Operation("mute an admin", ranked(3), change("MUTED", "admin2"), mark("PUT", "muted", "admin2")),
    Operation("lift a mute", ranked(2), change("UNMUTED", "muted"), mark("DELETE", "muted", "muted")),
    Operation("rename", ranked(2), lambda s, w: {"channel_change": {"name": "renamed"}}, fixed("PATCH", "", {"name": "renamed"})),
    Operation("open to all", ranked(2), lambda s, w: {"channel_change": {"join": "OPEN_TO_ALL"}},
              fixed("PATCH", "", {"join": "open_to_all"})),
    Operation("read", ranked(1), http=fixed("GET", "/messages"), ask="fetch"),
    Operation("count", ranked(1), ask="counts"),
    Operation("look at", ranked(1), http=fixed("GET", "")),
    Operation("see members", ranked(1), http=fixed("GET", "/members")),
    Operation("see marks", ranked(2), http=fixed("GET", "/marks")),
    Operation("move a cursor", ranked(1), ask="receipt"),
    Operation("type", ranked(1), ask="typing"),
]
# What even those who may are told.
ANSWERS = {"add nobody": NO_SUCH_USER, "invite nobody": NO_SUCH_USER, "add the banned": BANNED}
READS = {"read", "count", "look at", "see members", "see marks", "move a cursor", "type"}


class Scene:
    """A channel with somebody of every kind."""

    def __init__(self, cast, policy):
        self.cast, self.policy = cast, policy
        self.ids = cast.ids

    async def set(self):
        cast, owner = self.cast, self.cast.sessions["owner", "ws"]
        inside = ["admin", "admin2", "member", "member2", "muted", "left", "removed", "banned", "banned2"]
        group = {"name": "a channel", "members": [self.ids[one] for one in inside], "join": "BY_REQUEST"}
        self.channel = (await owner.open_channel(group=group))["channel"]

        async def send(who, **content):
            return (await cast.sessions[who, "ws"].send(self.channel, **content))["seq"]

        async def by_owner(kind, *users, **more):
            await send("owner", membership={"change": kind, "users": [self.ids[one] for one in users]} | more)

        self.by_owner = await send("owner", message={"text": INSIDE.decode()})
        self.by = {who: await send(who, message={"text": INSIDE.decode()}) for who in ("admin", "member", "muted")}
        self.by["owner"] = self.by_owner
        await by_owner("ROLE_CHANGED", "admin", "admin2", role="ADMIN")
        await send("left", membership={"change": "LEFT"})
        await by_owner("REMOVED", "removed")
        await by_owner("BANNED", "banned", "banned2")
        await by_owner("MUTED", "muted")
        for who in ("requested", "requested2"):
            await send(who, membership={"change": "REQUESTED"})
        await by_owner("INVITED", "invited")
        if self.policy != "by_request":
            await send("owner", channel_change={"join": POLICIES[self.policy]})
        self.head = await send("owner", message={"text": AFTER.decode()})
        return self

    def own(self, who):
        return self.by.get(who, self.by_owner)

    def id_of(self, whom, who):
        if whom == "nobody":
            return NOBODY
        if whom == "asking":
            whom = "requested2"
        return self.ids[who if whom == "self" else whom]

    async def still(self):
        """The head, as its owner sees it."""
        return self.cast.api.good("GET", f"/v1/channels/{self.channel}", token=self.cast.tokens["owner"])["head"]


class Cast:
    """The people, each with a session of every kind."""

    def __init__(self, running):
        self.running, self.api = running, Http(running.server.http)
        self.http_bytes = {}

    async def enter(self):
        names = [*ACTORS, *TARGETS, "banned2", "requested2", "blocker", "blocked"]
        admin = {"Authorization": f"Bearer {self.running.admin['token']}"}
        made = self.api.good("POST", "/admin/v1/users/bulk", {"names": [f"m-{name}" for name in names], "full_delivery": True}, **admin)
        by_name = {user["name"][2:]: user for user in made["users"]}
        self.ids = {name: int(by_name[name]["user"]) for name in names}
        self.tokens = {name: by_name[name]["token"] for name in names}
        self.sessions = {}
        for name in names:
            for kind in ("ws", "quic"):
                device = Device(f"{name} {kind}")
                session = await Session.open(self.running.server, device, kind, token=self.tokens[name])
                await session.sync()
                self.sessions[name, kind] = session
        return self

    async def leave(self):
        for session in self.sessions.values():
            await session.cut()

    def over_http(self, who, method, path, body):
        status, headers, answer = self.api.ask(method, path, body, token=self.tokens[who])
        self.http_bytes.setdefault(who, []).append(repr((dict(headers), answer)).encode())
        assert status < 500, f"{method} {path}: {status} {answer}"
        return OK if status < 300 else answer["number"]

    async def do(self, operation, scene, who, transport):
        """The number that the operation ends with; None where this transport does not have it."""
        if transport == "http":
            if operation.http is None:
                return None
            method, path, body = operation.http(scene, who)
            return self.over_http(who, method, f"/v1/channels/{scene.channel}{path}", body)
        session = self.sessions[who, transport]
        try:
            if operation.content:
                await session.send(scene.channel, **operation.content(scene, who))
            elif operation.ask == "fetch":
                await session.fetch(scene.channel)
            elif operation.ask == "counts":
                await session.counts(scene.channel, scene.by_owner)
            elif operation.ask in ("receipt", "typing"):
                return await self.hinted(session, operation.ask, scene)
            else:
                return None
        except Failed as failed:
            return failed.code
        return OK

    async def hinted(self, session, what, scene):
        """RECEIPT and TYPING have no answer but ERROR: the PONG behind them shows that there is none."""
        errors = sum(frame.type == "ERROR" for frame in session.seen)
        if what == "receipt":
            await session.receipt(scene.channel, delivered=1)
        else:
            await session.link.send(Frame("TYPING", {}, channel=scene.channel))
        # Owners answer in their own time: a FETCH of the same channel passes through the same owner behind it.
        try:
            await session.fetch(scene.channel, on_control=True, messages_max=1)
        except Failed:
            pass
        found = [frame for frame in session.seen if frame.type == "ERROR"][errors:]
        return found[0].body.get("code") if found else OK

    def seen_by(self, who):
        for kind in ("ws", "quic"):
            for frame in self.sessions[who, kind].seen:
                yield frame.raw
        yield from self.http_bytes.get(who, [])


async def groups(cast, wrong):
    cells = allowed = scenes = 0
    for policy in POLICIES:
        shared = await Scene(cast, policy).set()
        scenes += 1
        for operation in OPERATIONS:
            if policy not in operation.policies:
                continue
            for who in ACTORS:
                wanted = operation.rule(who, policy)
                if wanted == OK:
                    wanted = ANSWERS.get(operation.name, OK)
                for transport in TRANSPORTS:
                    changes = wanted == OK and operation.name not in READS
                    scene = await Scene(cast, policy).set() if changes else shared
                    scenes += changes
                    got = await cast.do(operation, scene, who, transport)
                    if got is None:
                        continue
                    cells += 1
                    allowed += wanted == OK
                    cell = f"{operation.name} by {who} over {transport} ({policy})"
                    if got != wanted:
                        wrong.append(f"{cell}: {got}, not {wanted}")
                    head = await scene.still()
                    if head != scene.head + changes:
                        wrong.append(f"{cell}: the head went from {scene.head} to {head}")
                        scene.head = head
    return cells, allowed, scenes


async def directs(cast, wrong):
    """A direct channel: the two of it, one of them blocked, and everybody else."""
    cells = 0
    one, two = "blocker", "blocked"
    scene = Scene(cast, "")
    scene.channel = (await cast.sessions[one, "ws"].open_channel(direct=cast.ids[two]))["channel"]
    scene.by_owner = (await cast.sessions[one, "ws"].say(scene.channel, INSIDE.decode()))["seq"]
    scene.by = {}
    assert cast.over_http(one, "PUT", f"/v1/blocks/{cast.ids[two]}", None) == OK
    speech = {"say", "reply", "mention everyone", "react"}
    for operation in OPERATIONS:
        for who in (two, "stranger", "owner"):
            for transport in TRANSPORTS:
                if who == two and operation.name in speech:
                    wanted = BLOCKED
                elif who == two and operation.name in ("edit the owner's", "edit one's own", "recall the owner's", "recall one's own", "see marks"):
                    wanted = FORBIDDEN
                elif who == two and operation.name in READS:
                    wanted = OK
                elif who == two:
                    wanted = WRONG_KIND if operation.content else None
                else:
                    wanted = NOT_A_MEMBER
                got = await cast.do(operation, scene, who, transport)
                if got is None or wanted is None:
                    continue
                cells += 1
                if got != wanted:
                    wrong.append(f"{operation.name} by {who} over {transport} (direct): {got}, not {wanted}")
    assert cast.over_http(one, "DELETE", f"/v1/blocks/{cast.ids[two]}", None) == OK
    if (got := await cast.do(OPERATIONS[0], scene, two, "quic")) != OK:
        wrong.append(f"say once the block is lifted: {got}")
    return cells


def devices(cast, wrong):
    """Devices and sessions of others, by their numbers."""
    cells = 0
    theirs = cast.sessions["owner", "quic"].device.number
    for method, path in (("DELETE", f"/v1/devices/{theirs}"),):
        got = cast.over_http("stranger", method, path, None)
        cells += 1
        if got in (OK,):
            wrong.append(f"{method} {path} by a stranger: {got}")
    listed = repr(cast.api.good("GET", "/v1/devices", token=cast.tokens["stranger"]))
    if str(theirs) in listed:
        wrong.append("another's device is listed")
    return cells + 1


async def strange_sync(cast, wrong):
    """SYNC with positions of channels one does not belong to names none of them."""
    scene = await Scene(cast, "by_invitation").set()
    cells = 0
    for who in OUT:
        for kind in ("ws", "quic"):
            session = cast.sessions[who, kind]
            positions = [{"channel": scene.channel, "epoch": 1, "seq": 0}]
            if scene.channel in await session.sync(positions=positions):
                wrong.append(f"SYNC by {who} over {kind} is told of the channel")
            cells += 1
    return cells


def canaries(cast, wrong):
    found = total = 0
    for who in OUT:
        forbidden = [AFTER] if who in ("left", "removed", "banned") else [AFTER, INSIDE]
        for raw in cast.seen_by(who):
            total += len(raw)
            for canary in forbidden:
                if canary in raw:
                    found += 1
                    wrong.append(f"{who} was sent {canary.decode()}")
    return total, found


async def main():
    began = time.monotonic()
    wrong = []
    os.environ["FANFARE__LIMITS__PROFILE"] = "load"
    with RunningServer(os.environ["FANFARE"]) as running:
        cast = await Cast(running).enter()
        cells, allowed, scenes = await groups(cast, wrong)
        cells += await directs(cast, wrong)
        cells += devices(cast, wrong)
        cells += await strange_sync(cast, wrong)
        scanned, found = canaries(cast, wrong)
        inside = sum(INSIDE in raw for raw in cast.seen_by("member"))
        assert inside > 100, f"members saw {inside} canaries: the search proves nothing"
        await cast.leave()
    for line in wrong[:40]:
        print(f"WRONG {line}")
    print(
        f"authorization: {cells} cells ({allowed} allowed) in {scenes} channels, {len(wrong)} wrong; "
        f"{scanned} bytes of outsiders searched, {found} canaries, {time.monotonic() - began:.0f} s"
    )
    sys.exit(bool(wrong))


asyncio.run(main())
