"""The program ends with its command's code, after threads and exit functions, all said."""

from __future__ import annotations

import subprocess
import sys

import pytest

from fixtures.project import PROJECT

CODE = """
import atexit, sys, threading, time
from bigtransfer.command import __main__ as command
def end():
    atexit.register(print, "at exit")
    threading.Thread(target=lambda: (time.sleep(0.2), print("thread"))).start()
    print("done", end="")
    {end}
command.main = end
command.program()
"""


@pytest.mark.parametrize(
    ("end", "code", "said"),
    [
        ("", 0, ""),
        ("sys.exit()", 0, ""),
        ("sys.exit(3)", 3, ""),
        ("sys.exit('why')", 1, "why\n"),
        ("raise RuntimeError('a bug')", 1, "RuntimeError: a bug\n"),
    ],
)
def test_it_ends_as_python_does(end: str, code: int, said: str) -> None:
    line = [sys.executable, "-c", CODE.format(end=end)]
    ended = subprocess.run(line, capture_output=True, text=True, cwd=PROJECT, timeout=60)
    assert (ended.returncode, ended.stdout) == (code, "donethread\nat exit\n")
    assert ended.stderr.endswith(said) and bool(ended.stderr) == bool(said)
