"""Attacks on the HTTP side: broken framing and smuggling, odd requests, odd bodies, and slow clients, by themselves and by
slowhttptest. See `run`."""

import asyncio
import http.client
import json
import os
import shutil
import socket
import sys
import time

import latency
from http_client import Http
from running import RunningServer, raise_file_limit

MIB = 1 << 20
# What all of it together may leave behind or hold at once: bodies of 1 MiB on as many connections as an address has.
GROWTH_BYTES_MAX = 192 * MIB
# How long a connection may go without getting anywhere, and what a busy machine adds.
SLOW_S_MAX, BUSY_S = 15, 5
# Connections of an attacker, and those that one address may have.
CROWD, PER_ADDRESS = 700, 128
# Connections and seconds of each mode of slowhttptest.
SLOW_CLIENTS, SLOW_S = 400, 10
CALM, SLOW, STRANGER = "127.0.6.1", "127.0.7.1", "127.0.8.1"
# All connections there may be, of which some are for this machine's own commands: those of 127.0.0.1.
CONNECTIONS, KEPT_FREE, OWN = 512, 32, "127.0.0.1"


class Raw:
    """A connection by hand."""

    def __init__(self, running, source=STRANGER, receive_bytes=None):
        host, port = running.server.http.removeprefix("http://").rsplit(":", 1)
        self.socket = socket.socket()
        if receive_bytes:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        self.socket.settimeout(10)
        self.socket.bind((source, 0))
        self.socket.connect((host, int(port)))

    def send(self, data):
        """A server that has closed already is no error: what it said is still to be read."""
        try:
            self.socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            pass

    def rest(self, seconds):
        """All that comes until the end, and whether that was a close."""
        out, until = b"", time.monotonic() + seconds
        while True:
            self.socket.settimeout(max(until - time.monotonic(), 0.001))
            try:
                some = self.socket.recv(MIB)
            except TimeoutError:
                return out, False
            except ConnectionResetError:
                return out, True
            if not some:
                return out, True
            out += some

    def close(self):
        self.socket.close()


def answers(data):
    """(status, headers, body) of each answer in there."""
    found = []
    while data:
        head, _, data = data.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin1").split("\r\n")
        assert first.startswith("HTTP/1."), first
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        assert len(headers) == len(lines), f"a header twice: {lines}"
        length = int(headers.get("content-length", "0"))
        found.append((int(first.split()[1]), headers, data[:length]))
        data = data[length:]
    return found


def asked(running, data, wait=0.3):
    raw = Raw(running)
    raw.send(data)
    out, closed = raw.rest(5 if b"Connection: close" in data else wait)
    raw.close()
    return answers(out), closed


# ---------------------------------------------------------------- framing

INNER = b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"


def post(headers, body=b""):
    return b"POST /v1/accounts HTTP/1.1\r\nHost: x\r\n" + headers + b"\r\n" + body


