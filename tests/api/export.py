"""The export of what the server holds about a user: all of it, nothing of others, no secrets, and one at a time."""

import asyncio
import json
import os
import socket
import time
from urllib.parse import quote

from fanfare import Device, Session
from http_client import Http
from running import RunningServer

RATE_LIMITED, RETRY_LATER, TOKEN_MISSING = 4001, 5001, 2001
REVOKED, ADMIN_REFUSED = "FAN-A008", "FAN-A012"
PASSWORD = "correct horse battery"
MESSAGES, RUNNING, BEGUN = 700, 4, 6


def lines(api, token, path="/v1/export"):
    status, headers, text = api.ask("GET", path, token=token)
    assert status == 200 and headers["content-type"] == "application/x-ndjson", (status, text[:300])
    found = [json.loads(line) for line in text.splitlines()]
    assert found[0]["schema"] == "fanfare.export/v1" and found[-1]["type"] == "end", (found[0], found[-1])
    return found, text


def of(found, kind):
    return [line for line in found if line["type"] == kind]


async def whole(running, api):
    users = {}
    for name in ("ann", "ben"):
        api.good("POST", "/v1/accounts", {"name": name, "password": PASSWORD})
        device = Device(name)
        users[name] = api.good("POST", "/v1/sessions", {"name": name, "password": PASSWORD, "device": str(device.number)}), device
    (ann, phone), (bob, _) = users["ann"], users["ben"]
    token, other = ann["token"], bob["token"]
    live = await Session.open(running.server, phone, "ws", token=token, delivery="TIERED")
    group = api.good("POST", "/v1/channels", {"name": "crabs"}, token)["channel"]
    api.good("POST", f"/v1/channels/{group}/members", {"users": [bob["user"]]}, token)
    mine, theirs = [], []
    for number in range(MESSAGES):
        who, said = ((token, mine), (other, theirs))[number % 2]
        text = f"{'mine' if who == token else 'theirs'} {number} é☃"
        said.append((api.good("POST", f"/v1/channels/{group}/messages", {"text": text}, who)["seq"], text))
    # A channel that ann left, and one that she was never in.
    left = api.good("POST", "/v1/channels", {"name": "lobsters"}, other)["channel"]
    api.good("POST", f"/v1/channels/{left}/members", {"users": [ann["user"]]}, other)
    before = api.good("POST", f"/v1/channels/{left}/messages", {"text": "before I left"}, token)["seq"]
    api.good("DELETE", f"/v1/channels/{left}/members/{ann['user']}", token=token)
    api.good("POST", f"/v1/channels/{left}/messages", {"text": "now that she is gone"}, other)
    secret = api.good("POST", "/v1/channels", {"name": "secret"}, other)["channel"]
    api.good("POST", f"/v1/channels/{secret}/messages", {"text": "about ann"}, other)
    for target, emoji, method in ((3, "🦀", "PUT"), (3, "🦞", "PUT"), (3, "🦞", "DELETE")):
        api.good(method, f"/v1/channels/{group}/messages/{target}/reactions/{quote(emoji)}", token=token)
    api.good("PUT", f"/v1/channels/{group}/messages/3/reactions/{quote('🐙')}", token=other)
    carol = api.good("GET", "/v1/account", token=running.token("carol"))["user"]
    api.good("PUT", f"/v1/blocks/{carol}", token=token)
    api.good("PUT", f"/v1/channels/{left}/marks/banned/{ann['user']}", {}, other)
    direct = api.good("PUT", f"/v1/direct/{bob['user']}", token=token)["channel"]
    api.good("POST", f"/v1/channels/{direct}/messages", {"text": "psst"}, token)

    found, text = lines(api, token)
    (account,) = of(found, "account")
    assert (account["name"], account["user"], account["has_password"]) == ("ann", ann["user"], True), account
    assert [login["device"] for login in of(found, "login")] == [ann["device"]]
    assert [session["device"] for session in of(found, "session")] == [ann["device"]]
    channels = {channel["channel"]: channel for channel in of(found, "channel")}
    assert set(channels) == {group, left, direct}, channels
    assert channels[group]["now"]["role"] == "owner" and channels[group]["now"]["name"] == "crabs"
    assert channels[group]["memberships"][0]["joined_seq"] == 1 and channels[group]["now"]["read"] == 0
    assert not channels[left]["member"] and channels[left]["now"] is None, channels[left]
    assert channels[left]["memberships"][0]["left_seq"] == before + 1, channels[left]
    said = [(message["seq"], message["body"]["text"]) for message in of(found, "message") if message["channel"] == group]
    assert said == mine[::-1], f"{len(said)} of {len(mine)}"
    # Who left may not read any more, not even what it said.
    assert not [message for message in of(found, "message") if message["channel"] == left]
    assert found[-1]["messages"] == len(mine) + 1 and found[-1]["channels_left_out"] is False
    assert [(line["message_seq"], line["emoji"], line["removed"]) for line in of(found, "reaction")] == [
        (3, "🦞", True), (3, "🦞", False), (3, "🦀", False)
    ], of(found, "reaction")
    assert found[-1]["reactions"] == 3
    assert [(mark["channel"], mark["kind"], mark["until"]) for mark in of(found, "mark")] == [(left, "banned", None)]
    assert of(found, "block") == [{"type": "block", "user": carol}], of(found, "block")
    # Nothing of others, and nothing that lets anybody in.
    for forbidden in ("theirs", "🐙", "about ann", "she is gone", PASSWORD, "argon2", ann["refresh_token"], token, "lobsters", "secret"):
        assert forbidden.encode() not in text, forbidden
    # By the server's own people, the same.
    again = [json.loads(line) for line in running.run("user", "export", "ann").splitlines()]
    assert [line for line in again if line["type"] != "export"] == found[1:], "the command's differs"
    api.refused(401, TOKEN_MISSING, "GET", "/v1/export")
    await live.close()
    return group, token


