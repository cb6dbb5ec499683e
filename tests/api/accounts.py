"""Accounts against the real binary: what signing in gives, and how soon everything that was revoked ends."""

import asyncio
import base64
import json
import os
import time

from http_client import Http
from issuer import Issuer
from fanfare import Device, Failed, Session, SessionEnded
from running import RunningServer

TOKEN_MISSING, TOKEN_MALFORMED, TOKEN_SIGNATURE, TOKEN_CLAIMS, REVOKED = 2001, 2002, 2004, 2005, 2008
LOGIN_REFUSED, LOGIN_ENDED, REGISTRATION_CLOSED, RESUME_REFUSED = 2013, 2014, 2015, 2006
NOT_A_MEMBER, FORBIDDEN, CONFLICT, NAME_TAKEN, PASSWORD_LENGTH, RATE_LIMITED = 3001, 3002, 3003, 3014, 3015, 4001
BAD_BODY, BAD_FIELD, BODY_TOO_LARGE = 1004, 1006, 4002
PASSWORD = "correct horse battery"
# How long a revoked session may go on, seconds.
REVOKED_WITHIN = 2


class Account:
    """Somebody who signed up."""

    def __init__(self, api, name):
        self.api, self.name = api, name
        api.good("POST", "/v1/accounts", {"name": name, "password": PASSWORD})

    def sign_in(self, device, password=PASSWORD):
        wish = {"name": self.name, "password": password, "device": str(device.number)}
        return self.api.good("POST", "/v1/sessions", wish)


async def session(running, device, kind, token="", resume=b""):
    return await Session.open(running.server, device, kind, token=token, resume=resume, delivery="TIERED")


async def ends(session, number):
    """The session ends with that number, in time."""
    began = time.monotonic()
    try:
        while time.monotonic() - began < REVOKED_WITHIN:
            await session.ping()
            await asyncio.sleep(0.02)
    except SessionEnded as ended:
        assert str(number) in str(ended) or f"'code': {number}" in repr(ended.args), f"{ended!r}"
        return
    raise AssertionError(f"the session went on for {REVOKED_WITHIN} s")


async def refused(running, device, kind, number, **proof):
    try:
        await session(running, device, kind, **proof)
    except (Failed, SessionEnded) as ended:
        assert str(number) in str(ended) or str(number) in repr(ended.args), f"{ended!r}, not {number}"
        return
    raise AssertionError(f"let in with {list(proof)}")


def bad_tokens(good):
    """Forms of a token that must not pass, each from a good one."""
    header, claims, signature = good.split(".")

    def part(value):
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()

    def read(text):
        return json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))

    h, c = read(header), read(claims)
    for change in ({"alg": "none"}, {"alg": "HS256"}, {"alg": "RS256"}, {"alg": "ES256"}, {"typ": "JWT"}, {"kid": "../x"}):
        yield f"{part(h | change)}.{claims}.{signature}"
    for more in ("jku", "x5u", "jwk", "crit", "x5c"):
        yield f"{part(h | {more: 'https://evil.example/keys'})}.{claims}.{signature}"
    for change in ({"sub": "1"}, {"exp": c["exp"] + 1}, {"exp": str(c["exp"])}, {"aud": "other"}, {"iss": "other"}, {"did": "1"}):
        yield f"{header}.{part(c | change)}.{signature}"
    yield f"{header}.{claims}."
    yield f"{header}.{claims}.{signature[:40]}{'B' if signature[40] == 'A' else 'A'}{signature[41:]}"
    yield f"{header}.{claims}"
    yield "." .join(["", claims, signature])
    yield f"{header}.{claims}.{signature}.{signature}"
    yield "A" * 5000
    yield " "


