"""The first administrator by a one-time link, what its token opens, and how soon that ends; and webhooks' keys."""

import asyncio
import base64
import hashlib
import json
import os
import re
import threading
import time
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from cryptography.hazmat.primitives.asymmetric import ed25519

from fanfare import Device, Session, SessionEnded
from http_client import Http
from issuer import Issuer
from running import RunningServer

REVOKED, ADMIN_REFUSED, LOGIN_REFUSED, LOGIN_ENDED = 2008, 2012, 2013, 2014
FORBIDDEN, NAME_TAKEN, PASSWORD_LENGTH, RATE_LIMITED = 3002, 3014, 3015, 4001
BAD_BODY, BAD_FIELD, NO_SUCH_NAME = 1004, 1006, 3013
PASSWORD, OTHER = "correct horse battery", "another battery staple"
LINKS_OPEN, LINK_LIFE_S, KEYS_PUBLISHED = 4, 15 * 60, 8
CLAIM, ADMIN = "/v1/admin/claim", "/admin/v1/status"


def link(running, *more):
    """What `fanfare admin link` printed: (secret, name)."""
    url = urlsplit(running.run("admin", "link", *more).split()[-1])
    assert url.path == "/admin/claim" and not url.query, url
    given = parse_qs(url.fragment)
    return given["link"][0], given.get("name", [None])[0]


def claim(secret, name, password=PASSWORD):
    return {"link": secret, "name": name, "password": password}


def pages(running, api):
    status, headers, page = api.ask("GET", "/admin")
    assert status == 200 and b"fanfare admin link" in page and b"<input" not in page, page
    status, headers, page = api.ask("GET", "/admin/claim")
    policy = headers["content-security-policy"]
    assert status == 200 and "default-src 'none'" in policy and "unsafe" not in policy, policy
    assert headers["cache-control"] == "no-store" and headers["referrer-policy"] == "no-referrer"
    # What stands in the page is what the policy lets run.
    for tag in ("script", "style"):
        (text,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page.decode(), re.S)
        wanted = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{wanted}'" in policy, (tag, policy)
    assert not re.search(rb"https?://|src=|\son\w+=", page), "the page asks somebody else, or runs what has no hash"


def kept(running, secret):
    """Nothing but a hash of the secret stands in the data folder."""
    raw = base64.urlsafe_b64decode(secret.removeprefix("ffl1_") + "=")
    found = False
    for path in Path(running.data).rglob("*"):
        if path.is_file():
            text = path.read_bytes()
            assert secret.encode() not in text and raw not in text, f"{path} holds the link's secret"
            found |= hashlib.sha256(raw).digest() in text
    assert found, "the link's hash is nowhere, so this looked at nothing"


def first(running, api):
    """No administrator, a link, an administrator."""
    before = json.loads(running.run("admin", "ls", "--json"))
    assert before["administrators"] == [], before
    alice = running.token("alice")
    api.refused(403, ADMIN_REFUSED, "GET", ADMIN, token=alice)
    api.refused(401, ADMIN_REFUSED, "GET", ADMIN)
    api.refused(401, ADMIN_REFUSED, "GET", ADMIN, token="0" * 64)
    opened = json.loads(running.run("admin", "link", "--json"))
    assert abs(opened["expires_unix_s"] - time.time() - LINK_LIFE_S) < 30, opened
    secret, name = link(running)
    assert name is None
    kept(running, secret)
    for odd in (secret[:-1], secret + "A", "ffl1_" + "A" * 43, "", "x" * 100_000):
        api.refused(401, ADMIN_REFUSED, "POST", CLAIM, claim(odd, "olga"))
    api.refused(400, BAD_BODY, "POST", CLAIM, claim(secret, "olga") | {"more": 1})
    # A mistake does not use the link up, and a link for nobody in particular is not for somebody who is there.
    api.refused(400, PASSWORD_LENGTH, "POST", CLAIM, claim(secret, "olga", "short"))
    api.refused(400, BAD_FIELD, "POST", CLAIM, claim(secret, "no spaces"))
    api.refused(400, BAD_FIELD, "POST", CLAIM, claim(secret, "olga") | {"device": "0"})
    api.refused(409, NAME_TAKEN, "POST", CLAIM, claim(secret, "alice"))
    api.refused(403, ADMIN_REFUSED, "GET", ADMIN, token=alice)
    signed_in = api.good("POST", CLAIM, claim(secret, "olga"))
    assert signed_in["name"] == "olga" and int(signed_in["device"]) > 0, signed_in
    token = signed_in["token"]
    assert api.good("GET", ADMIN, token=token)["ready"] is True
    assert "olga" in str(api.good("GET", "/admin/v1/administrators", token=token))
    api.refused(401, ADMIN_REFUSED, "POST", CLAIM, claim(secret, "second"))
    assert [user["name"] for user in json.loads(running.run("admin", "ls", "--json"))["administrators"]] == ["olga"]
    assert b"fanfare user ls" in api.ask("GET", "/admin")[2]
    # An administrator opens the next link.
    made = api.good("POST", "/admin/v1/administrators/links", {}, token)
    api.good("POST", CLAIM, claim(made["link"], "pavel"))
    refreshed = api.good("POST", "/v1/sessions/refresh", {"refresh_token": signed_in["refresh_token"]})
    api.good("GET", ADMIN, token=refreshed["token"])
    return refreshed["token"]


