"""Sending a folder as Kubeflow's launcher does, file by file, and as volumes (`storage.volumes`).

    python benchmarks/artifacts.py [--milliseconds 30] [FOLDER ...]

The storage is a server on loopback that takes so long for each request. Without folders: those that
`make run` wrote. A folder is sent both ways, one after the other; packing is part of the second.
"""

from __future__ import annotations

import argparse
import http.client
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from bigtransfer.storage.volumes import MOST_FILES, pack

MADE = ("data/*", "artifacts/datasets/*/shards", "artifacts/pretrain/checkpoint",
        "artifacts/finetune/*", "artifacts/evaluate/*/model")  # fmt: skip
_CHUNK = 1 << 20


@contextmanager
def storage(seconds: float) -> Iterator[int]:
    """Listen on a port, and take so long for each file."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_PUT(self) -> None:
            left = int(self.headers["Content-Length"])
            while left:
                left -= len(self.rfile.read(min(left, _CHUNK)))
            time.sleep(seconds)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()


def send(folder: Path, port: int) -> tuple[int, int]:
    """Send a folder's files one after the other; return how many, and their bytes."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    total = 0
    for number, path in enumerate(files):
        size = path.stat().st_size
        with path.open("rb") as file:
            headers = {"Content-Length": str(size)}
            connection.request("PUT", f"/{number}", body=file, headers=headers)
        connection.getresponse().read()
        total += size
    connection.close()
    return len(files), total


def main() -> None:
    """Send each folder both ways and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--milliseconds", type=float, default=30.0, help="of each request")
    arguments = parser.parse_args()
    made = sorted(path for pattern in MADE for path in Path().glob(pattern) if path.is_dir())
    print(f"{arguments.milliseconds:g} ms a request")
    with storage(arguments.milliseconds / 1000) as port, tempfile.TemporaryDirectory() as scratch:
        for folder in arguments.folders or made:
            began = time.perf_counter()
            files, size = send(folder, port)
            before = time.perf_counter() - began
            line = f"{folder!s:<36} {files:>6,} files {size / 1e6:>8,.1f} MB {before:>7.1f} s"
            if files <= MOST_FILES:
                print(f"{line}   as it is", flush=True)
                continue
            copy = Path(shutil.copytree(folder, Path(scratch) / "copy"))
            began = time.perf_counter()
            pack(copy)
            files, size = send(copy, port)
            after = time.perf_counter() - began
            shutil.rmtree(copy)
            packed = f"{files:>3} files {size / 1e6:>8,.1f} MB {after:>6.1f} s"
            print(f"{line} -> {packed}   x{before / after:.1f}", flush=True)


if __name__ == "__main__":
    main()
