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
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from bigtransfer.errors import ConfigError

SECRET = "BIGTRANSFER_WEBHOOK_SECRET"
"""Environment variable: the secret that the webhook was made with."""
_OLDEST_SECONDS = 300
_LONGEST_BODY, _DIGITS = 1 << 20, 12
_SECONDS_TO_SAY_IT = 5
_ID, _TIME, _SIGNATURE = "X-MLflow-Delivery-Id", "X-MLflow-Timestamp", "X-MLflow-Signature"
_VERSION = "v1,"


def is_genuine(secret: str, headers: Message, body: bytes, now: float) -> bool:
    """Say whether MLflow signed a delivery, and did so just now.

    The signature is HMAC-SHA256 of `<id>.<timestamp>.<body>` (MLflow 3, after Standard Webhooks).

    Args:
        secret: Of the webhook.
        headers: Of the request.
        body: Of the request.
        now: Seconds since the epoch.
    """
    stamp, signature = str(headers.get(_TIME, "")), str(headers.get(_SIGNATURE, ""))
    if not _is_number(stamp) or not signature.startswith(_VERSION):
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


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= _DIGITS


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Keep quiet of connections that broke: whoever can reach the port could fill the log."""


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
            if not _is_number(length) or int(length) > _LONGEST_BODY:
                self._answer(413)
                return
            body = self.rfile.read(int(length))
            if not is_genuine(secret, self.headers, body, time.time()):
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
        server = _Quiet((host, port), Handler)
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"cannot listen at {host}:{port}: {getattr(error, 'strerror', None) or error}; name "
            "another address with --listen"
        ) from error
    thread = threading.Thread(target=server.serve_forever, name="doorbell", daemon=True)
    thread.start()
    try:
        yield rung, server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