async def life(running, api, kind):
    ann = Account(api, f"ann-{kind}")
    bob = Account(api, f"bob-{kind}")
    phone, laptop = Device("phone"), Device("laptop")
    on_phone, on_laptop = ann.sign_in(phone), ann.sign_in(laptop)
    assert api.good("GET", "/v1/account", token=on_phone["token"])["name"] == ann.name

    # A token of a login is bound to its device.
    await refused(running, Device("stolen"), kind, TOKEN_CLAIMS, token=on_phone["token"])

    # Refreshing: each refresh token is taken once; one that comes a second time, late, ends the login.
    again = api.good("POST", "/v1/sessions/refresh", {"refresh_token": on_phone["refresh_token"]})
    assert again["refresh_token"] != on_phone["refresh_token"] and again["device"] == on_phone["device"]
    last = api.good("POST", "/v1/sessions/refresh", {"refresh_token": again["refresh_token"]})
    live = await session(running, phone, kind, token=last["token"])
    api.refused(401, LOGIN_ENDED, "POST", "/v1/sessions/refresh", {"refresh_token": on_phone["refresh_token"]})
    await ends(live, REVOKED)
    api.refused(401, LOGIN_ENDED, "POST", "/v1/sessions/refresh", {"refresh_token": last["refresh_token"]})
    api.refused(401, REVOKED, "GET", "/v1/account", token=last["token"])

    # The other device goes on, sends and reads by both ways.
    laptop_session = await session(running, laptop, kind, token=on_laptop["token"])
    bob_token = bob.sign_in(Device("bob"))["token"]
    bob_id = api.good("GET", "/v1/account", token=bob_token)["user"]
    token = on_laptop["token"]
    channel = api.good("POST", "/v1/channels", {"name": "crabs"}, token)["channel"]
    path = f"/v1/channels/{channel}"
    api.refused(403, NOT_A_MEMBER, "GET", path, token=bob_token)
    api.refused(403, NOT_A_MEMBER, "GET", f"{path}/messages", token=bob_token)
    api.refused(403, NOT_A_MEMBER, "GET", f"{path}/members", token=bob_token)
    api.refused(403, NOT_A_MEMBER, "POST", f"{path}/messages", {"text": "let me in"}, bob_token)
    api.refused(403, NOT_A_MEMBER, "POST", f"{path}/members", {"users": [bob_id]}, bob_token)
    added = api.good("POST", f"{path}/members", {"users": [bob_id]}, token)
    assert added["seq"] == 2
    first = api.good("POST", f"{path}/messages", {"text": "once"}, token)
    key = first["client_message_id"]
    repeat = api.good("POST", f"{path}/messages", {"text": "once", "client_message_id": key}, token)
    assert repeat["repeated"] and repeat["seq"] == first["seq"], repeat
    api.refused(409, CONFLICT, "POST", f"{path}/messages", {"text": "twice", "client_message_id": key}, token)
    for number in range(30):
        api.good("POST", f"{path}/messages", {"text": f"message {number}"}, token)
    seen, before = [], None
    while True:
        page = api.good("GET", f"{path}/messages?limit=7" + (f"&before={before}" if before else ""), token=bob_token)
        seen += [message["seq"] for message in page["messages"]]
        before = page["next"]
        if before is None:
            break
    assert seen == sorted(seen, reverse=True) and len(seen) == 31 == len(set(seen)), seen
    api.refused(403, FORBIDDEN, "DELETE", f"{path}/members/{api.good('GET', '/v1/account', token=token)['user']}", token=bob_token)
    api.good("DELETE", f"{path}/members/{bob_id}", token=bob_token)
    api.refused(403, NOT_A_MEMBER, "GET", f"{path}/messages", token=bob_token)

    # A changed password ends everything, resume secrets too.
    api.refused(401, LOGIN_REFUSED, "PUT", "/v1/account/password", {"old": "wrong horse", "new": "another horse"}, token)
    api.refused(400, PASSWORD_LENGTH, "PUT", "/v1/account/password", {"old": PASSWORD, "new": "short"}, token)
    api.good("PUT", "/v1/account/password", {"old": PASSWORD, "new": "another horse"}, token)
    await ends(laptop_session, REVOKED)
    await refused(running, laptop, kind, RESUME_REFUSED, resume=laptop.resume)
    await refused(running, laptop, kind, REVOKED, token=token)
    api.refused(401, REVOKED, "GET", "/v1/account", token=token)
    api.refused(401, LOGIN_ENDED, "POST", "/v1/sessions/refresh", {"refresh_token": on_laptop["refresh_token"]})
    wrong = {"name": ann.name, "password": PASSWORD, "device": "5"}
    api.refused(401, LOGIN_REFUSED, "POST", "/v1/sessions", wrong)
    # And at once lets in again, in the same second too.
    fresh = ann.sign_in(laptop, "another horse")
    live = await session(running, laptop, kind, token=fresh["token"])
    devices = api.good("GET", "/v1/devices", token=fresh["token"])["devices"]
    assert {device["device"] for device in devices} == {str(phone.number), str(laptop.number)}, devices
    assert [device["current"] for device in devices if device["signed_in"]] == [True], devices

    # A device that is removed, and signing out.
    other = await session(running, phone, kind, token=ann.sign_in(phone, "another horse")["token"])
    api.good("DELETE", f"/v1/devices/{phone.number}", token=fresh["token"])
    await ends(other, REVOKED)
    await live.ping()
    api.good("DELETE", "/v1/sessions/current", token=fresh["token"])
    await ends(live, REVOKED)
    api.refused(401, REVOKED, "GET", "/v1/account", token=fresh["token"])


