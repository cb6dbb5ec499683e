"""Who is pushed what: direct channels, groups small and large, who is there, who comes back in time; what a receiver's answers do;
what is in a push; forged ones. See `run`."""

import asyncio
import base64
import datetime
import json
import ssl
import tempfile
import threading
import time
import urllib.request
from http.client import HTTPConnection

import receiver as receiving
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from scene import RECENT_S, SECRET, Scene

CANARY = "canary-8f3a"
FORBIDDEN, NO_SUCH_NAME = 3002, 3013


def direct(scene):
    """Each message, with counts and without content."""
    _, bob, _ = scene.people(["ann", "ben", "cleo"])
    channel, other = scene.direct("ann", "ben"), scene.direct("cleo", "ben")
    seqs = [scene.say("ann", channel, f"{CANARY} {n}") for n in range(3)]
    scene.wait(3, user=bob, channel=channel)
    scene.say("cleo", other, CANARY)
    (fourth,) = scene.wait(1, user=bob, channel=other)
    found = scene.receiver.of(user=bob, channel=channel)
    assert [body["data"]["seq"] for body in found] == seqs
    assert all(body["type"] == "push.direct" and body["data"]["sender"] == scene.named["ann"] for body in found)
    assert 1 <= found[0]["data"]["unread"] <= 3 and found[-1]["data"]["unread"] == 3, found
    assert (fourth["data"]["unread"], fourth["data"]["badge"]) == (1, 4), fourth
    assert not scene.receiver.of(user=scene.named["ann"]), "who sent it was told"
    headers, body = scene.receiver.raw
    assert CANARY.encode() not in body and b'"ann"' not in body and "preview" not in json.loads(body)["data"]
    assert headers["webhook-id"] == json.loads(body)["data"]["key"]


async def groups(scene):
    """Once for an absence, and by name; nobody who is there; later for who just left, and not at all where it came back."""
    scene.people(["gus", *(f"g{n}" for n in range(6))])
    channel = scene.group("gus", [f"g{n}" for n in range(6)])
    here = await scene.come("g5")
    first = scene.say("gus", channel, CANARY)
    scene.wait(5, channel=channel)
    for n in range(10):
        scene.say("gus", channel, f"{CANARY} {n}")
    named = scene.say("gus", channel, "you", mentions=[scene.named["g1"], scene.named["g5"]])
    own = scene.say("g2", channel, "from the phone")
    answer = scene.say("gus", channel, "yes", reply_to=own)
    scene.settled()
    found = {(body["type"], body["data"]["user"], body["data"]["seq"]) for body in scene.receiver.of(channel=channel)}
    wanted = {("push.group", scene.named[f"g{n}"], first) for n in range(5)}
    # The owner hears of the group when somebody else speaks.
    wanted |= {("push.group", scene.named["gus"], own)}
    wanted |= {("push.mention", scene.named["g1"], named), ("push.reply", scene.named["g2"], answer)}
    assert found == wanted, (found - wanted, wanted - found)

    # g5 held everything; it goes, and hears of the next one later.
    await here.holds(int(channel), answer)
    await here.close()
    began = time.monotonic()
    later = scene.say("gus", channel, "are you there")
    scene.wait(1, user=scene.named["g5"], channel=channel, seq=later)
    assert time.monotonic() - began > RECENT_S * 0.9, "who was there just now was told at once"
    scene.say("gus", channel, "again")
    scene.settled()
    assert len(scene.receiver.of(user=scene.named["g5"], channel=channel)) == 1

    # It is there again: a new absence. The push waits, g5 comes back in time, and nothing is sent.
    for _ in range(2):
        back = await scene.come("g5")
        await back.close()
    missed = scene.say("gus", channel, "still?")
    back = await scene.come("g5")
    await back.holds(int(channel), missed)
    await asyncio.to_thread(scene.settled)
    await back.close()
    assert len(scene.receiver.of(user=scene.named["g5"], channel=channel)) == 1, "it came back and was told all the same"
    # And once it stays away, it is told of that absence.
    scene.say("gus", channel, "hello?")
    scene.wait(2, user=scene.named["g5"], channel=channel)


