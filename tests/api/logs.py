"""What people keep to themselves never reaches the log, at its most verbose, nor a file beside the stores: a conversation over
WebSocket, QUIC and HTTP with a canary in every secret and every private text, refused and malformed requests among them."""

import asyncio
import base64
import json
import os
import socket
import struct
import sys
import traceback
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import websockets

from fanfare import Device, Failed, Session, SessionEnded
from http_client import Http
from running import RunningServer
from wire import Frame

# Each is found by itself wherever it goes: in a text, escaped, or as bytes.
PASSWORD, NEXT, WRONG = "CanaryPasswordOne", "CanaryPasswordTwo", "CanaryPasswordWrong"
BODY, EDIT, LONG = "CanaryMessageBody", "CanaryEditedBody", "CanaryLongBody" * 1300
GROUP, DEVICE, AGENT, EMOJI = "CanaryGroupName", "CanaryDeviceName", "CanaryAgent", "CanaryEmoji"
QUERY, COOKIE, PAGE, JUNK = "CanaryQueryString", "CanaryCookie", "canary-origin.example", "CanaryJunkBytes"
# The stores: what is said has to stand somewhere. admin.json holds the token of commands, for its owner's eyes.
STORES, ADMIN_FILE = ("meta.db", "cursors.db", "content", "store"), "admin.json"


class Canaries:
    def __init__(self):
        self.forms = {}

    def text(self, name, text):
        self.forms[name] = {text.encode()}

    def secret(self, name, secret):
        """A secret of bytes, as a log could show it."""
        raw = bytes(secret)
        listed = ", ".join(str(byte) for byte in raw[:12])
        forms = {raw, raw.hex().encode(), raw.hex().upper().encode(), listed.encode()}
        forms |= {base64.b64encode(raw)[:-4], base64.urlsafe_b64encode(raw)[:-4]}
        self.forms[name] = {form for form in forms if len(form) >= 8}

    def token(self, name, token):
        """A token's last part is its secret; ids before it may be named."""
        part = token.rsplit(".", 1)[-1] if "." in token else token.split("_", 1)[-1]
        assert len(part) >= 32, f"{name} has no secret part"
        self.forms[name] = {part.encode(), part[8:40].encode()}

    def found(self, data):
        return sorted({name for name, forms in self.forms.items() for form in forms if form in data})


async def refused(canaries, running, kind, name, **hello):
    try:
        await Session.open(running.server, Device(DEVICE), kind, delivery="TIERED", **hello)
    except (SessionEnded, Failed, AssertionError):
        return
    raise AssertionError(f"{name} was let in over {kind}")


async def conversation(canaries, running, api, kind):
    name = f"ann-{kind}"
    api.good("POST", "/v1/accounts", {"name": name, "password": PASSWORD})
    device = Device(DEVICE)
    sign_in = {"name": name, "password": PASSWORD, "device": str(device.number)}
    signed_in = api.good("POST", "/v1/sessions", sign_in)
    canaries.token(f"{kind} token", signed_in["token"])
    canaries.token(f"{kind} refresh token", signed_in["refresh_token"])
    live = await Session.open(running.server, device, kind, token=signed_in["token"], delivery="TIERED", hello={"agent": AGENT})
    canaries.secret(f"{kind} resume secret", device.resume)
    await live.sync()
    channel = (await live.open_channel(group={"name": GROUP}))["channel"]
    seq = (await live.say(channel, BODY))["seq"]
    await live.send(channel, edit={"target": seq, "message": {"text": EDIT}})
    await live.send(channel, reaction={"target": seq, "emoji": EMOJI})
    await live.fetch(channel, messages_max=10)
    for content in ({"message": {"text": LONG}}, {"edit": {"target": 999, "message": {"text": EDIT}}}):
        try:
            await live.send(channel, **content)
            raise AssertionError("taken")
        except Failed:
            pass
    # A frame whose body is not one, in a live session.
    await live.link.send(Frame("TYPING", {}, channel=channel))
    await live.ping()
    old = device.resume
    await live.cut()
    live = await Session.open(running.server, device, kind, resume=device.resume, delivery="TIERED")
    canaries.secret(f"{kind} next resume secret", device.resume)
    await live.link.send_bytes(b"\xff\x00\x00\x00" + struct.pack("<I", len(JUNK)) + JUNK.encode())
    try:
        await live.until(lambda: False, "CLOSE", 5)
    except (SessionEnded, AssertionError):
        pass
    await live.stop()
    again = api.good("POST", "/v1/sessions/refresh", {"refresh_token": signed_in["refresh_token"]})
    canaries.token(f"{kind} second token", again["token"])
    canaries.token(f"{kind} second refresh token", again["refresh_token"])
    bent = again["token"][:-6] + ("AAAAAA" if again["token"][-6:] != "AAAAAA" else "BBBBBB")
    canaries.token(f"{kind} bent token", bent)
    await refused(canaries, running, kind, "a bent token", token=bent)
    await refused(canaries, running, kind, "junk", token=JUNK * 10)
    await refused(canaries, running, kind, "a used resume secret", resume=bytes(old)[:-1] + b"\x00")
    # HTTP with the same, good and bad.
    path = f"/v1/channels/{channel}/messages"
    api.good("POST", path, {"text": BODY}, again["token"])
    api.ask("POST", path, {"text": LONG}, again["token"])
    api.ask("POST", path, {"text": BODY, "unknown": JUNK}, again["token"])
    api.ask("GET", f"{path}?limit={QUERY}", token=again["token"])
    api.ask("GET", f"{path}?access_token={QUERY}", token=bent)
    api.ask("GET", "/v1/export", token=again["token"])
    api.ask("GET", f"/readyz?{QUERY}")
    api.ask("GET", f"/admin/v1/users?{QUERY}", token=running.admin["token"])
    api.ask("POST", "/v1/sessions", sign_in | {"password": WRONG})
    api.ask("POST", "/v1/sessions", f'{{"name": "{name}", "password": "{WRONG}"'.encode())
    api.ask("POST", "/v1/sessions", sign_in | {"password": [WRONG]})
    api.ask("GET", "/v1/account", None, None, Authorization=f"Basic {JUNK}", Cookie=COOKIE)
    api.good("PUT", "/v1/account/password", {"old": PASSWORD, "new": NEXT}, again["token"])
    running.run("user", "revoke", name)


