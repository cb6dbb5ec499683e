#!/usr/bin/env python3
"""A receiver of pushes as an app's backend would write one: it verifies, takes each key once, and answers. For tests it can be told
to fail, to be slow, or to take a push and cut the connection. Standard library only.

    tests/push/receiver.py --secret whsec_... [--port 8090]     prints each push that is new
"""

import argparse
import base64
import hashlib
import hmac
import json
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOLERANCE_S = 300
BODY_BYTES_MAX = 64 * 1024


class Refused(Exception):
    pass


def verify(secrets, headers, body, now=None):
    """The push's key, or Refused. `secrets` are `whsec_...` texts, any of which may have signed."""
    key, stamp = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
    if not key or not stamp.isdigit():
        raise Refused("no id or no timestamp")
    if abs((now or time.time()) - int(stamp)) > TOLERANCE_S:
        raise Refused("the timestamp is too far away")
    signed = b".".join([key.encode(), stamp.encode(), body])
    given = [one[3:] for one in headers.get("webhook-signature", "").split() if one.startswith("v1,")]
    for secret in secrets:
        tag = hmac.new(base64.b64decode(secret.removeprefix("whsec_")), signed, hashlib.sha256).digest()
        wanted = base64.b64encode(tag).decode()
        if any(hmac.compare_digest(wanted, one) for one in given):
            return key
    raise Refused("no signature fits")


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_):
        pass  # whoever asked is gone


class Receiver:
    """Runs in threads of its own. `accepted` has the body of each key as it was taken first, `times` when, `attempts` how often each
    was posted, `raw` the newest request (headers, body)."""

    def __init__(self, secrets, port=0, tls=None):
        self.secrets = secrets
        self.accepted, self.times, self.attempts = {}, {}, Counter()
        self.refused, self.together, self.most_together = 0, 0, 0
        self.raw = None
        # What becomes of the next ones: a function of (key, attempt, body) that gives a status, or (status, headers), or None to take it.
        self.plan = None
        # Seconds for each; taken and never answered, as often.
        self.slow, self.cuts = 0.0, 0
        self.changed = threading.Condition()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_POST(self):
                receiver.post(self)

            def log_message(self, *_):
                pass

        self.server = Server(("127.0.0.1", port), Handler)
        if tls:
            self.server.socket = tls.wrap_socket(self.server.socket, server_side=True, do_handshake_on_connect=False)
        self.url = f"{'https' if tls else 'http'}://localhost:{self.server.server_address[1]}/push"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def post(self, request):
        length = int(request.headers.get("content-length", 0))
        body = request.rfile.read(length) if length <= BODY_BYTES_MAX else b""
        headers = {name.lower(): value for name, value in request.headers.items()}
        try:
            key = verify(self.secrets, headers, body)
        except Refused as why:
            with self.changed:
                self.refused += 1
            return self.answer(request, 401, {}, str(why))
        with self.changed:
            self.attempts[key] += 1
            self.together += 1
            self.most_together = max(self.most_together, self.together)
            attempt, plan, cut = self.attempts[key], self.plan, self.cuts > 0
            self.raw = headers, body
            self.cuts -= cut
        if self.slow:
            time.sleep(self.slow)
        told = plan(key, attempt, json.loads(body)) if plan else None
        status, more = told if isinstance(told, tuple) else (told or 204, {})
        with self.changed:
            self.together -= 1
            if status < 300 and key not in self.accepted:
                self.accepted[key], self.times[key] = json.loads(body), time.monotonic()
            self.changed.notify_all()
        if cut:
            request.close_connection = True
            return None
        return self.answer(request, status, more)

    def answer(self, request, status, headers, text=""):
        try:
            request.send_response(status)
            for name, value in headers.items():
                request.send_header(name, value)
            request.send_header("content-length", str(len(text.encode())))
            request.end_headers()
            request.wfile.write(text.encode())
        except OSError:
            pass  # whoever asked is gone

    def until(self, holds, what, seconds=30):
        """Waits until `holds()`, which is looked at under the lock."""
        deadline = time.monotonic() + seconds
        with self.changed:
            while not (result := holds()):
                left = deadline - time.monotonic()
                assert left > 0, f"no {what} within {seconds} s; {len(self.accepted)} accepted, {dict(self.attempts.most_common(5))}"
                self.changed.wait(left)
            return result

    def of(self, **wanted):
        """Accepted pushes whose data has these values, by seq."""
        found = [body for body in list(self.accepted.values()) if all(body["data"].get(k) == v for k, v in wanted.items())]
        return sorted(found, key=lambda body: body["data"]["seq"])

    def stop(self):
        self.server.shutdown()
        self.server.server_close()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--secret", action="append", required=True)
    parser.add_argument("--port", type=int, default=8090)
    options = parser.parse_args()
    receiver = Receiver(options.secret, options.port)
    print(f"listening on {receiver.url}", flush=True)
    shown = set()
    while True:
        receiver.until(lambda: receiver.accepted.keys() - shown, "push", 10**6)
        for key in receiver.accepted.keys() - shown:
            shown.add(key)
            print(json.dumps(receiver.accepted[key]), flush=True)


if __name__ == "__main__":
    main()