async def read_elsewhere(scene):
    """A direct message that was read within the delay is not pushed."""
    scene.people(["ida", "jon"])
    channel = scene.direct("ida", "jon")
    session = await scene.come("jon")
    await session.close()
    seq = scene.say("ida", channel, "ping")
    session = await scene.come("jon")
    await session.receipt(int(channel), read=seq)
    await session.close()
    await asyncio.to_thread(scene.settled)
    assert not scene.receiver.of(channel=channel), "it was read, and pushed"


async def caught_up(scene):
    """Who has caught up is not told, also of what would have been tried much later."""
    _, kai = scene.people(["jil", "kai"])
    channel = scene.direct("jil", "kai")
    scene.receiver.plan = lambda key, attempt, body: (503, {"retry-after": "1" if body["data"]["unread"] > 1 else "100"})
    for count in (1, 2):
        seq = scene.say("jil", channel, "x")
        of = [key for key in scene.receiver.attempts if key.startswith(kai)]
        scene.receiver.until(lambda: len([k for k in scene.receiver.attempts if k.startswith(kai)]) >= count, f"attempts ({of})")  # noqa: B023
    session = await scene.come("kai")
    await session.receipt(int(channel), read=seq)
    await session.close()
    await asyncio.to_thread(scene.settled, 20)
    scene.receiver.plan = None
    assert not scene.receiver.of(user=kai)


def exported(scene):
    """What is held about a user includes its pushes."""
    lines = [json.loads(line) for line in scene.run("user", "export", "ben").splitlines()]
    pushes = [line for line in lines if line["type"] == "push"]
    assert [(push["kind"], push["state"]) for push in pushes] == [("direct", "ended")] * 4, pushes
    lines = [json.loads(line) for line in scene.run("user", "export", "g0").splitlines()]
    (pushed,) = [line["pushed"] for line in lines if line["type"] == "channel"]
    assert pushed, "when it was told of the group"


async def silent(scene):
    """A session whose other end is gone looks like one that is there: once it has ended, its user is told."""
    (ali, _) = scene.people(["ali", "bea"])
    channel = scene.direct("bea", "ali")
    session = await scene.come("ali")
    # From here on this loop stands still: nothing is read, acknowledged, or sent.
    began = time.monotonic()
    scene.say("bea", channel, "are you there")
    scene.wait(1, 90, user=ali)
    took = time.monotonic() - began
    assert took > 40, f"told after {took:.0f} s, when the session may have been alive"
    await session.cut()


def large_groups(scene):
    """More than 256 members: those alone who are named."""
    names = [f"m{n}" for n in range(300)]
    scene.people(["max", *names])
    channel = scene.group("max", names)
    scene.say("max", channel, "to all")
    seq = scene.say("max", channel, "to one", mentions=[scene.named["m7"]])
    scene.wait(1, channel=channel)
    scene.settled()
    assert [(b["data"]["user"], b["data"]["seq"]) for b in scene.receiver.of(channel=channel)] == [(scene.named["m7"], seq)]


def blocked(scene):
    """Who blocks somebody is not pushed what that one says in a group."""
    scene.people(["nat", "oli", "pia"])
    channel = scene.group("nat", ["oli", "pia"])
    scene.api.ask("PUT", f"/v1/blocks/{scene.named['nat']}", token=scene.tokens["oli"])
    scene.say("nat", channel, "hi", mentions=[scene.named["oli"]])
    scene.wait(1, user=scene.named["pia"], channel=channel)
    scene.settled()
    assert not scene.receiver.of(user=scene.named["oli"], channel=channel)


