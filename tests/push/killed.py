"""The server is killed between any two steps of a push, and killed or cut from power while messages come and the receiver is slow: every
message that was acknowledged reaches the receiver, each key is taken once. See `run`."""

import asyncio
import random
import threading
import time

from scene import Scene, uuid7

# Each with the pass at which the server ends itself. What it puts before it has noted an offset is put again after the next start: with
# 16 partitions behind, only the passes after the 16th are of something new.
STEPS = {"before-push-put": 20, "after-push-put": 20, "after-push-offset": 3, "before-push-post": 3, "after-push-post": 3}
PEOPLE, MESSAGES, KILLS = 30, 240, 4


def wanted(scene, sent):
    return {(scene.named[name], channel, seq) for name, channel, seq in sent}


def found(scene):
    data = [body["data"] for body in list(scene.receiver.accepted.values())]
    return {(one["user"], one["channel"], one["seq"]) for one in data}


def judge(scene, sent, what):
    scene.receiver.until(lambda: wanted(scene, sent) <= found(scene), f"push of each message ({what})", 60)
    scene.settled(60)
    # Messages that were not acknowledged may be there, too; a key is of one message, so none is there twice.
    assert len(found(scene)) == len(scene.receiver.accepted), "two keys for one message"
    assert scene.receiver.refused == 0
    again = sum(scene.receiver.attempts.values()) - len(scene.receiver.attempts)
    print(f"{what}: {len(sent)} messages, {len(scene.receiver.accepted)} keys, {again} came again", flush=True)


def again(scene):
    """Started anew; gives how often it ended itself before it was ready."""
    for kills in range(20):
        try:
            scene.start()
            return kills
        except (OSError, AssertionError):
            assert scene.process.wait(10) == -9, scene.log_path.read_text()[-4000:]
    raise AssertionError("it does not come up")


def at_each_step():
    for step, number in STEPS.items():
        # One request at a time, or the third begins before the first has ended and nothing ever moves.
        with Scene({"connections": 1}) as scene:
            scene.people(["amy", *(f"p{n}" for n in range(PEOPLE))])
            channels = {f"p{n}": scene.direct("amy", f"p{n}") for n in range(PEOPLE)}
            sent, kills = [], 0
            scene.settled()
            # Started anew, it ends itself at that pass of the step.
            scene.kill()
            scene.extra = {"FANFARE_FAULT": f"{step}:{number}"}
            kills += again(scene)
            for message in range(600):
                if kills > 2:
                    break
                name = f"p{message % PEOPLE}"
                key, done = uuid7(), False
                while not done:
                    if scene.process.poll() is not None:
                        kills += 1 + again(scene)
                    try:
                        sent.append((name, channels[name], scene.say("amy", channels[name], "x", client_message_id=key)))
                        done = True
                    except (OSError, AssertionError, ValueError):
                        time.sleep(0.02)
                time.sleep(0.02)
            scene.extra = {}
            if scene.process.poll() is not None:
                kills += 1
            else:
                scene.kill()
            scene.start()
            judge(scene, sent, f"{step}, killed {kills} times")
            assert kills > 0, f"{step} did not strike"


def at_random(power_cuts):
    chance = random.Random(7)
    with Scene(power_cuts=power_cuts) as scene:
        scene.people(["amy", *(f"p{n}" for n in range(PEOPLE))])
        channels = {f"p{n}": scene.direct("amy", f"p{n}") for n in range(PEOPLE)}
        scene.receiver.slow = 0.03
        sent, ended = [], threading.Event()

        def talk():
            for number in range(MESSAGES):
                name = f"p{number % PEOPLE}"
                key = uuid7()
                while True:
                    try:
                        sent.append((name, channels[name], scene.say("amy", channels[name], "x", client_message_id=key)))
                        break
                    except (OSError, AssertionError, ValueError):
                        time.sleep(0.02)
            ended.set()

        talker = threading.Thread(target=talk)
        talker.start()
        for kill in range(KILLS):
            # In the middle: some were taken, others wait.
            goal = MESSAGES * (kill + 1) // (KILLS + 2)
            scene.receiver.until(lambda: len(scene.receiver.accepted) >= goal, f"{goal} pushes", 60)
            time.sleep(chance.random() * 0.05)
            if power_cuts:
                scene.cut_power(kill)
            else:
                scene.kill()
            scene.start()
        talker.join(60)
        assert ended.is_set() and len(sent) == MESSAGES
        judge(scene, sent, f"{KILLS} power cuts" if power_cuts else f"killed {KILLS} times at random")


async def in_doubt():
    """Killed while nobody knows whether a session is alive: the message is looked at again."""
    with Scene() as scene:
        _, bea = scene.people(["amy", "bea"])
        channel = scene.direct("amy", "bea")
        session = await scene.come("bea")
        # This loop stands still: nothing is acknowledged.
        seq = scene.say("amy", channel, "x")
        scene.settled()
        assert not scene.receiver.of(user=bea), "who has a session was told at once"
        scene.kill()
        scene.start()
        scene.wait(1, user=bea, seq=seq)
        await session.stop()
    print("killed in doubt: told after the start", flush=True)


at_each_step()
at_random(power_cuts=False)
at_random(power_cuts=True)
asyncio.run(in_doubt())
