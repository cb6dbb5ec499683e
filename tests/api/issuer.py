"""A backend with a key of its own: it serves its JWKS and signs tokens."""

import base64
import http.server
import json
import threading
import time

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519


def encoded(raw):
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


class Issuer:
    """See the module."""

    def __init__(self):
        self.key, self.kid = ed25519.Ed25519PrivateKey.generate(), "shop-1"

    def jwks(self):
        raw = self.key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
        key = {"kty": "OKP", "crv": "Ed25519", "use": "sig", "alg": "EdDSA", "kid": self.kid, "x": encoded(raw)}
        return json.dumps({"keys": [key]}).encode()

    def token(self, user, issuer="shop", **more):
        now = int(time.time())
        header = {"alg": "EdDSA", "typ": "fanfare+jwt", "kid": self.kid}
        claims = {"iss": issuer, "aud": "fanfare", "sub": user, "iat": now, "exp": now + 900} | more
        message = f"{encoded(json.dumps(header).encode())}.{encoded(json.dumps(claims).encode())}"
        return f"{message}.{encoded(self.key.sign(message.encode()))}"

    def serve(self):
        issuer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                body = issuer.jwks()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return server
