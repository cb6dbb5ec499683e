"""Attacks on signing in: guessing who is there, guessing passwords, locking others out, odd passwords, and a flood that
is to eat the memory and the cores. See `run`."""

import asyncio
import json
import os
import random
import statistics
import sys
import time

import latency
from fanfare import Device, Session
from http_client import Http
from running import RunningServer, raise_file_limit

LOGIN_REFUSED, PASSWORD_LENGTH, RATE_LIMITED, RETRY_LATER, BODY_TOO_LARGE = 2013, 3015, 4001, 5001, 4002
PASSWORD = "correct horse battery"
WRONG = "wrong horse battery"
MIB = 1 << 20
# Rounds of interleaved tries of each kind, and how far medians may lie apart: a hash that is left out is 40 ms and more of
# 50. What a busy machine adds hits one kind in one round and another in the next; what the server adds hits one in each:
# it shows in the median of the rounds, each of which is compared with itself alone.
ROUNDS, ROUNDS_MAX, TRIES, APART = 5, 15, 10, 0.25
# Of one hash; and what beside hashes a flood may hold: buffers of its connections, the allocator's slack.
HASH_BYTES, SLACK_BYTES = 46 * MIB, 128 * MIB
FLOODERS, FLOOD_S, QUIET_S, FLOOD_ROUNDS = 150, 8, 5, 3
# Refused without a hash: a flood of it costs the machine everything that a flood costs but the hashes.
NO_PASSWORD = "short"
# Beyond this the others were as good as shut out.
RATIO_MAX = 20


def sign_in(api, name, password=PASSWORD, device="5"):
    return api.ask("POST", "/v1/sessions", {"name": name, "password": password, "device": device})


def enumeration(running):
    """Nobody learns from an answer, or from how long it takes, whether a name is there."""
    api = Http(running.server.http)
    for name in ("there", "shut-out"):
        api.good("POST", "/v1/accounts", {"name": name, "password": PASSWORD})
    running.run("user", "disable", "shut-out")
    running.run("user", "add", "no-password")
    kinds = {
        "a wrong password": ("there", WRONG),
        "an unknown name": ("nobody", WRONG),
        "a disabled account, the right password": ("shut-out", PASSWORD),
        "an account without a password": ("no-password", WRONG),
    }
    answers, rounds = {}, []
    # What a machine does besides passes with further rounds, what tells kinds apart does not.
    while len(rounds) < ROUNDS_MAX:
        seconds = {kind: [] for kind in kinds}
        for _ in range(TRIES):
            # In another order each time: none is always behind the same one.
            for kind in random.sample(list(kinds), len(kinds)):
                name, password = kinds[kind]
                began = time.monotonic()
                status, headers, answer = sign_in(api, name, password)
                seconds[kind].append(time.monotonic() - began)
                shown = {key: value for key, value in headers.items() if key not in ("date", "ratelimit-remaining")}
                answers.setdefault(json.dumps([status, shown, answer]), []).append(kind)
        medians = {kind: statistics.median(taken) for kind, taken in seconds.items()}
        among = statistics.median(medians.values())
        rounds.append({kind: taken / among for kind, taken in medians.items()})
        shares = {kind: statistics.median(of[kind] for of in rounds) for kind in kinds}
        apart = max(shares.values()) / min(shares.values()) - 1
        if len(rounds) >= ROUNDS and apart <= APART:
            break
    assert len(answers) == 1, f"answers differ: {answers}"
    assert json.loads(next(iter(answers)))[0] == 401
    print(f"  {len(rounds)} rounds: " + ", ".join(f"{kind} {share:.0%}" for kind, share in shares.items()), flush=True)
    assert apart <= APART, f"medians lie {apart:.0%} apart: {rounds}"
    # The same with names and passwords that cannot be anybody's.
    for name in ("", " ", "x" * 10_000, "there\0", "there ", "THERE", "\u202ethere", "'; DROP TABLE users; --", "1"):
        status, _, answer = sign_in(api, name, WRONG)
        assert (status, answer["number"]) == (401, LOGIN_REFUSED), f"{name[:20]!r}: {status} {answer}"