def smuggling(running):
    """Requests whose end two readers could see in two places: refused and closed; what lies behind is never served."""
    cases = {
        "Content-Length and chunked": post(b"Content-Length: 4\r\n" + CHUNKED, b"0\r\n\r\n"),
        "chunked and Content-Length": post(CHUNKED + b"Content-Length: 4\r\n", b"0\r\n\r\n"),
        "two lengths": post(b"Content-Length: 4\r\nContent-Length: 5\r\n", b"abcde"),
        "a list of two lengths": post(b"Content-Length: 4, 5\r\n", b"abcde"),
        "a length with a sign": post(b"Content-Length: +4\r\n", b"abcd"),
        "a length below 0": post(b"Content-Length: -1\r\n"),
        "a length in hex": post(b"Content-Length: 0x4\r\n", b"abcd"),
        "a length over 64 bits": post(b"Content-Length: 18446744073709551620\r\n", b"abcd"),
        "an empty length": post(b"Content-Length:\r\n"),
        "chunked and then identity": post(CHUNKED + b"Transfer-Encoding: identity\r\n", b"0\r\n\r\n"),
        "an unknown coding": post(b"Transfer-Encoding: xchunked\r\n", b"0\r\n\r\n"),
        "an unknown coding and a length": post(b"Transfer-Encoding: xchunked\r\nContent-Length: 5\r\n", b"0\r\n\r\n"),
        "a coding behind a vertical tab": post(b"Transfer-Encoding: \x0bchunked\r\nContent-Length: 5\r\n", b"0\r\n\r\n"),
        "chunked in HTTP/1.0": b"POST /v1/accounts HTTP/1.0\r\nHost: x\r\n" + CHUNKED + b"\r\n0\r\n\r\n",
        "a space before the colon": post(b"Content-Length : 4\r\n", b"abcd"),
        "a space before the coding's colon": post(b"Transfer-Encoding : chunked\r\n", b"0\r\n\r\n"),
        "a folded header": post(b"X-A: b\r\n Content-Length: 4\r\n"),
        "a space before the first header": b"GET /livez HTTP/1.1\r\n Host: x\r\n\r\n",
        "a line end of CR alone": b"GET /livez HTTP/1.1\rHost: x\r\r",
        "CR inside a value": post(b"X-A: a\rContent-Length: 4\r\n"),
        "NUL in a value": post(b"X-A: a\0b\r\n"),
        "NUL in a name": post(b"X-\0A: b\r\n"),
        "no colon": post(b"X-A\r\n"),
        "no name": post(b": x\r\n"),
        "a chunk size that is none": post(CHUNKED, b"zz\r\nabcd\r\n0\r\n\r\n"),
        "a chunk size with a sign": post(CHUNKED, b"-1\r\n\r\n"),
        "a chunk size with 0x": post(CHUNKED, b"0x4\r\nabcd\r\n0\r\n\r\n"),
        "a chunk size over 64 bits": post(CHUNKED, b"fffffffffffffffff\r\n\r\n"),
        "an empty chunk size": post(CHUNKED, b"\r\nabcd\r\n0\r\n\r\n"),
        "chunk lines of LF alone": post(CHUNKED, b"4\nabcd\n0\n\n"),
        "a chunk longer than its size": post(CHUNKED, b"4\r\nabcdXX0\r\n\r\n"),
        "a chunk extension of 20 KB": post(CHUNKED, b"4;" + b"a" * 20_000 + b"\r\nabcd\r\n0\r\n\r\n"),
        "trailers of 160 KB": post(CHUNKED, b"0\r\n" + b"X-T: a\r\n" * 20_000 + b"\r\n"),
        "no Host": b"GET /livez HTTP/1.1\r\n\r\n",
        "two Hosts": b"GET /livez HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        "HTTP/0.9": b"GET /livez\r\n\r\n",
        "HTTP/3.0": b"GET /livez HTTP/3.0\r\nHost: x\r\n\r\n",
        "a TLS hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        "HTTP/2 with a rapid reset": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + rapid_reset(),
    }
    for what, data in cases.items():
        got, closed = asked(running, data + INNER, wait=2)
        statuses = [status for status, _, _ in got]
        assert closed, f"{what}: the connection goes on after {statuses}"
        assert len(statuses) <= 1 and all(400 <= status < 500 for status in statuses), f"{what}: {statuses}"
        assert not any(body == b"live\n" for _, _, body in got), f"{what}: the request behind it was served"
    # What is allowed: one length said twice, bare LFs, a chunked body; what lies behind is the next request, once.
    for what, data in {
        "one length twice": post(b"Content-Length: 4\r\nContent-Length: 4\r\n", b"abcd"),
        "a chunked body": post(CHUNKED, b"4\r\nabcd\r\n0\r\n\r\n"),
        "lines of LF alone": b"POST /v1/accounts HTTP/1.1\nHost: x\nContent-Length: 4\n\nabcd",
        "an upgrade to h2c": b"GET /v1/account HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n",
    }.items():
        got, _ = asked(running, data + INNER)
        assert [body == b"live\n" for _, _, body in got] == [False, True] and got[0][0] in (400, 401), f"{what}: {got}"
    return len(cases)


def rapid_reset():
    """Streams that are opened and reset at once (CVE-2023-44487)."""
    frames = b"\0\0\0\4\0\0\0\0\0"
    for stream in range(1, 400, 2):
        headers = b"\x82\x84\x86\x41\x01x"
        frames += len(headers).to_bytes(3) + b"\x01\x05" + stream.to_bytes(4) + headers
        frames += b"\0\0\4\3\0" + stream.to_bytes(4) + b"\0\0\0\x08"
    return frames


# ---------------------------------------------------------------- requests

CANARY = "canary-48c1"