def slow_reader(running, token, path="/v1/export"):
    """A connection that asks for an export and reads nothing of it but its head."""
    host, port = running.server.http.removeprefix("http://").split(":")
    stream = socket.socket()
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    stream.connect((host, int(port)))
    stream.sendall(f"GET {path} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\n\r\n".encode())
    assert b"200 OK" in stream.recv(200)
    return stream


def one_at_a_time(running, api):
    """An export that nobody reads stays one: of its user, and of all there may be."""
    people = [(name, running.token(name)) for name in ("alice", "bob", "carol", "dave")]
    long = "x" * 16_000
    for _, token in people:
        channel = api.good("POST", "/v1/channels", {"name": "long"}, token)["channel"]
        for _ in range(600):
            api.good("POST", f"/v1/channels/{channel}/messages", {"text": long}, token)
    readers = [slow_reader(running, people[0][1])]
    headers, _ = api.refused(429, RATE_LIMITED, "GET", "/v1/export", token=people[0][1])
    assert int(headers["retry-after"]) >= 1
    # Hashing its password takes 46 MiB for a moment: before the memory is looked at.
    api.good("POST", "/v1/accounts", {"name": "erin", "password": PASSWORD})
    memory = running.rss_bytes()
    readers += [slow_reader(running, token) for _, token in people[1:]]
    assert len(readers) == RUNNING
    headers, _ = api.refused(503, RETRY_LATER, "GET", "/v1/export", token=running.token("erin"))
    assert int(headers["retry-after"]) >= 1
    # Each has 10 MB to say; what waits is a few chunks.
    assert running.rss_bytes() - memory < 64 << 20, "unread exports fill the memory"
    # Who hangs up gives its place back.
    for reader in readers:
        reader.close()
    until = time.monotonic() + 20
    while api.ask("GET", "/v1/export", token=people[0][1])[0] != 200:
        assert time.monotonic() < until, "a place was not given back"
        time.sleep(0.1)
    # And a whole one of that length comes whole.
    found, text = lines(api, people[0][1])
    assert found[-1]["messages"] == 600 and len(text) > 600 * 16_000


def revoked(running, api):
    """An export ends with the right of who asked for it."""
    api.good("POST", "/v1/accounts", {"name": "fay", "password": PASSWORD})
    api.good("POST", "/v1/accounts", {"name": "gus", "password": PASSWORD})
    filler = running.token("fay")
    channel = api.good("POST", "/v1/channels", {"name": "long"}, filler)["channel"]
    for _ in range(600):
        api.good("POST", f"/v1/channels/{channel}/messages", {"text": "x" * 16_000}, filler)
    fay = api.good("GET", "/v1/account", token=filler)["user"]

    def signed_in(name, device):
        return api.good("POST", "/v1/sessions", {"name": name, "password": PASSWORD, "device": device})["token"]

    def administrator():
        link = running.run("admin", "link", "--name", "gus").split("link=")[1].split("&")[0].strip()
        claim = {"link": link, "name": "gus", "password": PASSWORD}
        return api.good("POST", "/v1/admin/claim", claim)["token"]

    own, others = "/v1/export", f"/admin/v1/users/{fay}/export"
    cases = [
        ("nothing", own, lambda: signed_in("fay", "71"), lambda token: None, None),
        ("its device", own, lambda: signed_in("fay", "72"), lambda token: api.good("DELETE", "/v1/sessions/current", token=token), REVOKED),
        ("all devices", own, lambda: signed_in("fay", "73"), lambda token: running.run("user", "revoke", "fay"), REVOKED),
        ("an administrator's flag", others, administrator, lambda token: running.run("admin", "rm", "gus"), ADMIN_REFUSED),
        ("an administrator", others, administrator, lambda token: running.run("user", "disable", "gus"), REVOKED),
        ("the account", own, lambda: signed_in("fay", "74"), lambda token: running.run("user", "disable", "fay"), REVOKED),
    ]
    for what, path, begin, end, code in cases:
        token = begin()
        reader = slow_reader(running, token, path)
        time.sleep(0.2)
        end(token)
        reader.settimeout(10)
        text, more = b"", b"x"
        while more and not text.endswith(b"0\r\n\r\n"):
            more = reader.recv(1 << 20)
            text += more
        reader.close()
        broke_off = f'"code":"{code}"'.encode() in text[-2000:] and b'"type":"end"' not in text[-2000:]
        assert broke_off == (code is not None) and (more == b"") == (code is not None), (what, len(text), text[-300:])


def often(running, api):
    api.good("POST", "/v1/accounts", {"name": "erin", "password": PASSWORD})
    token = running.token("erin")
    for _ in range(BEGUN):
        lines(api, token)
    headers, _ = api.refused(429, RATE_LIMITED, "GET", "/v1/export", token=token)
    assert int(headers["retry-after"]) > 60, headers
    running.run("user", "export", "erin")


async def main():
    binary = os.environ["FANFARE"]
    with RunningServer(binary, "--limits", "load") as running:
        api = Http(running.server.http)
        await whole(running, api)
        one_at_a_time(running, api)
        revoked(running, api)
    with RunningServer(binary) as running:
        often(running, Http(running.server.http))
    print("exports are whole, bounded, and nothing of others: ok")


asyncio.run(main())