def passwords(running):
    """8 characters to 256 bytes, every byte of them counts."""
    api = Http(running.server.http)
    good = {
        "8 bytes": "12345678",
        "256 bytes": "x" * 256,
        "8 characters, 32 bytes": "\U0001f980" * 8,
        "256 bytes of 2 each": "é" * 128,
        "NUL inside": "before\0after",
        "NUL first": "\0" * 8,
        "lone combining marks": "\u0301" * 8,
        "right to left": "\u202e" + "drowssap",
        "spaces": " " * 8,
        "line ends": "a\r\nb\r\nc\r\n",
    }
    for number, (what, password) in enumerate(good.items()):
        name = f"pw-{number}"
        api.good("POST", "/v1/accounts", {"name": name, "password": password})
        assert sign_in(api, name, password)[0] == 201, f"{what}: not taken again"
        for other in {password[:-1] + "!", password[:-1], password + "!", password.strip(), password.split("\0")[0]}:
            if other != password:
                status, _, answer = sign_in(api, name, other)
                assert (status, answer["number"]) == (401, LOGIN_REFUSED), f"{what}: {other!r} let in"
    composed, apart = "caf\u00e9 caf\u00e9", "cafe\u0301 cafe\u0301"
    api.good("POST", "/v1/accounts", {"name": "pw-form", "password": composed})
    assert sign_in(api, "pw-form", apart)[0] == 401, "passwords are bytes: no form is taken for another"
    bad = {"": "nothing", "1234567": "7 bytes", "x" * 257: "257 bytes", "\U0001f980" * 7: "7 characters of 28 bytes"}
    bad |= {"é" * 129: "258 bytes", "x" * 1_000_000: "1 MB"}
    for password, what in bad.items():
        began = time.monotonic()
        api.refused(400, PASSWORD_LENGTH, "POST", "/v1/accounts", {"name": "pw-bad", "password": password})
        api.refused(401, LOGIN_REFUSED, "POST", "/v1/sessions", {"name": "pw-0", "password": password, "device": "5"})
        assert time.monotonic() - began < 3, what
    api.refused(413, BODY_TOO_LARGE, "POST", "/v1/sessions", {"name": "pw-0", "password": "x" * MIB, "device": "5"})
    token = sign_in(api, "pw-0", good["8 bytes"])[2]["token"]
    for password in bad:
        wish = {"old": good["8 bytes"], "new": password}
        api.refused(400, PASSWORD_LENGTH, "PUT", "/v1/account/password", wish, token)
    assert api.ask("GET", "/v1/account", token=token)[0] == 200, "refused, and signed out all the same"


def long_names(running):
    """What is remembered of a try does not grow with the name that was tried."""
    api = Http(running.server.http)
    sign_in(api, "x" * 1_000_000, "short")
    before = running.rss_bytes()
    for number in range(200):
        status, _, answer = sign_in(api, f"{number}" + "x" * 1_000_000, "short")
        assert (status, answer["number"]) == (401, LOGIN_REFUSED), answer
    grown = running.rss_bytes() - before
    print(f"  200 tries of names of 1 MB: grown by {grown // MIB} MiB", flush=True)
    assert grown < SLACK_BYTES, f"{grown // MIB} MiB are kept of 200 names"