def tokens(running, api):
    good = running.token("alice")
    api.good("GET", "/v1/account", token=good)
    api.refused(401, TOKEN_MISSING, "GET", "/v1/account")
    count = 0
    for bad in bad_tokens(good):
        status, _, answer = api.ask("GET", "/v1/account", token=bad)
        assert status == 401, f"{status} for {bad[:80]}: {answer}"
        count += 1
    assert count >= 20, count
    return count


async def backend(binary):
    """A backend sends by HTTP, and its users connect, with tokens that it signed itself."""
    issuer = Issuer()
    keys = issuer.serve()
    os.environ["FANFARE__TOKENS__TRUSTED"] = f"shop=http://127.0.0.1:{keys.server_port}/jwks.json"
    try:
        with RunningServer(binary, "--limits", "load") as running:
            api = Http(running.server.http)
            alice = api.good("GET", "/v1/account", token=running.token("alice"))["user"]
            bob = api.good("GET", "/v1/account", token=running.token("bob"))["user"]
            token = issuer.token(alice)
            until = time.monotonic() + 10
            while api.ask("GET", "/v1/account", token=token)[0] != 200:
                assert time.monotonic() < until, "the issuer's keys were not read"
                await asyncio.sleep(0.05)
            channel = api.good("PUT", f"/v1/direct/{bob}", token=token)["channel"]
            sent = api.good("POST", f"/v1/channels/{channel}/messages", {"text": "your parcel is here"}, token)
            live = await session(running, Device("shop"), "ws", token=issuer.token(bob))
            await live.sync()
            await live.holds(int(channel), sent["seq"])
            # It speaks for itself alone, and only with its key.
            api.refused(401, TOKEN_CLAIMS, "GET", "/v1/account", token=issuer.token(alice, issuer="fanfare"))
            api.refused(401, TOKEN_SIGNATURE, "GET", "/v1/account", token=Issuer().token(alice))
    finally:
        del os.environ["FANFARE__TOKENS__TRUSTED"]
        keys.shutdown()


def logins(running, api):
    """Unknown names and wrong passwords look the same; stuffing is slowed down by name and by address."""
    name = {"name": "alice-login", "password": PASSWORD}
    api.good("POST", "/v1/accounts", name)
    api.refused(409, NAME_TAKEN, "POST", "/v1/accounts", name)
    api.refused(400, PASSWORD_LENGTH, "POST", "/v1/accounts", {"name": "x-long", "password": "x" * 257})
    api.refused(400, BAD_FIELD, "POST", "/v1/accounts", {"name": "no spaces", "password": PASSWORD})
    answers = []
    for who in ("alice-login", "nobody-at-all"):
        status, _, answer = api.ask("POST", "/v1/sessions", {"name": who, "password": "wrong horse", "device": "5"})
        answers.append((status, answer))
    assert answers[0] == answers[1], answers


def throttled(running, api):
    limited = 0
    for number in range(12):
        wish = {"name": f"guess-{number}", "password": "wrong horse", "device": "5"}
        status, headers, answer = api.ask("POST", "/v1/sessions", wish)
        if status == 429:
            assert int(headers["retry-after"]) >= 1 and answer["number"] == RATE_LIMITED, answer
            limited += 1
        else:
            assert status == 401, answer
    assert limited >= 5, f"{limited} of 12 guesses from one address were slowed down"


def bodies(api, token):
    for body in (b"", b"{", b"[]", b'{"name": 1}', b'{"name": "a", "password": "b", "device": "5", "more": 1}', b"\xff\xfe"):
        api.refused(400, BAD_BODY, "POST", "/v1/sessions", body)
    api.refused(413, BODY_TOO_LARGE, "POST", "/v1/sessions", b"x" * ((1 << 20) + 1))
    for path in ("/v1/channels/x", "/v1/channels/0", "/v1/channels/-1", "/v1/channels/9223372036854775808", "/v1/channels/%2e%2e"):
        status, _, answer = api.ask("GET", path, token=token)
        assert status in (400, 404), f"{path}: {status} {answer}"


async def main():
    binary = os.environ["FANFARE"]
    with RunningServer(binary, "--limits", "load") as running:
        api = Http(running.server.http)
        for kind in ("ws", "quic"):
            await life(running, api, kind)
        count = tokens(running, api)
        logins(running, api)
        bodies(api, running.token("alice"))
        print(f"accounts: two lives, {count} bad tokens: ok")
    with RunningServer(binary) as running:
        throttled(running, Http(running.server.http))
        log = running.log_path.read_text()
        assert PASSWORD not in log and "wrong horse" not in log, "a password stands in the log"
        print("logins are slowed down by address: ok")
    await backend(binary)
    print("a backend with its own issuer: ok")


asyncio.run(main())
