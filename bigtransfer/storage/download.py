"""Fetch one file by HTTP: resumable, checked, recorded, and in place only when it is complete.

Beside the file lies its record, `<name>.sha256`, in the form that `sha256sum -c` reads. While it is
being fetched there are `.<name>.part` and `.<name>.part.json`; the same call goes on from there.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import random
import re
import shutil
import socket
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass
from email.message import Message
from pathlib import Path
from typing import Any

from bigtransfer.errors import ConfigError, InfrastructureError, StorageError
from bigtransfer.progress import progress
from bigtransfer.storage import as_json, explained, lock, sha256_file, write_text

_CHUNK_BYTES = 1 << 20
_MB = 10**6
_SECONDS_OF_SILENCE = 30.0
_TRIES = 5
_FIRST_PAUSE = 0.5
_GONE = (401, 403, 404, 410)


@dataclass(frozen=True)
class Fetched:
    """What `fetch` did."""

    path: Path
    sha256: str
    num_bytes: int
    was_there: bool
    """True: the file was complete already, and nothing was asked of the network."""


def fetch(
    url: str,
    target: Path,
    *,
    sha256: str | None = None,
    check: Callable[[Path], object] = lambda path: None,
) -> Fetched:
    """Fetch a file, or go on with one that was begun.

    The length and, where the server tells it, the MD5 are compared with what came; the SHA-256 is
    compared with the one given, and recorded.

    Args:
        url: `http:`, `https:` or `file:`.
        target: File to write.
        sha256: What it must be, 64 hex digits; None takes what the server gives.
        check: Called with the complete file before it is put in place; it raises if the file is
            not what was wanted.

    Raises:
        ConfigError: If there is no such file on the server.
        StorageError: If the target is another file, cannot be written, or what came is damaged.
        InfrastructureError: If the server cannot be reached, fails, or the disk is full; what came
            so far is kept.
    """
    if sha256 is not None and not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise ConfigError(f"sha256 is {sha256!r}; give 64 hex digits in lower case")
    with explained(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    with lock(target.with_name(f".{target.name}.lock"), repr(str(target))):
        if target.exists():
            return _already_there(target, sha256)
        part = _Part(target)
        offer = _receive_all(url, part)
        found = sha256_file(part.path)
        _verify(url, part, found, sha256, offer.md5)
        try:
            check(part.path)
        except Exception:
            part.remove()
            raise
        with explained(target):
            part.path.replace(target)
        part.remove()
        _record(target, found)
        return Fetched(target, found, target.stat().st_size, was_there=False)


@dataclass(frozen=True)
class _Offer:
    version: str | None
    """The server's mark of this version of the file; a part of another version is of no use."""
    num_bytes: int | None
    md5: str | None


