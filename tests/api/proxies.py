"""Behind a reverse proxy: limits go by the address that the proxy names, and nobody else's word counts. See `run`."""

import os

from http_client import Http
from running import RunningServer

RATE_LIMITED, ADMIN_REFUSED, LOGIN_REFUSED = 4001, 2012, 2013
PROXIES, PROXY, SECOND, STRANGER = "127.0.5.0/24", "127.0.5.1", "127.0.5.2", "127.0.4.1"
# Sign-ins of one address at once, and connections that it may have.
TRIES, PER_ADDRESS = 5, 128


class Asker:
    """Signs in with names that nobody has, so that only what the address may counts."""

    def __init__(self, running, source):
        self.api, self.names = Http(running.server.http, source), 0

    def limited(self, *hops):
        """Whether one more try is refused for its address."""
        self.names += 1
        headers = {"X-Forwarded-For": ", ".join(hops)} if hops else {}
        name = f"nobody-{self.api.source[0].replace('.', '-')}-{self.names}"
        wish = {"name": name, "password": "correct horse", "device": "5"}
        status, _, answer = self.api.ask("POST", "/v1/sessions", wish, **headers)
        assert answer["number"] in (LOGIN_REFUSED, RATE_LIMITED), (status, answer)
        return answer["number"] == RATE_LIMITED

    def use_up(self, *hops):
        refused = [self.limited(*hops) for _ in range(2 * TRIES)]
        assert refused[:TRIES] == [False] * TRIES and any(refused), (hops, refused)


def limits(running):
    proxy, stranger = Asker(running, PROXY), Asker(running, STRANGER)
    proxy.use_up("198.51.100.1")
    assert not proxy.limited("198.51.100.2"), "another client of the proxy pays for the first"
    # Whatever the client says itself stands before what the proxy adds, and counts for nothing.
    said = [proxy.limited(f"198.51.100.{number}", "198.51.100.1") for number in range(10, 10 + TRIES)]
    assert sum(said) >= TRIES - 1, said
    # Through two proxies; the second one is asked from elsewhere.
    said = [Asker(running, SECOND).limited("198.51.100.1", PROXY) for _ in range(TRIES)]
    assert sum(said) >= TRIES - 1, said
    # What does not read is the proxy's own.
    proxy.use_up("rubbish")
    assert proxy.limited() and proxy.limited("198.51.100.77, rubbish") and proxy.limited("")
    # Who is no proxy is believed nothing.
    refused = [stranger.limited(f"203.0.113.{number}") for number in range(2 * TRIES)]
    assert refused[:TRIES] == [False] * TRIES and any(refused), refused


def requests(running):
    """The rate of requests goes by the client, too."""
    proxy = Http(running.server.http, PROXY)
    left = [int(proxy.ask("GET", "/v1/setup", **{"X-Forwarded-For": hop})[1]["ratelimit-remaining"]) for hop in ("192.0.2.1", "192.0.2.1", "192.0.2.2")]
    assert left[1] < left[0] == left[2], left


def looks(running):
    """Metrics and checks are for this machine, not for whom its proxy asks."""
    proxy, near = Http(running.server.http, PROXY), Http(running.server.http)
    token = running.admin["token"]
    for path in ("/metrics", "/readyz?verbose"):
        elsewhere = {"X-Forwarded-For": "198.51.100.9"}
        proxy.refused(401, ADMIN_REFUSED, "GET", path, **elsewhere)
        proxy.refused(403, ADMIN_REFUSED, "GET", path, token=running.token("alice"), **elsewhere)
        assert near.ask("GET", path)[0] == proxy.ask("GET", path, token=token, **elsewhere)[0] == 200
    assert proxy.ask("GET", "/readyz", **{"X-Forwarded-For": "198.51.100.9"})[2] == b"ready\n"


def connections(running):
    """A proxy's connections are many people's."""
    import http_attacks

    for source, wanted in ((PROXY, 2 * PER_ADDRESS), (STRANGER, PER_ADDRESS)):
        held = [http_attacks.Raw(running, source) for _ in range(2 * PER_ADDRESS)]
        for raw in held:
            raw.send(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        served = sum(b"live" in raw.rest(0.05)[0] for raw in held)
        for raw in held:
            raw.close()
        assert served == wanted, f"{source}: {served} of {len(held)} were served"


def main():
    os.environ["FANFARE__HTTP__PROXIES"] = PROXIES
    with RunningServer(os.environ["FANFARE"]) as running:
        for part in (limits, requests, looks, connections):
            part(running)
    print("behind a proxy: ok")


main()
