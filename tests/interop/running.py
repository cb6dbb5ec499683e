"""The real binary, started in a folder of its own on free ports, stopped and judged at the end."""

import json
import os
import resource
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from fanfare import Server

START_S, STOP_S = 15, 10


class RunningServer:
    def __init__(self, binary, *options):
        self.binary, self.options = binary, options

    def __enter__(self):
        self.folder = tempfile.TemporaryDirectory(prefix="fanfare-interop-")
        self.data = str(Path(self.folder.name) / "data")
        self.log_path = Path(self.folder.name) / "log"
        self.log = self.log_path.open("ab")
        self.start()
        return self

    def restart(self):
        """Stopped, and started again on the same folder; ports and tokens of commands are others then."""
        self.process.send_signal(signal.SIGINT)
        status = self.process.wait(STOP_S)
        assert status == 0, f"the server stopped with {status}"
        self.start()

    def start(self):
        command = [self.binary, "start", "--dev", "--data", self.data]
        command += ["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--log", "json", *self.options]
        self.process = subprocess.Popen(
            command, stdout=self.log, stderr=self.log, cwd=self.folder.name, env=os.environ | {"RUST_BACKTRACE": "1"}
        )
        deadline = time.monotonic() + START_S
        admin = Path(self.data) / "admin.json"
        while not admin.exists():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.process.kill()
                raise AssertionError(f"the server did not start:\n{self.log_path.read_text()[-4000:]}")
            time.sleep(0.02)
        self.admin = json.loads(admin.read_text())
        host, port = self.admin["gateway"].rsplit(":", 1)
        self.server = Server(host, int(port), f"http://{self.admin['address']}")
        self.server.read_certificate()

    def run(self, *arguments):
        """The standard output of a `fanfare` command on this server's folder."""
        done = subprocess.run(
            [self.binary, *arguments, "--data", self.data], capture_output=True, text=True, timeout=30, check=False
        )
        assert done.returncode == 0, f"fanfare {' '.join(arguments)}: {done.stdout}{done.stderr}"
        return done.stdout

    def token(self, user, ttl="1h"):
        return self.run("user", "token", user, "--ttl", ttl).split()[-1]

    def rss_bytes(self):
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        raise AssertionError("no VmRSS")

    def open_files(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def __exit__(self, kind, error, trace):
        alive = self.process.poll() is None
        if alive:
            self.process.send_signal(signal.SIGINT)
        try:
            status = self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            status = "killed: it did not drain"
        self.log.close()
        log = self.log_path.read_text(errors="replace")
        panicked = [line for line in log.splitlines() if "panicked" in line]
        try:
            if kind is not None:
                print(f"the server's log ends:\n{log[-3000:]}")
            else:
                assert alive, f"the server ended by itself with {status}:\n{log[-4000:]}"
                assert not panicked, f"the server panicked: {panicked[:3]}\n{log[-4000:]}"
                assert status == 0, f"the server stopped with {status}:\n{log[-4000:]}"
        finally:
            self.folder.cleanup()


def raise_file_limit(files=4096):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = files if hard == resource.RLIM_INFINITY else min(files, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
