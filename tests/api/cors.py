"""What pages of other origins may ask: every operation of the OpenAPI document from an origin of the allow-list, none from
another, and nothing beside the document. See `run`."""

import os
import re

from http_client import Http
from running import RunningServer

ALLOWED, FOREIGN = "https://app.example", ("https://evil.example", "https://app.example.evil.example", "http://app.example", "null")
METHODS = ("get", "post", "put", "patch", "delete")
HEADERS = "authorization,content-type"
EXPOSED = {"retry-after", "ratelimit-limit", "ratelimit-remaining", "ratelimit-reset"}


def words(headers, name):
    return {word.strip().lower() for word in headers.get(name, "").split(",")}


def preflight(api, path, method, origin):
    asks = {"Origin": origin, "Access-Control-Request-Method": method.upper(), "Access-Control-Request-Headers": HEADERS}
    return api.ask("OPTIONS", path, **asks)[:2]


def main():
    os.environ["FANFARE__GATEWAY__ORIGINS"] = ALLOWED
    with RunningServer(os.environ["FANFARE"], "--limits", "load") as running:
        api = Http(running.server.http)
        paths = api.good("GET", "/openapi.json")["paths"]
        operations = [(re.sub(r"{\w+}", "1", path), method) for path, of in paths.items() for method in of if method in METHODS]
        assert len(operations) > 30, operations
        for path, method in operations:
            status, headers = preflight(api, path, method, ALLOWED)
            assert status in (200, 204) and headers["access-control-allow-origin"] == ALLOWED, f"{method} {path}: {status} {headers}"
            assert method in words(headers, "access-control-allow-methods"), f"{method} {path}: {headers}"
            assert set(HEADERS.split(",")) <= words(headers, "access-control-allow-headers"), f"{method} {path}: {headers}"
            assert "access-control-allow-credentials" not in headers and "origin" in words(headers, "vary"), headers
            for origin in FOREIGN:
                _, headers = preflight(api, path, method, origin)
                assert "access-control-allow-origin" not in headers, f"{method} {path} from {origin}: {headers}"
        # What the page may see of an answer, a refusal too.
        for token in (running.token("alice"), None):
            _, headers, _ = api.ask("GET", "/v1/account", token=token, Origin=ALLOWED)
            assert headers["access-control-allow-origin"] == ALLOWED, headers
            assert words(headers, "access-control-expose-headers") == EXPOSED, headers
            _, headers, _ = api.ask("GET", "/v1/account", token=token, Origin=FOREIGN[0])
            assert "access-control-allow-origin" not in headers, headers
        # Administration is for no page of another origin, on the list or not.
        for path in ("/admin", "/admin/claim", "/admin/v1/users", "/metrics", "/readyz"):
            for _, headers in (preflight(api, path, "get", ALLOWED), api.ask("GET", path, Origin=ALLOWED)[:2]):
                assert "access-control-allow-origin" not in headers, f"{path}: {headers}"
    print(f"{len(operations)} operations for pages of the allow-list, and for no others: ok")


main()