def odd_requests(running):
    """Methods, targets and headers that nobody needs: a definite answer, nothing echoed where it could harm."""
    token = running.token("alice")

    def line(target, method="GET", more=""):
        head = f"{method} {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {token}\r\n{more}\r\n"
        return head.encode("latin1")

    wanted = {}
    for method in ("TRACE", "TRACK", "CONNECT", "PATCH", "PROPFIND", "get", "X" * 100):
        for target in ("/livez", "/v1/account", "/v1/sessions", "/admin/v1/users"):
            wanted[line(target, method, f"X-Canary: {CANARY}\r\n")] = (401, 404, 405)
    for target in ("evil.example:443", "127.0.0.1:22"):
        wanted[line(target, "CONNECT")] = (400, 404, 405)
    wanted[line("*", "OPTIONS")] = (200, 400, 404, 405)
    for target in ("http://evil.example/", "http://169.254.169.254/latest/meta-data", "http://evil.example/secret"):
        # The absolute form is of this server whatever host it names: it asks nobody else.
        wanted[line(target)] = (200, 404)
    dots = ("/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/..%2f..%2fetc%2fpasswd", "/%252e%252e/etc/passwd", "/..\\..\\x")
    dots += ("/v1/../admin/v1/users", "/v1/%2e%2e/admin/v1/users", "//admin/v1/users", "/./livez", "/livez/", "/livez/..", "/livez;x=1")
    dots += ("/LIVEZ", "/livez%00", "/livez%2f", "/v1%2faccount", "/.git/config", "/admin/v1/users/..%2f..%2f", "/admin/v1%2fusers")
    for target in dots:
        # 403: who is known and no administrator.
        wanted[line(target)] = (400, 401, 403, 404)
    for word in ("%2e%2e", "..", "%2f", "1%2f..%2fx", "%00", "1%00", "%ff%fe", "%c0%af", "%", "%zz", "%u0031", "+1", "01", "1.0", "1e3", "0x1", "٣".encode().decode("latin1")):
        wanted[line(f"/v1/channels/{word}")] = (400, 404)
        wanted[line(f"/v1/channels/{word}/messages")] = (400, 404)
        wanted[line(f"/v1/devices/{word}", "DELETE")] = (400, 404)
    for query in ("limit=%ff", "limit=-1", "limit=1e9", "limit=", "limit=1&limit=2", "before=%00", "before=9" + "9" * 400, "x" * 4000, "limit=1%0d%0aX-Injected:1"):
        wanted[line(f"/v1/channels/1/messages?{query}")] = (400, 403, 404)
    for raw in (b"GET /livez\0 HTTP/1.1", b"GET /\xff\xfe HTTP/1.1", b"GET /\xe2\x82 HTTP/1.1", b"GET /a b HTTP/1.1", b"G\0T / HTTP/1.1", b"GET  / HTTP/1.1"):
        wanted[raw + b"\r\nHost: x\r\nConnection: close\r\n\r\n"] = (400, 404)
    # Injection where a value might come back in a header or a page.
    inject = "%0d%0aX-Injected:%20yes%0d%0a%0d%0a<script>alert(1)</script>"
    for target in (f"/{inject}", f"/v1/channels/{inject}", f"/v1/channels/1/messages?before={inject}", f"/admin/v1/users/{inject}"):
        wanted[line(target, more=f"Origin: http://{inject}\r\n")] = (400, 401, 403, 404)
    wanted[line("/livez", more="Origin: http://127.0.0.1\x01\r\n")] = (200, 400)
    # Headers: too many, too long, not UTF-8.
    wanted[line("/livez", more="".join(f"X-{n}: 1\r\n" for n in range(120)))] = (431,)
    for size in (17_000, 70_000):
        wanted[line("/livez", more=f"X-Long: {'x' * size}\r\n")] = (431,)
        wanted[line("/" + "x" * size)] = (414, 431)
    wanted[line("/livez", more="X-" + "n" * 17_000 + ": 1\r\n")] = (431,)
    bad = f"GET /v1/account HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer \xff\xfe{token}\r\n\r\n"
    wanted[bad.encode("latin1")] = (400, 401)
    wanted[f"GET /v1/account HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {'x' * 5000}\r\n\r\n".encode()] = (401,)
    for data, statuses in wanted.items():
        got, closed = asked(running, data, wait=2)
        assert closed and len(got) == 1, f"{data[:80]!r}: {got}, closed: {closed}"
        status, headers, body = got[0]
        assert status in statuses, f"{data[:90]!r}: {status}, not of {statuses}"
        assert "x-injected" not in headers and CANARY.encode() not in body and b"root:" not in body, data[:80]
        if status >= 400 and "content-type" in headers:
            assert headers["content-type"].startswith(("application/problem+json", "text/plain")), headers
            assert headers.get("x-content-type-options") == "nosniff", f"{data[:80]!r}: {headers}"
    return len(wanted)