def at_once(running, api):
    """Many with one link at once: one of them gets it."""
    secret, _ = link(running)
    answers = []

    def take(number):
        answers.append(api.ask("POST", CLAIM, claim(secret, f"racer-{number}"))[0])

    threads = [threading.Thread(target=take, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [201] + [401] * 5, answers
    users = [user["name"] for user in json.loads(running.run("user", "ls", "--json"))["users"]]
    assert sum(name.startswith("racer-") for name in users) == 1, users
    # The oldest of those that are open goes.
    opened = [link(running)[0] for _ in range(LINKS_OPEN + 1)]
    api.refused(401, ADMIN_REFUSED, "POST", CLAIM, claim(opened[0], "late"))
    api.refused(400, PASSWORD_LENGTH, "POST", CLAIM, claim(opened[1], "late", "short"))


async def raised(running, api):
    """A link for somebody who is there: a new password, and what was signed in is out."""
    api.good("POST", "/v1/accounts", {"name": "bea", "password": PASSWORD})
    device = Device("bea")
    sign_in = {"name": "bea", "password": PASSWORD, "device": str(device.number)}
    before = api.good("POST", "/v1/sessions", sign_in)
    live = await Session.open(running.server, device, "ws", token=before["token"], delivery="TIERED")
    secret, name = link(running, "--name", "bea")
    assert name == "bea"
    api.refused(401, ADMIN_REFUSED, "POST", CLAIM, claim(secret, "somebody-else", OTHER))
    # Disabling an account ends the links for it.
    running.run("user", "disable", "bea")
    api.refused(401, ADMIN_REFUSED, "POST", CLAIM, claim(secret, "bea", OTHER))
    running.run("user", "enable", "bea")
    api.refused(401, ADMIN_REFUSED, "POST", CLAIM, claim(secret, "bea", OTHER))
    secret, _ = link(running, "--name", "bea")
    live = await Session.open(running.server, device, "ws", token=api.good("POST", "/v1/sessions", sign_in)["token"], delivery="TIERED")
    after = api.good("POST", CLAIM, claim(secret, "bea", OTHER))
    assert after["user"] == before["user"]
    try:
        until = time.monotonic() + 5
        while time.monotonic() < until:
            await live.ping()
            await asyncio.sleep(0.02)
        raise AssertionError("a session goes on though the password was set")
    except SessionEnded:
        pass
    api.refused(401, LOGIN_ENDED, "POST", "/v1/sessions/refresh", {"refresh_token": before["refresh_token"]})
    api.refused(401, LOGIN_REFUSED, "POST", "/v1/sessions", sign_in)
    api.good("GET", ADMIN, token=after["token"])
    # The flag and revocation are looked at with each request.
    api.good("DELETE", "/v1/sessions", token=after["token"])
    api.refused(401, REVOKED, "GET", ADMIN, token=after["token"])
    again = api.good("POST", "/v1/sessions", sign_in | {"password": OTHER})["token"]
    api.good("GET", ADMIN, token=again)
    running.run("admin", "rm", "bea")
    api.refused(403, ADMIN_REFUSED, "GET", ADMIN, token=again)
    api.good("GET", "/v1/account", token=again)
    api.good("POST", CLAIM, claim(link(running, "--name", "bea")[0], "bea", OTHER))
    last = api.good("POST", "/v1/sessions", sign_in | {"password": OTHER})["token"]
    api.good("GET", ADMIN, token=last)
    running.run("user", "disable", "bea")
    api.refused(401, REVOKED, "GET", ADMIN, token=last)
    assert "bea" not in running.run("admin", "ls"), "a disabled one is no administrator"


def among_themselves(running, api, token):
    """No administrator becomes another one, and what it opened ends with it."""
    links = "/admin/v1/administrators/links"

    def administrator(name):
        return api.good("POST", CLAIM, claim(link(running, "--name", name)[0], name))["token"]

    quinn = administrator("quinn")
    for method, body in (("token", {}), ("password", {"password": OTHER})):
        path = f"/admin/v1/users/olga/{method}"
        api.refused(403, FORBIDDEN, "POST", path, body, quinn)
        api.good("POST", path.replace("olga", "carol"), body, quinn)
    api.refused(403, FORBIDDEN, "POST", "/admin/v1/users/bulk", {"names": ["carol", "olga"]}, quinn)
    api.refused(403, FORBIDDEN, "POST", links, {"name": "olga"}, quinn)
    assert running.token("olga"), "commands on the folder may"
    # For carol, who is raised while the link is open.
    early = api.good("POST", links, {"name": "carol"}, quinn)["link"]
    administrator("carol")
    api.refused(401, ADMIN_REFUSED, "POST", CLAIM, claim(early, "carol", OTHER))
    endings = {
        "dismissed": lambda name, own: api.good("POST", "/admin/v1/administrators/dismiss", {"user": name}, token),
        "disabled": lambda name, own: api.good("POST", f"/admin/v1/users/{name}/disabled", {"disabled": True}, token),
        "signed-out": lambda name, own: api.good("DELETE", "/v1/sessions", token=own),
    }
    for name, end in endings.items():
        own = administrator(name)
        opened = [api.good("POST", links, wish, own)["link"] for wish in ({}, {"name": f"after-{name}"})]
        end(name, own)
        for secret in opened:
            api.refused(401, ADMIN_REFUSED, "POST", CLAIM, claim(secret, f"after-{name}"))
        status, _, answer = api.ask("POST", links, {}, own)
        assert status in (401, 403), f"{name}: {answer}"


def foreign(binary):
    """Who signs tokens for an app does not administer the server with them."""
    issuer = Issuer()
    keys = issuer.serve()
    os.environ["FANFARE__TOKENS__TRUSTED"] = f"shop=http://127.0.0.1:{keys.server_port}/jwks.json"
    try:
        with RunningServer(binary, "--limits", "load") as running:
            api = Http(running.server.http)
            olga = api.good("POST", CLAIM, claim(link(running)[0], "olga"))
            token = issuer.token(olga["user"])
            until = time.monotonic() + 10
            while api.ask("GET", "/v1/account", token=token)[0] != 200:
                assert time.monotonic() < until, "the issuer's keys were not read"
                time.sleep(0.05)
            api.refused(403, ADMIN_REFUSED, "GET", ADMIN, token=token)
            api.good("GET", ADMIN, token=olga["token"])
    finally:
        del os.environ["FANFARE__TOKENS__TRUSTED"]
        keys.shutdown()


def throttled(running, api):
    limited = 0
    for _ in range(12):
        status, headers, answer = api.ask("POST", CLAIM, claim("ffl1_" + "A" * 43, "guess"))
        if status == 429:
            assert int(headers["retry-after"]) >= 1 and answer["number"] == RATE_LIMITED, answer
            limited += 1
        else:
            assert status == 401, answer
    assert limited >= 5, f"{limited} of 12 guesses from one address were slowed down"


def webhook_keys(running, api, token):
    """Published keys are good ones; rotation keeps the one before for a week, withdrawing does not."""

    def published():
        status, headers, answer = api.ask("GET", "/v1/webhooks/keys")
        assert status == 200 and "max-age" in headers["cache-control"], headers
        for key in answer["keys"]:
            assert (key["kty"], key["crv"], key["alg"], key["use"]) == ("OKP", "Ed25519", "EdDSA", "sig"), key
            raw = base64.urlsafe_b64decode(key["x"] + "=")
            ed25519.Ed25519PublicKey.from_public_bytes(raw)
            assert key["kid"] == hashlib.sha256(raw).hexdigest()[:16], key
            assert set(key) <= {"kty", "crv", "alg", "use", "kid", "x", "exp"}, "more than the public half"
        assert ["exp" in key for key in answer["keys"]] == [True] * (len(answer["keys"]) - 1) + [False], answer
        return answer["keys"]

    (one,) = published()
    alice = running.token("alice")
    api.refused(403, ADMIN_REFUSED, "POST", "/admin/v1/webhook-keys/rotate", {}, alice)
    api.refused(401, ADMIN_REFUSED, "GET", "/admin/v1/webhook-keys")
    rotated = api.good("POST", "/admin/v1/webhook-keys/rotate", {}, token)["keys"]
    assert set(rotated[0]) == {"kid", "x", "signs", "created_at", "ends_at"}, rotated
    before, two = published()
    assert before["kid"] == one["kid"] and two["kid"] != one["kid"]
    assert abs(before["exp"] - time.time() - 7 * 86_400) < 60, before
    listed = json.loads(running.run("admin", "webhook-keys", "ls", "--json"))["webhook_keys"]
    assert [(key["kid"], key["signs"]) for key in listed] == [(one["kid"], False), (two["kid"], True)], listed
    running.run("admin", "webhook-keys", "rotate", "--withdraw")
    kids = [key["kid"] for key in published()]
    assert one["kid"] in kids and two["kid"] not in kids and len(kids) == 2, kids
    # One that signs no more goes alone; one that signs has a successor at once.
    (three,) = [kid for kid in kids if kid != one["kid"]]
    running.run("admin", "webhook-keys", "withdraw", one["kid"])
    assert [key["kid"] for key in published()] == [three]
    (four,) = api.good("POST", "/admin/v1/webhook-keys/withdraw", {"kid": three}, token)["keys"]
    assert [key["kid"] for key in published()] == [four["kid"]] != [three] and four["signs"]
    for gone in (three, "", "x" * 100_000):
        _, refused = api.refused(404, NO_SUCH_NAME, "POST", "/admin/v1/webhook-keys/withdraw", {"kid": gone}, token)
        assert len(str(refused)) < 1000, "the name came back"
    api.refused(403, ADMIN_REFUSED, "POST", "/admin/v1/webhook-keys/withdraw", {"kid": four["kid"]}, alice)
    for _ in range(KEYS_PUBLISHED - 1):
        api.good("POST", "/admin/v1/webhook-keys/rotate", {}, token)
    assert len(published()) == KEYS_PUBLISHED
    headers, _ = api.refused(429, RATE_LIMITED, "POST", "/admin/v1/webhook-keys/rotate", {}, token)
    assert 6 * 86_400 < int(headers["retry-after"]) <= 7 * 86_400, headers
    api.good("POST", "/admin/v1/webhook-keys/rotate", {"withdraw": True}, token)
    return {key["kid"] for key in published()}


async def main():
    binary = os.environ["FANFARE"]
    with RunningServer(binary, "--limits", "load") as running:
        api = Http(running.server.http)
        pages(running, api)
        token = first(running, api)
        at_once(running, api)
        await raised(running, api)
        among_themselves(running, api, token)
        webhook_keys(running, api, token)
        log = running.log_path.read_text()
        assert "ffl1_" not in log and PASSWORD not in log and OTHER not in log, "a secret stands in the log"
    print("administrators by link, and webhooks' keys: ok")
    foreign(binary)
    with RunningServer(binary) as running:
        throttled(running, Http(running.server.http))
    print("an app's issuer does not administer, and guesses are slowed down: ok")


asyncio.run(main())
