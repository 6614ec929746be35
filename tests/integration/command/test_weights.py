"""`weights fetch` from a server on loopback."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from fixtures.commands import heard


@pytest.fixture
def address(mirror: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(Quiet, directory=str(mirror))
    ) as server:
        thread = threading.Thread(target=partial(server.serve_forever, 0.01), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_fetch_from_a_server_then_from_nowhere(
    address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ("fetch", "BiT-M-R50x1", "--to", tmp_path / "w", "--source", address)
    code, out, _ = heard(capsys, "weights", *line)
    assert code == 0
    assert "BiT-M-R50x1.npz: fetched" in out
    assert "R50x0.25, root 7x7 with stride 2 and pool" in out
    recorded = (tmp_path / "w" / "BiT-M-R50x1.npz.sha256").read_text().split()[0]
    assert recorded in out
    code, out, _ = heard(capsys, "weights", *line)
    assert code == 0
    assert "is there already" in out