def odd_bodies(running):
    """Bodies that are too large, too deep, ambiguous or of another kind."""
    url = running.server.http
    api, token = Http(url, STRANGER), running.token("alice")
    host = api.host

    def large(size, in_chunks):
        """The status; None where the server closed while it was still being sent, so that its answer was lost."""
        connection = http.client.HTTPConnection(host, timeout=20, source_address=(STRANGER, 0))
        pieces = [b"x" * 65_536] * (size // 65_536) + [b"x" * (size % 65_536)]
        headers = {"Transfer-Encoding": "chunked"} if in_chunks else {"Content-Length": str(size)}
        try:
            connection.request("POST", "/v1/sessions", iter(pieces), headers, encode_chunked=in_chunks)
        except (BrokenPipeError, ConnectionResetError):
            pass
        try:
            return connection.getresponse().status
        except (ConnectionError, http.client.BadStatusLine):
            return None

    for size in (MIB + 1, 4 * MIB):
        for in_chunks in (False, True):
            assert large(size, in_chunks) in (413, None), f"{size} bytes, in chunks: {in_chunks}"
    assert large(MIB, True) == large(MIB, False) == 400
    # A length that never comes is not waited for, nor is room made for it.
    raw = Raw(running)
    raw.send(post(b"Content-Length: 1099511627776\r\n", b"x"))
    out, _ = raw.rest(SLOW_S_MAX + BUSY_S)
    assert answers(out)[0][0] in (408, 413), out[:200]
    raw.close()

    for kind in ("text/plain", "application/xml", "multipart/form-data; boundary=x", "application/x-www-form-urlencoded", "application/json; charset=utf-16", "", "a" * 1000):
        status, _, _ = api.ask("POST", "/v1/sessions", b"name=a&password=b", **{"Content-Type": kind})
        assert status == 400, f"{kind[:40]}: {status}"
    for coding in ("gzip", "deflate", "br", "zstd"):
        status, _, _ = api.ask("POST", "/v1/sessions", b"\x1f\x8b\x08" + bytes(100), **{"Content-Encoding": coding})
        assert status == 400, f"{coding}: {status}"
    good = '"name": "a", "password": "correct horse", "device": "5"'
    bodies = {
        "nested 100,000 deep": "[" * 100_000,
        "objects nested 100,000 deep": '{"name":' * 100_000,
        "a deep field that is not known": '{"more":' + "[" * 500_000,
        "a key twice": '{"name": "b", ' + good + "}",
        "a key twice in escapes": '{"\\u006eame": "b", ' + good + "}",
        "a huge number": good.replace('"5"', "1" * 400_000),
        "a huge exponent": good.replace('"5"', "1e999999999"),
        "a number for a text": good.replace('"5"', "5"),
        "half a surrogate": '{"name": "\\ud800", "password": "correct horse", "device": "5"}',
        "NaN": '{"name": NaN}',
        "a byte order mark": "\ufeff{" + good + "}",
        "a comment": "{/**/" + good + "}",
        "a comma too many": "{" + good + ",}",
        "two values": "{" + good + "}{" + good + "}",
        "a prototype": '{"__proto__": {}, ' + good + "}",
        "a NUL behind": "{" + good + "}\0",
        "300,000 keys": "{" + ",".join(f'"k{n}":1' for n in range(90_000)) + "}",
    }
    for what, body in bodies.items():
        body = body if body[0] in '{[\ufeff' else "{" + body + "}"
        began = time.monotonic()
        status, _, answer = api.ask("POST", "/v1/sessions", body.encode())
        assert status == 400 and answer["number"] in (1004, 1006), f"{what}: {status} {str(answer)[:200]}"
        assert len(json.dumps(answer)) < 4096, f"{what}: {len(json.dumps(answer))} bytes of an answer"
        assert time.monotonic() - began < 3, what
    for wish in ({"name": "x" * 257}, {"name": "g", "members": ["x"] * 100_000}, {"name": "g", "members": ["1" * 1000] * 500}, {"name": "a\0b\r\nX-Injected: 1"}):
        status, headers, _ = api.ask("POST", "/v1/channels", wish, token)
        assert status in (201, 400, 404) and "x-injected" not in headers, f"{str(wish)[:60]}: {status}"
    return len(bodies)


# ---------------------------------------------------------------- slow clients


async def slow_ones(running):
    """Each kind of slow client is cut in time: nothing, half a head, dripping heads and bodies, an answer not read."""
    longest = SLOW_S_MAX + BUSY_S

    async def cut(what, first, drip=b"", every=1.0):
        raw = Raw(running, SLOW)
        began = time.monotonic()

        def run():
            raw.send(first)
            out = b""
            while time.monotonic() - began < longest:
                some, closed = raw.rest(every)
                out += some
                if closed:
                    return time.monotonic() - began
                raw.send(drip)
            raise AssertionError(f"{what}: still open after {longest} s: {out[:100]}")

        took = await asyncio.to_thread(run)
        raw.close()
        return what, took

    async def not_read(what, path, times):
        """Asks for far more than the kernels hold and takes nothing; later takes what there is, which must not be all."""
        raw = Raw(running, SLOW, receive_bytes=4096)
        request = f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
        raw.socket.setblocking(False)
        left, began = request * times, time.monotonic()
        while time.monotonic() - began < longest:
            try:
                left = left[raw.socket.send(left) :] if left else left
            except BlockingIOError:
                pass
            except (BrokenPipeError, ConnectionResetError):
                raw.close()
                return what, time.monotonic() - began
            await asyncio.sleep(0.2)
        out, closed = await asyncio.to_thread(raw.rest, 5)
        raw.close()
        served = out.count(b"HTTP/1.1 200")
        assert closed and served < times, f"{what}: {served} of {times} answers waited for {longest} s"
        return what, longest

    head = b"POST /v1/sessions HTTP/1.1\r\nHost: x\r\n"
    seen = await asyncio.gather(
        cut("nothing", b""),
        cut("half a head", b"GET /livez HTTP/1.1\r\nHost"),
        cut("a dripping head", b"GET /livez HTTP/1.1\r\n", b"X-A: b\r\n"),
        cut("idle behind an answer", b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"),
        cut("idle behind an answer, then half a head", b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\nGET /livez"),
        cut("a dripping body", head + b"Content-Length: 100000\r\n\r\n", b"x"),
        cut("a dripping chunked body", head + CHUNKED + b"\r\n", b"1\r\nx\r\n"),
        cut("dripping trailers", head + CHUNKED + b"\r\n0\r\n", b"X-T: a\r\n"),
        cut("empty lines", b"", b"\r\n"),
        not_read("an answer that is not read", "/openapi.json", 2_000),
    )
    for what, took in seen:
        print(f"  {what}: cut after {took:.1f} s", flush=True)


def crowd(running):
    """One address that holds hundreds of connections has but its share of them; another one is served meanwhile."""
    calm, held = Http(running.server.http, CALM), []
    for _ in range(CROWD):
        raw = Raw(running, SLOW)
        raw.send(b"GET /livez HTTP/1.1\r\nHost")
        held.append(raw)
    began = time.monotonic()
    assert calm.good("GET", "/livez") == b"live\n"
    took = time.monotonic() - began
    refused = sum(raw.rest(0.001)[1] for raw in held)
    for raw in held:
        raw.close()
    assert took < 1, f"another address waited {took:.1f} s"
    assert refused >= CROWD - PER_ADDRESS, f"only {refused} of {CROWD} connections were refused"


def all_places(running):
    """Few addresses that hold all places: while they are idle others are served, and while they are not, commands are."""
    own, calm = Http(running.server.http, OWN), Http(running.server.http, CALM)
    idle = b"GET /livez HTTP/1.1\r\nHost"
    busy = b"POST /v1/sessions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nx"
    for what, said in (("idle", idle), ("busy", busy)):
        held = []
        for number in range(CONNECTIONS):
            raw = Raw(running, f"127.0.9.{1 + number // PER_ADDRESS}")
            raw.send(said)
            held.append(raw)
        time.sleep(0.3)
        for api in (own, calm) if what == "idle" else (own,):
            began = time.monotonic()
            assert api.good("GET", "/livez") == b"live\n"
            took = time.monotonic() - began
            assert took < 1, f"{what}: {api.source} waited {took:.1f} s"
        if what == "busy":
            try:
                status = calm.ask("GET", "/livez")[0]
            except (ConnectionError, http.client.BadStatusLine):
                status = None
            assert status is None, "nobody holds all places, so this looked at nothing"
        time.sleep(0.5)
        ended = sum(raw.rest(0.001)[1] for raw in held)
        for raw in held:
            raw.close()
        # One more for each that was served: those that were idle longest made room.
        assert KEPT_FREE <= ended <= KEPT_FREE + 8, f"{what}: {ended} of {CONNECTIONS} were closed"
        until = time.monotonic() + 10
        while True:
            try:
                assert calm.good("GET", "/livez") == b"live\n"
                break
            except (ConnectionError, http.client.BadStatusLine):
                assert time.monotonic() < until, "places are not given back"
                time.sleep(0.1)


MODES = {
    "slow headers": ["-H", "-u", "/livez", "-i", "2"],
    "slow body": ["-B", "-u", "/v1/sessions", "-i", "2", "-s", "8192"],
    "range": ["-R", "-u", "/openapi.json", "-a", "5", "-b", "2000", "-t", "HEAD"],
    "slow read": ["-X", "-u", "/openapi.json", "-k", "10", "-w", "16", "-y", "64", "-n", "2", "-z", "16"],
}


async def again_and_again(command):
    """It ends when all of its connections were closed: then it is started anew, until the time is over."""
    until = time.monotonic() + SLOW_S
    while (left := until - time.monotonic()) > 1:
        process = await asyncio.create_subprocess_exec(
            *command, "-l", str(int(left)), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        said = (await process.communicate())[0].decode(errors="replace")
        assert "connected:" in said, f"slowhttptest did not run: {command}\n{said[-1000:]}"


async def slow_crowds(running):
    """slowhttptest's four modes from one address with more connections than it may have; others are served."""
    assert shutil.which("slowhttptest"), "slowhttptest is not installed"
    token, host = running.token("alice"), running.server.http.removeprefix("http://")
    paths = ["/v1/channels", "/livez"]
    before = await latency.gets(host, paths, token, CALM, 4)
    for mode, (flag, _, path, *more) in MODES.items():
        command = ["slowhttptest", flag, "-u", running.server.http + path, *more]
        command += ["-c", str(SLOW_CLIENTS), "-r", "200", "-p", "2"]
        attack = asyncio.create_task(again_and_again(command))
        await asyncio.sleep(1)
        during = await latency.gets(host, paths, token, CALM, SLOW_S - 3)
        await attack
        for after, first in zip(during, before, strict=True):
            print(f"  {mode}: {after.beside(first)}", flush=True)


def wanted(part):
    """All, or those named on the command line."""
    return not sys.argv[1:] or part.__name__ in sys.argv[1:]


async def main():
    raise_file_limit()
    with RunningServer(os.environ["FANFARE"], "--limits", "load") as running:
        calm = Http(running.server.http, CALM)
        calm.good("GET", "/livez")
        files, rss = running.open_files(), running.rss_bytes()
        for part in filter(wanted, (smuggling, odd_requests, odd_bodies, crowd, all_places, slow_ones, slow_crowds)):
            began = time.monotonic()
            done = await part(running) if asyncio.iscoroutinefunction(part) else await asyncio.to_thread(part, running)
            assert calm.good("GET", "/livez") == b"live\n"
            said = f", {done} cases" if done else ""
            print(f"  {part.__name__}: ok{said} ({time.monotonic() - began:.1f} s)", flush=True)
        until = time.monotonic() + SLOW_S_MAX + BUSY_S
        while running.open_files() > files + 4:
            assert time.monotonic() < until, f"{running.open_files() - files} files are left open"
            await asyncio.sleep(0.2)
        grown = running.rss_bytes() - rss
        print(f"  memory: grown by {grown // MIB} MiB", flush=True)
        assert grown < GROWTH_BYTES_MAX, grown
    print("HTTP attacks: ok")


if __name__ == "__main__":
    asyncio.run(main())