class _Part:
    """A file on its way, and what the server said about it when it began to send."""

    def __init__(self, target: Path) -> None:
        self.path = target.with_name(f".{target.name}.part")
        self._facts = target.with_name(f".{target.name}.part.json")

    @property
    def received(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def begin(self, url: str, offer: _Offer) -> None:
        write_text(self._facts, as_json({"url": url, **asdict(offer)}))
        with explained(self.path):
            self.path.write_bytes(b"")

    def begun(self, url: str) -> _Offer | None:
        """Return what the server offered when this part of this URL was begun."""
        try:
            facts = json.loads(self._facts.read_text("utf-8"))
            return _Offer(**facts) if facts.pop("url") == url and self.received else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
        self._facts.unlink(missing_ok=True)


def _already_there(target: Path, wanted: str | None) -> Fetched:
    record = _record_path(target)
    recorded = record.read_text("utf-8").split()[0] if record.is_file() else None
    expected = wanted or recorded
    if expected is None:
        raise StorageError(
            f"{str(target)!r} is there already, without a record of what it is; move it away, or "
            "say what it must be with --sha256"
        )
    if not target.is_file() or (found := sha256_file(target)) != expected:
        raise StorageError(
            f"{str(target)!r} is there already, but is not the file that was "
            f"{'asked for' if wanted else 'recorded'} (sha256 {expected[:12]}…); move it away"
        )
    if recorded != found:
        _record(target, found)
    return Fetched(target, found, target.stat().st_size, was_there=True)


def _receive_all(url: str, part: _Part) -> _Offer:
    """Fill the part; return what the server says about the whole file."""
    failures = 0
    while True:
        before = part.received
        try:
            return _receive(url, part)
        except _Broken as error:
            # After some progress this is not the same failure again.
            failures = 1 if part.received > before else failures + 1
            if failures == _TRIES or not error.may_pass:
                raise InfrastructureError(f"{error}{_kept(part)}") from error
            time.sleep(_FIRST_PAUSE * 2 ** (failures - 1) * random.uniform(0.5, 1.5))


class _Broken(Exception):
    def __init__(self, message: str, *, may_pass: bool) -> None:
        super().__init__(message)
        self.may_pass = may_pass


def _receive(url: str, part: _Part) -> _Offer:
    begun = part.begun(url)
    if begun and begun.num_bytes == part.received:
        return begun
    request = urllib.request.Request(url, headers={"User-Agent": "bigtransfer"})
    if begun and begun.version:
        request.add_header("Range", f"bytes={part.received}-")
        request.add_header("If-Range", begun.version)
    try:
        with urllib.request.urlopen(request, timeout=_SECONDS_OF_SILENCE) as response:
            return _receive_body(url, response, part, begun)
    except urllib.error.HTTPError as error:
        if error.code in _GONE:
            raise ConfigError(
                f"{url!r} cannot be fetched: the server says {error.code} {error.reason}; check "
                "the name"
            ) from error
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            part.remove()
        raise _Broken(
            f"the server of {url!r} fails: {error.code} {error.reason}", may_pass=True
        ) from error
    except urllib.error.URLError as error:
        raise _unreachable(url, error.reason) from error
    except (http.client.HTTPException, ssl.SSLError, ConnectionError, TimeoutError) as error:
        raise _Broken(
            f"the connection to {urllib.parse.urlsplit(url).netloc} broke: "
            f"{error or type(error).__name__}",
            may_pass=True,
        ) from error


def _unreachable(url: str, reason: str | BaseException) -> ConfigError | _Broken:
    if isinstance(reason, FileNotFoundError | IsADirectoryError | PermissionError):
        return ConfigError(f"{url!r} cannot be read: {reason.strerror}; check the name")
    host = urllib.parse.urlsplit(url).netloc or url
    # A name that cannot be resolved, or a certificate that is wrong, is so the next second too.
    lasting = isinstance(reason, socket.gaierror | ssl.SSLError | str)
    return _Broken(
        f"cannot reach {host} ({reason}); without a network, fetch {url} on another machine and "
        "name the folder it is in with --source",
        may_pass=not lasting,
    )


def _receive_body(url: str, response: Any, part: _Part, begun: _Offer | None) -> _Offer:
    headers: Message = response.headers
    length = headers.get("Content-Length")
    if begun and response.status == http.client.PARTIAL_CONTENT:
        offer = begun
    else:
        version = headers.get("ETag") or headers.get("Last-Modified")
        offer = _Offer(version, None if length is None else int(length), _md5(headers))
        part.begin(url, offer)
    total = offer.num_bytes
    if total is not None:
        _check_space(part.path, total - part.received)
    done = part.received
    with progress(
        f"fetch {url.rsplit('/', 1)[-1]}", (total or 0) // _MB, unit="MB", start=done // _MB
    ) as advance:
        while chunk := response.read(_CHUNK_BYTES):
            with explained(part.path), part.path.open("ab") as file:
                file.write(chunk)
            done += len(chunk)
            advance(done // _MB, "")
    if total is not None and done < total:
        raise _Broken(f"the connection to {urllib.parse.urlsplit(url).netloc} broke", may_pass=True)
    return offer


def _check_space(path: Path, needed: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise InfrastructureError(
            f"{str(path.parent)!r} has {free:,} bytes free, {needed:,} more are needed; free some "
            "space and run again"
        )


def _md5(headers: Message) -> str | None:
    """Return the MD5 of the whole file, 32 hex digits, if Google's storage tells it."""
    for value in headers.get_all("x-goog-hash") or []:
        for name, _, digest in (part.strip().partition("=") for part in value.split(",")):
            if name == "md5":
                return base64.b64decode(digest).hex()
    return None


def _verify(url: str, part: _Part, found: str, wanted: str | None, server_md5: str | None) -> None:
    if server_md5 is not None and (md5 := _md5_file(part.path)) != server_md5:
        part.remove()
        raise StorageError(
            f"{url!r} arrived damaged: md5 {md5}, the server says {server_md5}; run again"
        )
    if wanted is not None and found != wanted:
        part.remove()
        raise StorageError(
            f"{url!r} is not the file that was asked for: sha256 {found}, wanted {wanted}"
        )


def _md5_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _record_path(target: Path) -> Path:
    return target.with_name(f"{target.name}.sha256")


def _record(target: Path, sha256: str) -> None:
    write_text(_record_path(target), f"{sha256}  {target.name}\n")


def _kept(part: _Part) -> str:
    if not part.received:
        return ""
    return f" ({part.received:,} bytes are kept; run again to go on)"
