"""Error numbers that no other test produces, each from outside, out of the real binary."""

import asyncio
import os
import socket
import sqlite3
from pathlib import Path

from fanfare import Device, Failed, Session, SessionEnded
from http_client import Http
from running import RunningServer

ORIGIN_REFUSED, DELIVERY_REFUSED, REGISTRATION_CLOSED = "FAN-A010", 2011, 2015
NO_CHANGE, LAST_OWNER, CHANNEL_FULL, CORRUPT = 3009, 3010, 3012, 5006
PASSWORD, LOGINS = "correct horse battery", 64


def people(api, *names):
    signed_in = []
    for name in names:
        api.good("POST", "/v1/accounts", {"name": name, "password": PASSWORD})
        signed_in.append(api.good("POST", "/v1/sessions", {"name": name, "password": PASSWORD, "device": "5"}))
    return signed_in


def origins(running, api):
    """A page of an origin that is not on the list: 403, counted under its number."""
    with socket.create_connection((running.server.host, running.server.port)) as stream:
        head = ["GET /v1/ws HTTP/1.1", "Host: a", "Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13"]
        head += ["Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Protocol: fanfare.v1", "Origin: https://evil.example"]
        stream.sendall("\r\n".join([*head, "", ""]).encode())
        assert b" 403 " in stream.recv(4096).splitlines()[0]
    metrics = api.ask("GET", "/metrics")[2].decode()
    assert f'fanfare_gateway_closes_total{{code="{ORIGIN_REFUSED}"}} 1' in metrics, metrics


async def delivery(running, api):
    (ann,) = people(api, "ann-full")
    device = Device("full")
    device.number = 5
    try:
        await Session.open(running.server, device, "ws", token=ann["token"], delivery="FULL")
    except SessionEnded as ended:
        assert ended.error == DELIVERY_REFUSED, ended
        return
    raise AssertionError("anybody gets full delivery")


def registration(binary):
    os.environ["FANFARE__ACCOUNTS__REGISTRATION"] = "closed"
    try:
        with RunningServer(binary) as running:
            api = Http(running.server.http)
            api.refused(403, REGISTRATION_CLOSED, "POST", "/v1/accounts", {"name": "ann", "password": PASSWORD})
            assert api.good("GET", "/v1/setup")["registration_open"] is False
    finally:
        del os.environ["FANFARE__ACCOUNTS__REGISTRATION"]


def memberships(api):
    ann, bob = people(api, "ann-group", "bob-group")
    group = api.good("POST", "/v1/channels", {"name": "crabs"}, ann["token"])["channel"]
    path = f"/v1/channels/{group}/members"
    api.good("POST", path, {"users": [bob["user"]]}, ann["token"])
    api.refused(409, NO_CHANGE, "POST", path, {"users": [bob["user"]]}, ann["token"])
    api.refused(400, LAST_OWNER, "DELETE", f"{path}/{ann['user']}", token=ann["token"])


def devices(api):
    people(api, "ann-devices")
    for number in range(LOGINS + 1):
        wish = {"name": "ann-devices", "password": PASSWORD, "device": str(number + 100)}
        if number < LOGINS - 1:
            api.good("POST", "/v1/sessions", wish)
    api.refused(400, CHANNEL_FULL, "POST", "/v1/sessions", wish)


async def corrupt(running, api):
    """An entry whose stored hash does not fit its bytes is neither served nor amended."""
    (ann,) = people(api, "ann-corrupt")
    group = api.good("POST", "/v1/channels", {"name": "crabs"}, ann["token"])["channel"]
    sent = api.good("POST", f"/v1/channels/{group}/messages", {"text": "whole"}, ann["token"])
    # After a restart the newest alone are in memory.
    for number in range(300):
        api.good("POST", f"/v1/channels/{group}/messages", {"text": f"{number}"}, ann["token"])
    with sqlite3.connect(Path(running.data) / "meta.db", timeout=10) as database:
        changed = database.execute("UPDATE entries SET hash = zeroblob(32) WHERE message_id = ?", (int(sent["message"]),))
        assert changed.rowcount == 1
    database.close()
    running.restart()
    device = Device("corrupt")
    device.number = 5
    session = await Session.open(running.server, device, "ws", token=ann["token"], delivery="TIERED")
    await session.sync()
    try:
        await session.send(int(group), edit={"target": sent["seq"], "message": {"text": "better"}})
    except Failed as failed:
        assert failed.code == CORRUPT, failed
        return
    finally:
        await session.close()
    raise AssertionError("an entry that is not what was committed was edited")


async def main():
    binary = os.environ["FANFARE"]
    with RunningServer(binary, "--limits", "load") as running:
        api = Http(running.server.http)
        origins(running, api)
        await delivery(running, api)
        memberships(api)
        devices(api)
        await corrupt(running, api)
    registration(binary)
    print("numbers that nothing else produces: ok")


asyncio.run(main())