def answers(scene):
    """A receiver that cannot, that says when, that does not want; what was given up is listed and replayed."""
    scene.people(["quin", "rex"])
    channel = scene.direct("quin", "rex")
    rex = scene.named["rex"]
    scene.receiver.plan = lambda key, attempt, body: (503, {"retry-after": "1"}) if attempt < 3 else None
    began = time.monotonic()
    first = scene.say("quin", channel, "a")
    scene.wait(1, user=rex, seq=first)
    took = time.monotonic() - began
    assert 2 <= took < 8, f"two pauses of a second took {took:.1f} s"

    scene.receiver.plan = lambda key, attempt, body: 422
    dead = [scene.say("quin", channel, text) for text in "bcd"]
    scene.receiver.until(lambda: len([key for key in scene.receiver.attempts if key.split("-")[0] == rex]) >= 4, "refusals")
    status = scene.settled()
    assert status["dead"] == 3, status
    listed = json.loads(scene.run("push", "dead", "--json"))["pushes"]
    assert [push["seq"] for push in listed] == sorted(dead) or {push["seq"] for push in listed} == set(dead), listed
    assert all("422" in push["error"] and push["attempts"] == 1 for push in listed), listed
    assert "422" in scene.run("push", "dead") and "3 given up" in scene.run("push", "status"), scene.run("push", "status")
    assert "3 given up" in scene.run("status")

    scene.receiver.plan = None
    one = listed[0]
    assert "1 are" in scene.run("push", "replay", one["key"])
    scene.wait(1, user=rex, seq=one["seq"])
    assert json.loads(scene.run("push", "replay", "--all", "--json"))["replayed"] == 2
    scene.wait(4, user=rex)
    assert not json.loads(scene.run("push", "dead", "--json"))["pushes"]
    token = scene.admin["token"]
    scene.api.refused(404, NO_SUCH_NAME, "POST", "/admin/v1/push/replay", {"key": one["key"]}, token)
    status, _, _ = scene.api.ask("POST", "/admin/v1/push/replay", {"key": "x"}, token)
    assert status == 400
    scene.api.refused(403, FORBIDDEN, "GET", "/admin/v1/push/secret", token=token)


def slow(scene):
    """Requests at once have a bound, and nobody's messages wait for them."""
    names = [f"s{n}" for n in range(40)]
    scene.people(["sue", *names])
    channel = scene.group("sue", names)
    scene.receiver.slow, scene.receiver.most_together = 0.3, 0
    worst = 0.0
    for n in range(20):
        began = time.monotonic()
        scene.say("sue", channel, f"{n}")
        worst = max(worst, time.monotonic() - began)
    scene.wait(40, channel=channel)
    scene.receiver.slow = 0.0
    assert 2 <= scene.receiver.most_together <= 4, scene.receiver.most_together
    assert worst < 2, f"a message waited for {worst:.1f} s"


def cut(scene):
    """A push that was taken and not answered comes again under the same key."""
    scene.people(["tom", "una"])
    channel = scene.direct("tom", "una")
    scene.receiver.cuts = 1
    scene.say("tom", channel, "x")
    scene.receiver.until(lambda: [k for k, n in scene.receiver.attempts.items() if n > 1 and k.startswith(scene.named["una"])], "repeat")
    scene.settled()
    assert len(scene.receiver.of(user=scene.named["una"])) == 1


def signatures(scene):
    """What was signed by others, changed, or is old is refused; the published key's signature fits, too."""
    headers, body = scene.receiver.raw
    names = ("webhook-id", "webhook-timestamp", "webhook-signature")
    good = {name: headers[name] for name in names}
    assert receiving.verify([SECRET], good, body) == good["webhook-id"]
    other = "whsec_" + base64.b64encode(b"another secret of 32 bytes......").decode()
    old = str(int(good["webhook-timestamp"]) - 301)
    forged = [
        ([other], good, body),
        ([SECRET], good, body + b" "),
        ([SECRET], good | {"webhook-id": good["webhook-id"] + "0"}, body),
        ([SECRET], good | {"webhook-timestamp": str(int(good["webhook-timestamp"]) + 1)}, body),
        ([SECRET], good | {"webhook-signature": ""}, body),
        ([SECRET], good | {"webhook-signature": "v1," + "A" * 44}, body),
    ]
    for secrets, given, content in forged:
        try:
            receiving.verify(secrets, given, content)
        except receiving.Refused:
            continue
        raise AssertionError(f"taken: {given}")
    try:
        receiving.verify([SECRET], good, body, now=int(old) + 602)
        raise AssertionError("an old one was taken")
    except receiving.Refused:
        pass
    before, taken = scene.receiver.refused, dict(scene.receiver.attempts)
    connection = HTTPConnection(scene.receiver.url.split("/")[2])
    connection.request("POST", "/push", body + b" ", good)
    assert connection.getresponse().status == 401
    assert scene.receiver.refused == before + 1 and scene.receiver.attempts == taken

    with urllib.request.urlopen(f"{scene.server.http}/v1/webhooks/keys") as answer:
        keys = {key["kid"]: key["x"] for key in json.load(answer)["keys"]}
    raw = base64.urlsafe_b64decode(keys[headers["webhook-key-id"]] + "=")
    signed = b".".join([good["webhook-id"].encode(), good["webhook-timestamp"].encode(), body])
    (public,) = [one[4:] for one in good["webhook-signature"].split() if one.startswith("v1a,")]
    key = Ed25519PublicKey.from_public_bytes(raw)
    key.verify(base64.b64decode(public), signed)
    try:
        key.verify(base64.b64decode(public), signed + b" ")
        raise AssertionError("a changed body was taken")
    except InvalidSignature:
        pass


