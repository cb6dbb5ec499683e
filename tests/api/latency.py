"""How long the requests of somebody who does no harm take while others do."""

import asyncio
import http.client
import statistics
import time

# What no request may take: the server is there for others all the time.
SECONDS_MAX = 5


class Samples:
    """Seconds of requests that all ended well."""

    def __init__(self, what):
        self.what, self.seconds = what, []

    def at(self, percent):
        ordered = sorted(self.seconds)
        return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]

    def __str__(self):
        p50, p99 = statistics.median(self.seconds) * 1000, self.at(99) * 1000
        return f"{self.what} p50 {p50:.1f} ms, p99 {p99:.1f} ms ({len(self.seconds)})"

    def beside(self, before):
        """One line: how much worse than `before`."""
        return f"{self}; before: p50 {statistics.median(before.seconds) * 1000:.1f} ms, p99 {before.at(99) * 1000:.1f} ms, p99 x{self.at(99) / before.at(99):.1f}"


def get(host, path, token, source, seconds):
    """Asks again and again, a connection each time, as programs that poll do; every answer is 200."""
    samples = Samples(f"GET {path}")
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        began = time.monotonic()
        connection = http.client.HTTPConnection(host, timeout=SECONDS_MAX, source_address=(source, 0))
        connection.request("GET", path, headers={"Authorization": f"Bearer {token}"})
        response = connection.getresponse()
        response.read()
        assert response.status == 200, f"{path}: {response.status}"
        connection.close()
        samples.seconds.append(time.monotonic() - began)
        time.sleep(0.02)
    return samples


async def gets(host, paths, token, source, seconds):
    return await asyncio.gather(*(asyncio.to_thread(get, host, path, token, source, seconds) for path in paths))


async def sends(session, channel, seconds):
    """From SEND to SEND_ACK."""
    samples = Samples(f"send over {session.link.kind}")
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        began = time.monotonic()
        ack = await session.say(channel, "still there?")
        assert ack["seq"]
        samples.seconds.append(time.monotonic() - began)
        await asyncio.sleep(0.02)
    return samples
