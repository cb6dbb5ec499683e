"""SIGTERM: readiness falls first and says why, every session is told to go elsewhere (GOAWAY), then closed with its number, and
what was accepted is there after the next start."""

import asyncio
import os
import signal
import time

from fanfare import Device, Session, SessionEnded
from http_client import Http
from running import RunningServer

GOING_AWAY, DRAIN_S = 5004, 15


async def main():
    with RunningServer(os.environ["FANFARE"], "--limits", "load") as running:
        api = Http(running.server.http)
        token = running.token("alice")
        status, _, said = api.ask("GET", "/readyz?verbose")
        assert status == 200 and said.endswith(b"ready\n"), said
        for check in (b"[+] lifecycle: ", b"[+] stores: ", b"[+] gateway: "):
            assert check in said, said
        sessions = []
        for kind in ("ws", "quic"):
            sessions.append(await Session.open(running.server, Device(kind), kind, token=token, delivery="TIERED"))
        channel = api.good("POST", "/v1/channels", {"name": "crabs"}, token)["channel"]
        sent = api.good("POST", f"/v1/channels/{channel}/messages", {"text": "before the stop"}, token)
        running.process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        for session in sessions:
            goaway = await session.frame("GOAWAY", seconds=DRAIN_S)
            assert goaway.body.get("delay_ms_max", 0) >= goaway.body.get("delay_ms_min", 0), goaway.body
        status, _, said = api.ask("GET", "/readyz")
        assert status == 503 and b"[-] lifecycle: draining" in said and said.endswith(b"not ready\n"), said
        assert b"[+]" not in said, "without ?verbose the failing checks alone"
        status, _, said = api.ask("GET", "/readyz?verbose")
        assert status == 503 and b"[-] lifecycle: draining" in said and b"[+] stores: " in said, said
        for session in sessions:
            try:
                await session.until(lambda: False, "CLOSE", DRAIN_S)
            except SessionEnded as ended:
                assert ended.error == GOING_AWAY, ended
            await session.stop()
        while running.process.poll() is None:
            assert time.monotonic() - began < DRAIN_S, "it did not end"
            await asyncio.sleep(0.05)
        assert running.process.returncode == 0, running.process.returncode
        running.start()
        api = Http(running.server.http)
        (message,) = api.good("GET", f"/v1/channels/{channel}/messages", token=running.token("alice"))["messages"]
        assert (message["seq"], message["text"]) == (sent["seq"], "before the stop"), message
    print("SIGTERM drains with a word to each session: ok", flush=True)


asyncio.run(main())
