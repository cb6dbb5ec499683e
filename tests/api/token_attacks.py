"""Tokens that must not pass, each over HTTP, in HELLO and in AUTH of a live session, over both transports: refused with
its number everywhere, and nobody else is harmed. Most are signed with a key that the server trusts, so that nothing but
the fault itself can refuse them."""

import asyncio
import hashlib
import hmac
import json
import os
import time

from fanfare import Device, Session, SessionEnded
from http_client import Http
from issuer import Issuer, decoded, encoded
from running import RunningServer
from wire import Frame

MALFORMED, EXPIRED, SIGNATURE, CLAIMS, UNKNOWN_USER = 2002, 2003, 2004, 2005, 2009
# The order of the group that Ed25519 signs in.
GROUP = 2**252 + 27742317777372353535851937790883648493

# Forms that are tried at the same time.
AT_ONCE = 10


def close_code(number):
    """Section 8 of docs/protocol.md, for numbers whose policy is a fresh token."""
    return 4200 + (number // 1000 - 1) * 16 + number % 1000 % 16


def bad_tokens(issuer, user):
    """(what is wrong, number, token)."""
    header, claims = issuer.header(), issuer.claims(user)
    now = claims["iat"]
    good = issuer.token(user)
    head, body, signature = good.split(".")

    def with_header(change, number, what, drop=()):
        changed = {key: value for key, value in (header | change).items() if key not in drop}
        return what, number, issuer.sign(json.dumps(changed), json.dumps(claims))

    def with_claims(change, number, what, drop=()):
        changed = {key: value for key, value in (claims | change).items() if key not in drop}
        return what, number, issuer.sign(json.dumps(header), json.dumps(changed))

    # Algorithms: none without a signature, the public key as a secret, others by name.
    none = f"{encoded(json.dumps(header | {'alg': 'none'}).encode())}.{body}"
    yield "alg none", MALFORMED, f"{none}."
    yield "alg none, signed all the same", MALFORMED, f"{none}.{signature}"
    for alg in ("HS256", "hs256", "NONE", "RS256", "ES256", "PS256", "Ed25519", "eddsa", "", None, 1, ["EdDSA"]):
        yield with_header({"alg": alg}, MALFORMED, f"alg {alg}")
    hs = f"{encoded(json.dumps(header | {'alg': 'HS256'}).encode())}.{body}"
    mac = hmac.new(issuer.public(), hs.encode(), hashlib.sha256).digest()
    yield "HS256 under the public key", MALFORMED, f"{hs}.{encoded(mac)}"
    # Where the key is to be found, said by the token itself.
    for name in ("jku", "x5u", "jwk", "x5c", "crit", "b64", "cty"):
        yield with_header({name: "https://evil.example/keys"}, MALFORMED, name)
    for kid in ("../../etc/passwd", "/dev/null", "' OR 1=1 --", "", "shop-2", "SHOP-1"):
        yield with_header({"kid": kid}, SIGNATURE, f"kid {kid!r}")
    # A header has no use for escapes, so that none is read.
    yield with_header({"kid": "shop-1\0"}, MALFORMED, "kid with NUL")
    yield "kid in escapes", MALFORMED, issuer.sign(json.dumps(header).replace("shop-1", "\\u0073hop-1"), json.dumps(claims))
    yield with_header({"kid": 1}, MALFORMED, "kid a number")
    yield with_header({"kid": ["shop-1"]}, MALFORMED, "kid a list")
    for typ in ("JWT", "at+jwt", "", None, 1):
        yield with_header({"typ": typ}, MALFORMED, f"typ {typ}")
    for name in ("alg", "typ", "kid"):
        yield with_header({}, MALFORMED, f"no {name}", drop=(name,))

    # Claims of other values and of other types.
    for name, values in {
        "exp": (None, str(now + 900), now + 900.5, -1, 2**64 - 1, 2**64, 2**63, 2**40, 1e400, True, [now + 900]),
        "iat": (None, str(now), now + 60, now + 901, -1, 2**64, 1.5),
        "nbf": (str(now), now + 60, -1, 2**63, 0.5),
        "aud": (None, "other", "Fanfare", ["fanfare"], "", 1, "fanfare "),
        "iss": (None, "fanfare", "other", "SHOP", "", ["shop"], 1),
        "sub": (None, "", "0", int(user), f"+{user}", f"0{user}", f" {user}", f"-{user}", "alice", str(2**63), "1e3", "١", [user]),
        "did": ("1", "x", 1),
        "dgn": (0, "0"),
    }.items():
        for value in values:
            yield with_claims({name: value}, CLAIMS, f"{name} {value!r}")
    yield with_claims({"did": "0x1", "dgn": 0}, CLAIMS, "did in hex")
    yield with_claims({"did": "1", "dgn": -1}, CLAIMS, "dgn below 0")
    yield with_claims({"did": "1", "dgn": 2**32}, CLAIMS, "dgn over 32 bits")
    for name in ("iss", "aud", "sub", "exp", "iat"):
        yield with_claims({}, CLAIMS, f"no {name}", drop=(name,))
    yield with_claims({"iat": now - 1000, "exp": now - 31}, EXPIRED, "its time is over")
    yield with_claims({"sub": "12345"}, UNKNOWN_USER, "a user who is not there")

    # JSON that parsers read differently.
    for name, other in {"sub": '"12345"', "exp": str(now + 901), "aud": '"other"', "iss": '"fanfare"', "did": '"1"'}.items():
        rest = json.dumps(claims)[1:]
        once = f'{{"{name}": {other}, {rest}'
        if name == "did":
            once = f'{{"did": "2", "did": "1", "dgn": 0, {rest}'
        yield f"{name} twice", CLAIMS, issuer.sign(json.dumps(header), once)
    yield "alg twice", MALFORMED, issuer.sign('{"alg": "none", ' + json.dumps(header)[1:], json.dumps(claims))
    yield "kid twice", MALFORMED, issuer.sign('{"kid": "other", ' + json.dumps(header)[1:], json.dumps(claims))
    for text in ("", "null", "[]", "1", '"x"', "{", "{}", json.dumps(claims) + "x", json.dumps(claims) * 2, "\ufeff" + json.dumps(claims)):
        yield f"claims of {len(text)} bytes {text[:6]!r}", CLAIMS, issuer.sign(json.dumps(header), text)
    for text in ("", "null", "[]", "{}", json.dumps(header) + "x", "[" * 1000):
        yield f"header of {len(text)} bytes {text[:6]!r}", MALFORMED, issuer.sign(text, json.dumps(claims))
    yield "claims nested deep", CLAIMS, issuer.sign(json.dumps(header), '{"a":' * 400 + "1" + "}" * 400)

    # Forms: parts, padding, bits that do not count, other alphabets.
    yield "no signature", SIGNATURE, f"{head}.{body}."
    yield "two parts", MALFORMED, f"{head}.{body}"
    yield "one part", MALFORMED, head
    yield "four parts", SIGNATURE, f"{good}.{signature}"
    yield "five parts", SIGNATURE, f"{good}..{signature}"
    four = f"{head}.{body}.{body}"
    yield "four parts, signed", MALFORMED, f"{four}.{encoded(issuer.key.sign(four.encode()))}"
    yield "no header", MALFORMED, f".{body}.{signature}"
    yield "no claims", SIGNATURE, f"{head}..{signature}"
    yield "dots alone", MALFORMED, ".."
    yield "a dot", MALFORMED, "."
    yield "spaces inside", MALFORMED, f"{head} .{body}.{signature}"
    yield "padding behind the signature", MALFORMED, f"{good}=="
    yield "padding in the header", MALFORMED, f"{head}==.{body}.{signature}"
    yield "the signature's last bits set", MALFORMED, good[:-1] + noncanonical(good[-1])
    yield "another alphabet", MALFORMED, f"{head}.{body}.{'+' + signature[1:]}"
    yield "over 4 KiB", MALFORMED, issuer.token(user, more="x" * 4096)
    yield "over 4 KiB of nothing", MALFORMED, "A" * 5000
    raw = decoded(signature)
    yield "half a signature", SIGNATURE, f"{head}.{body}.{encoded(raw[:32])}"
    yield "a signature and a byte", SIGNATURE, f"{head}.{body}.{encoded(raw + b'x')}"
    yield "a signature of zeros", SIGNATURE, f"{head}.{body}.{encoded(bytes(64))}"
    flipped = bytes([raw[0] ^ 1]) + raw[1:]
    yield "a bit of the signature flipped", SIGNATURE, f"{head}.{body}.{encoded(flipped)}"
    again = raw[:32] + (int.from_bytes(raw[32:], "little") + GROUP).to_bytes(32, "little")
    yield "the signature's other form", SIGNATURE, f"{head}.{body}.{encoded(again)}"
    yield "a key that is not trusted", SIGNATURE, Issuer().token(user)
    elsewhere = issuer.token("12345").split(".")
    yield "the signature of another token", SIGNATURE, f"{head}.{body}.{elsewhere[2]}"
    yield "the claims of another token", SIGNATURE, f"{head}.{elsewhere[1]}.{signature}"


def noncanonical(last):
    """The same bits that count, and one that does not."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    return alphabet[alphabet.index(last) | 1]


async def judged(running, issuer, user, kind, what, number, token):
    """What is wrong with what HELLO and AUTH say of that token over one transport."""
    wrong = []
    try:
        await Session.open(running.server, Device("hello"), kind, token=token, delivery="TIERED")
    except SessionEnded as ended:
        got = (ended.error, ended.close_code)
        if got != (number, close_code(number)):
            wrong.append(f"{what}: HELLO over {kind} says {got}, not {number}")
    else:
        wrong.append(f"{what}: welcomed over {kind}")
    # A user who is not there is another user than the session's.
    number = CLAIMS if number == UNKNOWN_USER else number
    live = await Session.open(running.server, Device("auth"), kind, token=issuer.token(user), delivery="TIERED")
    await live.link.send(Frame("AUTH", {"token": token}))
    closed = await asyncio.wait_for(live.ended, 5)
    got = (live.error, closed.code)
    if got != (number, close_code(number)):
        wrong.append(f"{what}: AUTH over {kind} says {got}, not {number}")
    await live.stop()
    return wrong


def asked(api, what, number, token):
    """What is wrong with what HTTP says of that token."""
    if "\0" in token or not token:
        return []
    status, headers, answer = api.ask("GET", "/v1/account", token=token)
    got = (status, answer.get("number"), headers["www-authenticate"])
    return [] if got == (401, number, "Bearer") else [f"{what}: HTTP says {got}, not {number}"]


async def main():
    issuer = Issuer()
    keys = issuer.serve()
    os.environ["FANFARE__TOKENS__TRUSTED"] = f"shop=http://127.0.0.1:{keys.server_port}/jwks.json"
    with RunningServer(os.environ["FANFARE"], "--limits", "load") as running:
        api = Http(running.server.http)
        user = api.good("GET", "/v1/account", token=running.token("alice"))["user"]
        until = time.monotonic() + 10
        while api.ask("GET", "/v1/account", token=issuer.token(user))[0] != 200:
            assert time.monotonic() < until, "the issuer's keys were not read"
            await asyncio.sleep(0.05)
        beside = {}
        for kind in ("ws", "quic"):
            beside[kind] = await Session.open(
                running.server, Device("beside"), kind, token=issuer.token(user), delivery="TIERED"
            )
        forms = list(bad_tokens(issuer, user))
        assert len(forms) >= 100, len(forms)
        names = [what for what, _, _ in forms]
        twice = {what for what in names if names.count(what) > 1}
        assert not twice, f"forms of one name: {twice}"
        wrong = []
        for at in range(0, len(forms), AT_ONCE):
            some = forms[at : at + AT_ONCE]
            checks = [judged(running, issuer, user, kind, *form) for form in some for kind in ("ws", "quic")]
            checks += [asyncio.to_thread(asked, api, *form) for form in some]
            for found in await asyncio.gather(*checks):
                wrong += found
        assert not wrong, "\n".join(wrong)
        # A token that is good, of somebody else, is no proof for this session.
        other = api.good("GET", "/v1/account", token=running.token("bob"))["user"]
        live = await Session.open(running.server, Device("other"), "ws", token=issuer.token(user), delivery="TIERED")
        await live.link.send(Frame("AUTH", {"token": issuer.token(other)}))
        await asyncio.wait_for(live.ended, 5)
        assert live.error == CLAIMS, live.error
        await live.stop()
        for scheme in ("", "Basic ", "Token ", "Bearer"):
            status, _, answer = api.ask("GET", "/v1/account", Authorization=scheme + issuer.token(user))
            assert (status, answer["number"]) == (401, 2001), f"{scheme!r}: {status} {answer}"
        # Sessions that were there before saw nothing of it, and a good token goes on being good.
        for session in beside.values():
            await session.ping()
            await session.renew(issuer.token(user))
            await session.close()
        log = running.log_path.read_text()
        leaked = [what for what, _, token in forms if len(token) > 60 and token in log]
        assert not leaked and "evil.example" not in log, f"tokens in the log: {leaked}"
    keys.shutdown()
    print(f"bad tokens: {len(forms)} forms over HTTP, HELLO and AUTH on both transports: ok")


if __name__ == "__main__":
    asyncio.run(main())
