"""A server that pushes to a receiver of ours, and people who are there or not."""

import base64
import os
import signal
import subprocess
import time
from pathlib import Path

from fanfare import Device, Session, client_message_id
from http_client import Http
from receiver import Receiver
from running import RunningServer

SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()
LIBRARY = "libfanfare_powercut.so"
# In place of 30 s.
RECENT_S = 2


class Scene(RunningServer):
    """`config` are keys of the section `push`."""

    def __init__(self, config=None, power_cuts=False, tls=None):
        super().__init__(os.environ["FANFARE"], "--limits", "load")
        self.receiver = Receiver([SECRET], tls=tls)
        self.config = {"url": self.receiver.url, "recent_activity_delay_s": RECENT_S} | (config or {})
        self.power_cuts, self.extra = power_cuts, {}
        self.named, self.tokens = {}, {}

    def __enter__(self):
        try:
            return super().__enter__()
        except BaseException:
            self.receiver.stop()
            raise

    def start(self):
        secret = Path(self.folder.name) / "secret"
        secret.write_text(SECRET + "\n")
        for name, value in (self.config | {"secret_file": str(secret)}).items():
            os.environ[f"FANFARE__PUSH__{name.upper()}"] = str(value)
        os.environ.pop("FANFARE_FAULT", None)
        os.environ |= self.extra | self.watched()
        (Path(self.data) / "admin.json").unlink(missing_ok=True)
        super().start()
        for name in ("FANFARE_FAULT", *self.watched()):
            os.environ.pop(name, None)
        self.api = Http(self.server.http)

    def watched(self):
        """The environment in which a power cut can be undone to."""
        if not self.power_cuts:
            return {}
        tool = Path(os.environ["FANFARE_POWERCUT"]).resolve()
        library = next(path for path in (tool.parent / LIBRARY, tool.parent / "deps" / LIBRARY) if path.exists())
        journal = Path(self.folder.name) / "journal"
        for folder in (Path(self.data), journal):
            folder.mkdir(exist_ok=True)
        return {"LD_PRELOAD": str(library), "POWERCUT_DIR": self.data, "POWERCUT_JOURNAL": str(journal)}

    def cut_power(self, seed):
        """Killed, and what was not synced is gone."""
        self.kill()
        journal = self.watched()["POWERCUT_JOURNAL"]
        command = [os.environ["FANFARE_POWERCUT"], "undo", "--dir", self.data, "--journal", journal]
        subprocess.run([*command, "--seed", str(seed), "--mode", "mixed"], check=True, capture_output=True, timeout=60)

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def __exit__(self, *ended):
        try:
            return super().__exit__(*ended)
        finally:
            self.receiver.stop()

    # ------------------------------------------------------------ people

    def people(self, names):
        """Users of these names, made where they are not there; their tokens are kept."""
        names = list(names)
        for some in (names[i : i + 1000] for i in range(0, len(names), 1000)):
            made = self.api.good("POST", "/admin/v1/users/bulk", {"names": some, "token_ttl_s": 3600}, self.admin["token"])
            for user in made["users"]:
                self.named[user["name"]], self.tokens[user["name"]] = user["user"], user["token"]
        return [self.named[name] for name in names]

    def group(self, owner, members):
        """A group of the owner's; gives its id."""
        members = list(members)
        made = self.api.good("POST", "/v1/channels", {"name": f"g-{time.monotonic_ns()}", "members": members}, self.tokens[owner])
        return made["channel"]

    def direct(self, one, other):
        return self.api.good("PUT", f"/v1/direct/{self.named[other]}", token=self.tokens[one])["channel"]

    def say(self, sender, channel, text, **more):
        """Its seq."""
        answer = self.api.good("POST", f"/v1/channels/{channel}/messages", {"text": text} | more, self.tokens[sender])
        return answer["seq"]

    async def come(self, name):
        """A session of that user that is served."""
        session = await Session.open(self.server, Device(name), "ws", token=self.tokens[name], delivery="TIERED")
        await session.sync()
        return session

    # ------------------------------------------------------------ pushes

    def wait(self, count, seconds=30, **wanted):
        """Until so many with these values were accepted."""
        self.receiver.until(lambda: len(self.receiver.of(**wanted)) >= count, f"{count} pushes of {wanted}", seconds)
        return self.receiver.of(**wanted)

    def settled(self, seconds=30):
        """Until everything is in the log, the log is read, and nothing waits in the outbox; gives the status of pushes."""
        deadline = time.monotonic() + seconds
        while True:
            status = self.api.good("GET", "/admin/v1/status", token=self.admin["token"])
            push = status["push"]
            if (status["entries_undrained"], push["lag_records"], push["waiting"]) == (0, 0, 0):
                return push
            assert time.monotonic() < deadline, f"not settled: {status}"
            time.sleep(0.05)


def uuid7():
    raw = client_message_id(int(time.time() * 1000)).hex()
    return "-".join([raw[:8], raw[8:12], raw[12:16], raw[16:20], raw[20:]])