def metrics(scene):
    status, _, text = scene.api.ask("GET", "/metrics", token=scene.admin["token"])
    text = text.decode() if isinstance(text, bytes) else text
    assert status == 200
    for name in ("waiting", "oldest_seconds", "dead", "lag_records", "put_total", 'outcomes_total{result="delivered"}'):
        assert f"fanfare_push_{name}" in text, f"{name} is missing"


async def previews():
    """Names and text where they are wanted; nothing of what was taken back in time."""
    with Scene({"content": "preview"}) as scene:
        _, wes = scene.people(["vera", "wes"])
        channel = scene.direct("vera", "wes")
        scene.say("vera", channel, "short")
        long = scene.say("vera", channel, "é" * 2_000)
        found = {body["data"]["seq"]: body["data"]["preview"] for body in scene.wait(2, user=wes)}
        assert found.pop(long)["text"].endswith("é…")
        assert list(found.values()) == [{"sender_name": "vera", "channel_name": "", "text": "short"}], found
        session = await scene.come("wes")
        await session.close()
        seq = scene.say("vera", channel, f"{CANARY}: do not tell")
        status, _, _ = scene.api.ask("DELETE", f"/v1/channels/{channel}/messages/{seq}", token=scene.tokens["vera"])
        assert status == 201, status
        await asyncio.to_thread(scene.settled)
        assert len(scene.receiver.of(user=wes)) == 2 and CANARY not in json.dumps(scene.receiver.accepted)


def untrusted():
    """A receiver whose certificate nobody vouches for gets nothing."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
    made = made.not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(now + datetime.timedelta(days=1))
    made = made.add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False).sign(key, hashes.SHA256())
    with tempfile.NamedTemporaryFile() as file:
        plain = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        file.write(made.public_bytes(Encoding.PEM) + plain)
        file.flush()
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(file.name)
    with Scene({"attempts_max": 1}, tls=tls) as scene:
        assert scene.receiver.url.startswith("https://")
        scene.people(["xia", "yan"])
        scene.say("xia", scene.direct("xia", "yan"), "hi")
        deadline = time.monotonic() + 20
        while scene.settled()["dead"] == 0:
            assert time.monotonic() < deadline, "it was not given up"
            time.sleep(0.05)
        (dead,) = json.loads(scene.run("push", "dead", "--json"))["pushes"]
        assert "certificate" in dead["error"], dead
        assert not scene.receiver.attempts and scene.receiver.refused == 0, "it was sent something"


def off():
    """Without a receiver there are no pushes, and commands say so."""
    with Scene({"url": ""}) as scene:
        scene.people(["xia", "yan"])
        scene.say("xia", scene.direct("xia", "yan"), "hi")
        assert "off" in scene.run("push", "status")
        status, _, answer = scene.api.ask("GET", "/admin/v1/push/dead", token=scene.admin["token"])
        assert (status, answer["number"]) == (501, 5008), answer
        assert not scene.receiver.attempts


def main():
    cases = (direct, groups, read_elsewhere, caught_up, exported, large_groups, blocked, answers, slow, cut, signatures, metrics)
    failures = []

    def beside(scene):
        try:
            asyncio.run(silent(scene))
        except BaseException as failure:  # noqa: BLE001 - told below
            failures.append(failure)

    with Scene({"connections": 4}) as scene:
        # It takes most of a minute.
        aside = threading.Thread(target=beside, args=[scene])
        aside.start()
        for case in cases:
            began = time.monotonic()
            if asyncio.iscoroutinefunction(case):
                asyncio.run(case(scene))
            else:
                case(scene)
            print(f"{case.__name__}: {time.monotonic() - began:.1f} s", flush=True)
        aside.join()
        assert not failures, failures
        assert scene.receiver.refused == 1, f"{scene.receiver.refused} of the server's own were refused"
        assert CANARY not in json.dumps(scene.receiver.accepted), "content in a push"
    asyncio.run(previews())
    untrusted()
    off()
    print(f"pushes: {len(cases) + 4} cases passed")


main()
