"""The networks of a grid in a bucket, for machines that may vanish.

`<mirror>/<task>/<fingerprint>/` holds a folder per finished network, its manifest sent last, and a
folder `<network>.state/` per running one, with its resumable checkpoints (`checkpoints`). What was
finished is brought back to an empty disk; a bucket that refuses is said and never ends a training.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bigtransfer.errors import BigTransferError, CheckpointError
from bigtransfer.model.checkpoint import read_tuned_meta
from bigtransfer.progress import counted
from bigtransfer.storage import MANIFEST_NAME, new_folder
from bigtransfer.storage.places import Bucket, Target
from bigtransfer.storage.s3 import S3Path

Say = Callable[[str], None]


class _Lenient(Bucket):
    """A place in a bucket that seems empty while it cannot be listed."""

    def __init__(self, place: S3Path, say: Say) -> None:
        super().__init__(place)
        self._say = say

    def names(self) -> list[str]:
        try:
            return super().names()
        except BigTransferError as error:
            self._say(f"what a mirror may hold is not used, it cannot be listed: {error}")
            return []


class _LenientState(_Lenient):
    """The same, whose files seem to be gone while they cannot be read."""

    def get(self, name: str) -> bytes | None:
        try:
            return super().get(name)
        except BigTransferError as error:
            self._say(f"what a mirror holds is not used, it cannot be read: {error}")
            return None


def place_of(mirror: str | None, task: str, key: str) -> S3Path | None:
    """Return the place of one run in a mirror, if there is one.

    Args:
        mirror: Address of all runs.
        task: Name of the task.
        key: Fingerprint of the run.
    """
    return None if mirror is None else S3Path.parse(mirror) / task / key


def state_target(place: S3Path | None, name: str, say: Say) -> Target | None:
    """Open the place of a running network's checkpoints, if there is one.

    Args:
        place: Of the run, in the mirror.
        name: Of the network.
        say: Receives a line where the bucket refuses to list it.
    """
    return None if place is None else _LenientState(place / _state(name), say)


class GridMirror:
    """The place of one run in the mirror; the process that gathers the networks has it alone."""

    def __init__(self, place: S3Path | None, say: Say) -> None:
        """Open it; nothing is sent yet.

        Args:
            place: Of this run alone; None: there is no mirror, and nothing is done.
            say: Receives lines for people.
        """
        self._place, self._say = place, say
        self._target = None if place is None else _Lenient(place, say)
        self._unsent: list[Path] = []
        """Networks that are here, and not there."""
        self._waiting: queue.SimpleQueue[Path | None] = queue.SimpleQueue()
        self._sender: threading.Thread | None = None
        self._drops = False

    def bring(self, names: Iterable[str], done: Path) -> None:
        """Bring finished networks here; remove what a lost machine left half sent.

        Args:
            names: Of the networks of the grid.
            done: Folder of finished networks; those that are there are not brought again.
        """
        if self._target is None:
            return
        began = time.monotonic()
        listed = self._listed()
        brought = 0
        for name in names:
            files = listed.get(name, [])
            if files and MANIFEST_NAME not in files:
                self._remove(name, files)
            elif files and not (done / name).exists():
                brought += self._fetched(name, files, done)
            if (done / name).exists():
                if MANIFEST_NAME not in files:
                    self._unsent.append(done / name)
                self._remove(_state(name), listed.get(_state(name), []))
        if brought:
            seconds = time.monotonic() - began
            came = f"{counted(brought, 'finished network')} came"
            self._say(f"{came} from {self._place} in {seconds:.1f} s")

    def send_soon(self, folder: Path) -> None:
        """Send a finished network in the background, then remove its state there."""
        if self._target is None:
            return
        self._waiting.put(folder)
        if self._sender is None:
            self._sender = threading.Thread(target=self._send_all, daemon=True)
            self._sender.start()

    @contextmanager
    def sending(self, *, all_of_them: bool) -> Iterator[None]:
        """Hold the block in which networks are sent, those first that are here and not there.

        Args:
            all_of_them: Whether all are sent at its end; else, unless it raises, only the one that
                is on its way: all are here.
        """
        for folder in self._unsent:
            self.send_soon(folder)
        try:
            yield
            self._drops = not all_of_them
        finally:
            self._waiting.put(None)
            if self._sender is not None:
                self._sender.join()

    def clear(self) -> None:
        """Remove all that is there of this run: its output is in place."""
        for name, files in self._listed().items():
            self._remove(name, files)

    def _listed(self) -> dict[str, list[str]]:
        """Return folder -> its files."""
        found: dict[str, list[str]] = {}
        for path in self._target.names() if self._target else ():
            name, _, rest = path.partition("/")
            found.setdefault(name, []).append(rest)
        return found

    def _fetched(self, name: str, files: list[str], done: Path) -> bool:
        try:
            self._fetch(name, files, done / name)
        except CheckpointError as error:
            self._say(f"passing over a network of the mirror, it is trained again: {error}")
            self._remove(name, files)
        except BigTransferError as error:
            self._say(f"{name} is trained again, the bucket did not give it: {error}")
        return (done / name).exists()

    def _fetch(self, name: str, files: list[str], folder: Path) -> None:
        assert self._target is not None
        with new_folder(folder, sealed=False) as partial:
            for file in files:
                data = self._target.get(f"{name}/{file}")
                if data is None:
                    raise CheckpointError(f"{self._place}/{name}/{file} vanished")
                (partial / file).write_bytes(data)
            try:
                read_tuned_meta(partial)  # verifies every file
            except CheckpointError as error:
                raise CheckpointError(f"{self._place}/{name}: {error}") from error

    def _send_all(self) -> None:
        while (folder := self._waiting.get()) is not None and not self._drops:
            try:
                self._send(folder)
            except BigTransferError as error:
                self._say(f"{folder.name} is kept here alone, the bucket did not take it: {error}")

    def _send(self, folder: Path) -> None:
        assert self._target is not None
        names = sorted(p.name for p in folder.iterdir() if p.name != MANIFEST_NAME)
        for name in (*names, MANIFEST_NAME):
            self._target.put(f"{folder.name}/{name}", folder / name)
        # Not before: until now it was the way back.
        state = _state(folder.name)
        for path in self._target.names():
            if path.startswith(f"{state}/"):
                self._target.remove(path)

    def _remove(self, name: str, files: list[str]) -> None:
        """Remove a folder, its manifest first: half of it is never taken for the whole."""
        assert self._target is not None
        try:
            for file in sorted(files, key=lambda f: Path(f).name != MANIFEST_NAME):
                self._target.remove(f"{name}/{file}" if file else name)
        except BigTransferError as error:
            self._say(f"{self._place}/{name} stays in the bucket: {error}")


def _state(name: str) -> str:
    return f"{name}.state"
