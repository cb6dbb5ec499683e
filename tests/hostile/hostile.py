"""Hostile peers against the real binary. See `run`."""

import asyncio
import os
import sys
import time
import traceback

import web
import quic
from chat import Chat
from fanfare import Device, Session
from running import RunningServer, raise_file_limit

# What a server may hold more than before once all hostile peers are gone: allocator's slack, not connections.
GROWTH_BYTES_MAX = 64 << 20
FILES_MORE_MAX = 4


async def settled(running, files, what):
    """Waits until no connection is left over, then holds memory against what it was."""
    deadline = time.monotonic() + 20
    while running.open_files() > files + FILES_MORE_MAX:
        assert time.monotonic() < deadline, f"{running.open_files() - files} files more are open after {what}"
        await asyncio.sleep(0.2)


async def warm(running):
    """One session over each transport, so that what is made once is made."""
    for kind in ("ws", "quic"):
        session = await Session.open(
            running.server, Device("warm"), kind, token=running.token("dave"), delivery="TIERED"
        )
        await session.sync()
        await session.close()


async def frames(running):
    """Every cut and flip of the golden vectors, by the program beside this one."""
    program = await asyncio.create_subprocess_exec(
        os.environ["HOSTILE_FRAMES"], f"{running.server.host}:{running.server.port}", "--token", running.token("carol")
    )
    assert await program.wait() == 0, "frames that were answered wrongly"


def wanted(parts):
    """All, or those named on the command line."""
    return [part for part in parts if not sys.argv[1:] or part.__name__ in sys.argv[1:]]


async def with_chat(running, pause, parts):
    await warm(running)
    async with Chat(running, pause):
        files, rss = running.open_files(), running.rss_bytes()
        for part in parts:
            began = time.monotonic()
            await part(running)
            name = f"{part.__module__}.{part.__name__}".removeprefix("__main__.")
            print(f"  {name}: ok ({time.monotonic() - began:.1f} s)", flush=True)
        await settled(running, files, "hostile peers")
        grown = running.rss_bytes() - rss
    print(f"  memory: {rss >> 20} MiB, grown by {grown >> 20} MiB", flush=True)
    assert grown < GROWTH_BYTES_MAX, f"the server grew by {grown} bytes"


async def main():
    raise_file_limit()
    began = time.monotonic()
    binary = os.environ["FANFARE"]
    for name, options, pause, parts in (
        (
            "people",
            [],
            1.0,
            [
                web.upgrades,
                web.broken_frames,
                web.floods,
                quic.datagrams,
                quic.half_open,
                quic.streams,
                web.silent,
                web.too_many,
            ],
        ),
        ("load tests", ["--limits", "load"], 0.1, [frames, quic.slow_readers]),
    ):
        if parts := wanted(parts):
            print(f"hostile: limits for {name}", flush=True)
            with RunningServer(binary, *options) as running:
                await with_chat(running, pause, parts)
    print(f"hostile: ok in {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except Exception:  # noqa: BLE001 - the end of the program
        traceback.print_exc()
        raise SystemExit("hostile: failed") from None
