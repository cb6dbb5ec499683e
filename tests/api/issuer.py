"""A backend that signs tokens with a key of its own, and serves the public half of it."""

import base64
import http.server
import json
import threading
import time

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519


def encoded(raw):
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def decoded(text):
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


class Issuer:
    def __init__(self):
        self.key, self.kid = ed25519.Ed25519PrivateKey.generate(), "shop-1"

    def public(self):
        return self.key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)

    def jwks(self):
        key = {"kty": "OKP", "crv": "Ed25519", "use": "sig", "alg": "EdDSA", "kid": self.kid, "x": encoded(self.public())}
        return json.dumps({"keys": [key]}).encode()

    def header(self):
        return {"alg": "EdDSA", "typ": "fanfare+jwt", "kid": self.kid}

    def claims(self, user, issuer="shop"):
        now = int(time.time())
        return {"iss": issuer, "aud": "fanfare", "sub": user, "iat": now, "exp": now + 900}

    def sign(self, header, claims):
        """Whatever texts those are, under a good signature."""
        message = f"{encoded(header.encode())}.{encoded(claims.encode())}"
        return f"{message}.{encoded(self.key.sign(message.encode()))}"

    def token(self, user, issuer="shop", **more):
        return self.sign(json.dumps(self.header()), json.dumps(self.claims(user, issuer) | more))

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
