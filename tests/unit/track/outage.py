"""A writer for test_shipper.py: tells its journal a point every tenth of a second, then ends."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from bigtransfer.track.journal import Journal

if __name__ == "__main__":
    points, key = int(sys.argv[1]), sys.argv[2]
    journal = Journal(Path.cwd(), "pretrain")
    journal.ship()
    journal.training(key)
    print(journal.path, flush=True)
    slowest = 0.0
    for step in range(1, points + 1):
        began = time.monotonic()
        journal.metrics(step, {"loss": 1.0 / step, "rate": 0.1})
        slowest = max(slowest, time.monotonic() - began)
        time.sleep(0.1)
    print(slowest, flush=True)
    journal.close("FINISHED")
