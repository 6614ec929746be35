"""MLflow's webhook rings, and `bigtransfer watch` looks at the registry at once.

A delivery is believed in nothing: what it says is not read. So one that is lost, doubled, late or
forged changes nothing but the time of the next look.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from bigtransfer.errors import ConfigError

SECRET = "BIGTRANSFER_WEBHOOK_SECRET"
"""Environment variable: the secret that the webhook was made with."""
_OLDEST_SECONDS = 300
_LONGEST_BODY = 1 << 20
_SECONDS_TO_SAY_IT = 5
_ID, _TIME, _SIGNATURE = "X-MLflow-Delivery-Id", "X-MLflow-Timestamp", "X-MLflow-Signature"
_VERSION = "v1,"


def is_genuine(secret: str, headers: Mapping[str, str], body: bytes, now: float) -> bool:
    """Say whether MLflow signed a delivery, and did so just now.

    The signature is HMAC-SHA256 of `<id>.<timestamp>.<body>` (MLflow 3, after Standard Webhooks).

    Args:
        secret: Of the webhook.
        headers: Of the request.
        body: Of the request.
        now: Seconds since the epoch.
    """
    stamp, signature = headers.get(_TIME, ""), headers.get(_SIGNATURE, "")
    if not (stamp.isascii() and stamp.isdigit()) or not signature.startswith(_VERSION):
        return False
    if abs(now - int(stamp)) > _OLDEST_SECONDS:
        return False
    signed = f"{headers.get(_ID, '')}.{stamp}.".encode() + body
    wanted = hmac.new(secret.encode(), signed, hashlib.sha256).digest()
    try:
        found = base64.b64decode(signature.removeprefix(_VERSION), validate=True)
    except (binascii.Error, ValueError):
        return False
    return hmac.compare_digest(wanted, found)


@contextmanager
def doorbell(host: str, port: int, secret: str) -> Iterator[tuple[threading.Event, int]]:
    """Listen for deliveries for the length of the block.

    Args:
        host: Address to listen at.
        port: The same; 0: any.
        secret: Of the webhook.

    Yields:
        An event that a genuine delivery sets, and the port.

    Raises:
        ConfigError: If the address cannot be had.
    """
    rung = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        timeout = _SECONDS_TO_SAY_IT

        def do_POST(self) -> None:
            """Take a delivery."""
            length = self.headers.get("Content-Length", "")
            if not (length.isascii() and length.isdigit()) or int(length) > _LONGEST_BODY:
                self._answer(413)
                return
            body = self.rfile.read(int(length))
            if not is_genuine(secret, dict(self.headers.items()), body, time.time()):
                self._answer(401)
                return
            rung.set()
            self._answer(204)

        def _answer(self, code: int) -> None:
            self.send_response(code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Keep quiet: whoever can reach the port could fill the log."""

    try:
        server = ThreadingHTTPServer((host, port), Handler)
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"cannot listen at {host}:{port}: {getattr(error, 'strerror', None) or error}; name "
            "another address with --listen"
        ) from error
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, name="doorbell", daemon=True)
    thread.start()
    try:
        yield rung, server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