def stuffing(running):
    """5 tries per 20 s and address, 10 per 15 min and account: then 429, and when to come again."""
    url = running.server.http
    Http(url, "127.0.1.1").good("POST", "/v1/accounts", {"name": "owner", "password": PASSWORD})
    device = Device("owner")
    signed_in = Http(url, "127.0.1.1").good(
        "POST", "/v1/sessions", {"name": "owner", "password": PASSWORD, "device": str(device.number)}
    )

    one = Http(url, "127.0.2.1")
    answers = [sign_in(one, f"guess-{number}", WRONG) for number in range(12)]
    taken = [status for status, _, _ in answers].count(401)
    # One more each 4 s; hashes take their time on a busy machine.
    assert 5 <= taken <= 8, f"{taken} of 12 from one address were tried"
    limited(answers, 20)
    # Every route that checks a password or makes an account counts.
    answers = [one.ask("POST", "/v1/accounts", {"name": f"new-{n}", "password": PASSWORD}) for n in range(6)]
    assert [status for status, _, _ in answers].count(429) >= 4, "sign-ups from that address went on"
    limited(answers, 20)

    for name in ("owner", "nobody"):
        answers = [sign_in(Http(url, f"127.0.3.{number}"), name, WRONG) for number in range(1, 15)]
        # The owner has signed in once.
        wanted = 9 if name == "owner" else 10
        taken = [status for status, _, _ in answers].count(401)
        assert taken == wanted, f"{taken}, not {wanted}, tries for {name} from as many addresses"
        limited(answers, 90)
    return device, signed_in


def limited(answers, seconds_max):
    for status, headers, answer in answers:
        if status == 429:
            assert answer["number"] == RATE_LIMITED, answer
            assert 1 <= int(headers["retry-after"]) <= seconds_max, headers["retry-after"]


async def lock_out(running, device, signed_in):
    """While others hammer the account its owner goes on: live, by HTTP, by refresh; and signs in anew on a device that
    the account knows. See "Guessing" in docs/how-to/issue-tokens.md."""
    url = running.server.http
    api = Http(url, "127.0.4.1")
    live = await Session.open(running.server, device, "ws", token=signed_in["token"], delivery="TIERED")
    await live.sync()
    assert sign_in(api, "owner", PASSWORD, "77")[0] == 429, "a strange device waits, whatever it knows"
    assert api.ask("GET", "/v1/account", token=signed_in["token"])[0] == 200
    again = api.good("POST", "/v1/sessions/refresh", {"refresh_token": signed_in["refresh_token"]})
    assert sign_in(api, "owner", PASSWORD, str(device.number))[0] == 201, "locked out of its own device by others"
    changed = api.ask("PUT", "/v1/account/password", {"old": PASSWORD, "new": PASSWORD + "!"}, again["token"])
    assert changed[0] == 200, f"it cannot change its password while others guess it: {changed}"
    assert sign_in(api, "owner", PASSWORD + "!", str(device.number))[0] == 201
    # A device that is known has tries, not all of them.
    number = str(device.number)
    answers = [sign_in(Http(url, f"127.0.5.{n}"), "owner", WRONG, number) for n in range(1, 15)]
    assert [status for status, _, _ in answers].count(429) >= 4, "guesses in a known device's name are not slowed down"
    limited(answers, 90)
    await live.stop()


# ---------------------------------------------------------------- the flood


async def flooder(address, number, password, until, counts):
    """Signs in again and again, from its own address, under names that are not there."""
    host, port = address
    source = f"127.1.{number // 250}.{number % 250 + 1}"
    tries = 0
    while time.monotonic() < until:
        tries += 1
        body = json.dumps({"name": f"flood-{number}-{tries}", "password": password, "device": "5"}).encode()
        head = f"POST /v1/sessions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
        try:
            reader, writer = await asyncio.open_connection(host, port, local_addr=(source, 0))
            writer.write(head.encode() + body)
            answer = await asyncio.wait_for(reader.read(), 30)
            writer.close()
            status = answer[9:12].decode()
            if status == "503":
                assert f'"number":{RETRY_LATER}'.encode() in answer, answer
        except (OSError, TimeoutError) as error:
            status = type(error).__name__
        counts[status] = counts.get(status, 0) + 1
        await asyncio.sleep(0.2)


async def flood_alone(host, port, password):
    """In a process of its own, so that its clients do not slow down the one that measures."""
    os.nice(10)
    raise_file_limit()
    counts, until = {}, time.monotonic() + FLOOD_S
    await asyncio.gather(*(flooder((host, port), number, password, until, counts) for number in range(FLOODERS)))
    print(json.dumps(counts))


def peak_bytes(running):
    for line in open(f"/proc/{running.process.pid}/status"):
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmHWM")