async def broken(running):
    """What is no request, and upgrades that are refused."""
    http = running.server.http.removeprefix("http://").split(":")
    gateway = (running.server.host, running.server.port)
    for place in ((http[0], int(http[1])), gateway):
        for raw in (f"GET /{JUNK} {JUNK}\r\n\r\n", f"{JUNK}\r\n", f"GET /v1/ws?{QUERY} HTTP/1.1\r\nHost: {JUNK}\r\nCookie: {COOKIE}\r\n\r\n"):
            with socket.create_connection(place, timeout=10) as stream:
                stream.sendall(raw.encode())
                stream.settimeout(6)
                try:
                    while stream.recv(4096):
                        pass
                except OSError:
                    pass
    url = f"ws://{gateway[0]}:{gateway[1]}/v1/ws"
    try:
        await websockets.connect(f"{url}?{QUERY}", subprotocols=["fanfare.v1"], origin=f"https://{PAGE}", additional_headers={"Cookie": COOKIE})
    except websockets.InvalidStatus:
        pass
    async with websockets.connect(url, subprotocols=["fanfare.v1"], compression=None) as session:
        await session.send(f"a text with {JUNK}")
        try:
            await session.recv()
        except websockets.ConnectionClosed:
            pass
    # Not QUIC, and not its handshake.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        datagrams.sendto(JUNK.encode() * 80, gateway)
        datagrams.sendto(b"\xc0\x00\x00\x00\x01" + JUNK.encode() * 80, gateway)


def links(canaries, running, api):
    url = urlsplit(running.run("admin", "link").split()[-1])
    link = parse_qs(url.fragment)["link"][0]
    canaries.token("link", link)
    api.ask("POST", "/v1/admin/claim", {"link": link, "name": "olga", "password": "short"})
    olga = api.good("POST", "/v1/admin/claim", {"link": link, "name": "olga", "password": PASSWORD})
    canaries.token("administrator's token", olga["token"])
    api.ask("POST", "/v1/admin/claim", {"link": link, "name": "olga", "password": PASSWORD})
    api.good("GET", "/admin/v1/status", token=olga["token"])
    api.good("POST", "/admin/v1/webhook-keys/rotate", {}, olga["token"])
    api.good("POST", "/admin/v1/users/olga/password", {"password": NEXT}, running.admin["token"])


async def main():
    canaries = Canaries()
    for text in (PASSWORD, NEXT, WRONG, BODY, EDIT, LONG[:40], GROUP, DEVICE, AGENT, EMOJI, QUERY, COOKIE, PAGE, JUNK):
        canaries.text(text[:24], text)
    os.environ["FANFARE_LOG"] = "trace"
    with RunningServer(os.environ["FANFARE"], "--limits", "load") as running:
        api = Http(running.server.http)
        canaries.text("token of commands", running.admin["token"])
        for kind in ("ws", "quic"):
            await conversation(canaries, running, api, kind)
        await broken(running)
        links(canaries, running, api)
        running.restart()
        folder = Path(running.data)
        # What is looked for can be found: it stands in the stores.
        stored = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name.startswith("meta.db"))
        assert BODY.encode() in stored or GROUP.encode() in stored, "the canaries are not even in the store"
        leaks, looked = [], []
        for path in folder.rglob("*"):
            inside = path.relative_to(folder).parts[0]
            if path.is_file() and not inside.startswith(STORES):
                looked.append(inside)
                names = canaries.found(path.read_bytes())
                leaks += [(str(path.relative_to(folder)), name) for name in names if (inside, name) != (ADMIN_FILE, "token of commands")]
        assert ADMIN_FILE in looked, looked
        running.restart()
        log = running.log_path.read_bytes()
    levels = [json.loads(line)["level"] for line in log.splitlines() if line.startswith(b"{")]
    assert levels.count("TRACE") > 1_000 and levels.count("DEBUG") > 10, {level: levels.count(level) for level in set(levels)}
    for line in log.splitlines():
        leaks += [("the log", name, line[:600].decode(errors="replace")) for name in canaries.found(line)]
    assert not leaks, f"{len(leaks)} leaks, such as:\n" + "\n".join(str(leak) for leak in leaks[:12])
    print(f"{len(canaries.forms)} canaries in none of {len(levels)} lines of the log, nor in {sorted(set(looked))}: ok")


# Not asyncio.run: after a QUIC connection was cut the loop waits minutes for its own threads before it says how it ended.
status = 1
try:
    asyncio.new_event_loop().run_until_complete(main())
    status = 0
except BaseException:  # noqa: BLE001 - whatever it was is printed
    traceback.print_exc()
sys.stdout.flush()
sys.stderr.flush()
os._exit(status)
