"""Requests to a running server, answers as (status, headers, JSON)."""

import http.client
import json


class Http:
    """`source` is the address to ask from: all of 127.0.0.0/8 is this machine."""

    def __init__(self, url, source=None):
        self.host, self.source = url.removeprefix("http://"), source and (source, 0)

    def ask(self, method, path, body=None, token=None, **headers):
        connection = http.client.HTTPConnection(self.host, timeout=30, source_address=self.source)
        if token:
            headers["Authorization"] = f"Bearer {token}"
        raw = body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode()
        connection.request(method, path, body=raw, headers=headers)
        response = connection.getresponse()
        text = response.read()
        connection.close()
        kind = response.headers.get("content-type", "")
        return response.status, response.headers, json.loads(text) if kind.endswith("json") and "ndjson" not in kind else text

    def good(self, method, path, body=None, token=None, **headers):
        status, _, answer = self.ask(method, path, body, token, **headers)
        assert status in (200, 201), f"{method} {path}: {status} {answer}"
        return answer

    def refused(self, wanted, number, method, path, body=None, token=None, **headers):
        status, answered, answer = self.ask(method, path, body, token, **headers)
        assert (status, answer.get("number")) == (wanted, number), f"{method} {path}: {status} {answer}"
        assert answered["content-type"] == "application/problem+json", answered["content-type"]
        return answered, answer