async def measured(running, session, channel, token, seconds):
    host = running.server.http.removeprefix("http://")
    listed, sent = await asyncio.gather(
        latency.gets(host, ["/v1/channels"], token, "127.0.6.1", seconds), latency.sends(session, channel, seconds)
    )
    return *listed, sent


async def flood(running):
    """Many logins at once from many addresses: memory of no more hashes than there are cores, RETRY_LATER beyond the queue, and
    everybody else goes on as beside a flood that costs no hashes."""
    token = running.token("alice")
    session = await Session.open(running.server, Device("calm"), "ws", token=token, delivery="TIERED")
    channel = next(iter(await session.sync()))
    host, port = running.server.http.removeprefix("http://").rsplit(":", 1)
    sign_in(Http(running.server.http), "nobody", WRONG)
    before = await measured(running, session, channel, token, QUIET_S)
    base = running.rss_bytes()
    # Forgets the peak of what was before.
    with open(f"/proc/{running.process.pid}/clear_refs", "w") as refs:
        refs.write("5")
    beside = {NO_PASSWORD: [], WRONG: []}
    total = {}
    for password in list(beside) * FLOOD_ROUNDS:
        process = await asyncio.create_subprocess_exec(
            sys.executable, __file__, "flooders", host, port, password, stdout=asyncio.subprocess.PIPE
        )
        await asyncio.sleep(1)
        beside[password].append(await measured(running, session, channel, token, FLOOD_S - 3))
        counts = json.loads((await process.communicate())[0])
        if password == WRONG:
            total = {status: total.get(status, 0) + counts.get(status, 0) for status in total | counts}
        else:
            assert counts.get("401", 0) > sum(counts.values()) / 2, counts
    cores = len(os.sched_getaffinity(0))
    grown = peak_bytes(running) - base
    print(f"  {total} of {FLOODERS} clients; memory grown by {grown // MIB} MiB at most", flush=True)
    for number, first in enumerate(before):
        hashed, plain = (
            statistics.median(round_[number].at(99) for round_ in beside[password]) for password in (WRONG, NO_PASSWORD)
        )
        print(
            f"  {first.what}, p99: {first.at(99) * 1000:.1f} ms alone; beside a flood {plain * 1000:.1f} ms without hashes, "
            f"{hashed * 1000:.1f} ms with them, x{hashed / plain:.2f} (medians of {FLOOD_ROUNDS})",
            flush=True,
        )
        assert hashed <= max(RATIO_MAX * first.at(99), 0.5), f"{first.what}: {hashed:.1f} s"
    assert total.get("503", 0) > 0, "nobody was told to come later: the queue has no end"
    assert total.get("401", 0) > 0, "no login was answered"
    # A connection that found no room, or was cut, comes again; it is no answer.
    assert set(total) <= {"401", "503", "", "ConnectionResetError", "BrokenPipeError"}, total
    assert total["401"] + total["503"] > sum(total.values()) / 2, total
    assert grown <= cores * HASH_BYTES + SLACK_BYTES, f"grown by {grown // MIB} MiB on {cores} cores"
    await session.close()


def wanted(part):
    """All, or those named on the command line."""
    return not sys.argv[1:] or part.__name__ in sys.argv[1:]


async def main():
    raise_file_limit()
    binary = os.environ["FANFARE"]
    with RunningServer(binary, "--limits", "load") as running:
        for part in filter(wanted, (enumeration, passwords, long_names)):
            part(running)
        if wanted(flood):
            await flood(running)
        log = running.log_path.read_text()
        assert PASSWORD not in log and WRONG not in log, "a password stands in the log"
    print("logins: nobody is given away, odd passwords, a flood: ok")
    if wanted(stuffing):
        with RunningServer(binary) as running:
            device, signed_in = stuffing(running)
            await lock_out(running, device, signed_in)
        print("logins: guesses are slowed down, the owner is not locked out: ok")


if __name__ == "__main__":
    asyncio.run(flood_alone(*sys.argv[2:]) if sys.argv[1:2] == ["flooders"] else main())
