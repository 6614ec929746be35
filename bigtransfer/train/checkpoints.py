"""The resumable checkpoints of one run: sealed folders, in `.work/` and mirrored to a bucket.

`step-00000100/` holds `weights.safetensors`, `momentum.safetensors`, `metrics.jsonl` (the journal
up to there), `meta.json` and `MANIFEST.json`. A folder is written beside, flushed, read back and
compared, sealed, renamed. The newest two and the best are kept; nothing is removed before two are
known to be good.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bigtransfer.errors import BigTransferError, CheckpointError, InfrastructureError, StorageError
from bigtransfer.model.checkpoint import read_tensors, save_tensors
from bigtransfer.storage import (
    MANIFEST_NAME,
    as_json,
    free_bytes,
    new_folder,
    read_json,
    seal,
    verify_folder,
)
from bigtransfer.storage.places import Target

SCHEMA = 2
_NAME = re.compile(r"step-(\d{8,})")
GROUPS = ("weights", "momentum")
JOURNAL = "metrics.jsonl"
_KEPT = 2
_CHUNK_BYTES = 1 << 22
_ROOM = _KEPT + 2
"""Checkpoints that lie there at a time: those kept, the best, and the one being written."""

State = dict[str, dict[str, Tensor]]
"""Group (`weights`, `momentum`) -> name -> tensor."""
Warn = Callable[[str], None]


class Checkpoints:
    """What is kept of one run."""

    def __init__(self, folder: Path, mirror: Target | None, warn: Warn) -> None:
        """Open the folder of a run; partial checkpoints of a killed process are removed.

        Args:
            folder: Of this run alone.
            mirror: Place of this run alone in a bucket.
            warn: Called with one line for everything that is passed over.
        """
        self.folder, self._mirror, self._warn = folder, mirror, warn
        self._sender: threading.Thread | None = None
        self._next: int | None = None
        """Step that is to be sent to the mirror next."""
        self._good: dict[int, float | None] = {}
        """Step -> its score, of those that this process wrote or verified."""
        for partial in folder.glob(".step-*.partial-*"):
            shutil.rmtree(partial, ignore_errors=True)

    def require_room(self, state_bytes: int) -> None:
        """Refuse to begin where the checkpoints will not fit.

        Raises:
            InfrastructureError: If the disk has too little room; names what is needed.
        """
        needed = (_ROOM - min(len(self._local()), _ROOM - 1)) * state_bytes
        free = free_bytes(self.folder)
        if free < needed:
            raise InfrastructureError(
                f"{str(self.folder)!r} needs {needed:,} bytes for checkpoints of {state_bytes:,} "
                f"bytes, and {free:,} are free; free some space and run again"
            )

    def write(
        self, step: int, state: State, meta: Mapping[str, Any], journal: Path, score: float | None
    ) -> None:
        """Write a checkpoint, then forget all but the newest two and the best.

        Args:
            step: Finished steps.
            state: Tensors on the CPU that nobody changes meanwhile.
            meta: JSON values.
            journal: Metrics journal to keep with it.
            score: Of the network at this step, where it was evaluated; higher is better.

        Raises:
            CheckpointError: If the weights are no longer numbers, or what was read back differs.
            InfrastructureError: If the disk is full.
        """
        _refuse_nan(step, state)
        if step in self._good:
            return  # what a training is at a step is one thing; the good folder stays untouched
        path = self._path(step)
        with new_folder(path, sealed=False) as partial:
            known = {}
            for group, tensors in state.items():
                name = f"{group}.safetensors"
                known[name] = _written(partial / name, tensors)
            shutil.copyfile(journal, partial / JOURNAL)
            whole = {**meta, "schema": SCHEMA, "step": step, "score": score}
            (partial / "meta.json").write_text(as_json(whole), "utf-8")
            seal(partial, known)
        self._good[step] = score
        self._forget()
        if self._mirror is not None:
            self._mirror_soon(step)

    def newest(
        self, fits: Callable[[Path, Mapping[str, Any]], State], *, anew: bool = False
    ) -> tuple[Path, State] | None:
        """Return the newest checkpoint that is undamaged and fits, and what `fits` made of it.

        Args:
            fits: Reads the state of a verified folder; raises `CheckpointError` if it is not one
                of this run.
            anew: Whether the run may begin anew where there are checkpoints and none can be used.

        Raises:
            CheckpointError: If there are some, none can be used, and it may not.
        """
        remote = self._remote_without_halves()
        faults: list[str] = []
        for step in sorted(set(self._local()) | set(remote), reverse=True):
            for fetched in (False, True):
                if (fetched and step not in remote) or not (fetched or self._path(step).is_dir()):
                    continue
                try:
                    if fetched:
                        self._fetch(step, remote[step])
                    folder = self._path(step)
                    meta = _verified(folder)
                    state = fits(folder, meta)
                except CheckpointError as error:
                    faults.append(str(error))
                    self._warn(f"passing over a checkpoint: {error}")
                    continue
                self._good[step] = meta["score"]
                self._note_others(step)
                return folder, state
        if faults and not anew:
            raise CheckpointError(
                f"none of the {len(faults)} checkpoints under {str(self.folder)!r} can be used; "
                f"the last fault: {faults[-1]} (to begin this training anew, remove that folder"
                + (f" and {self._mirror.address})" if self._mirror else ")")
            )
        return None

    def close(self) -> None:
        """Wait for the checkpoint that is on its way to the mirror; no other is sent any more."""
        self._next = None
        self.wait_for_mirror()

    def clear(self, *, keep_mirror: bool = False) -> None:
        """Remove all: the run is finished and its output is in place.

        Args:
            keep_mirror: Whether the last one stays in the mirror.
        """
        self.close()
        shutil.rmtree(self.folder, ignore_errors=True)
        try:
            mirrored = self._in_mirror()
            whole = [step for step, files in mirrored.items() if MANIFEST_NAME in files]
            last = max(whole, default=None) if keep_mirror else None
            for step, files in mirrored.items():
                if step != last:
                    self._forget_remote(step, files)
            if last is not None and self._mirror is not None:
                self._warn(
                    f"step-{last:08d} stays at {self._mirror.address}, till somebody removes it"
                )
        except BigTransferError as error:
            self._warn(f"the checkpoints stay in the bucket: {error}")

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def _local(self) -> list[int]:
        return sorted(
            int(m[1]) for p in self.folder.glob("step-*") if (m := _NAME.fullmatch(p.name))
        )

    def _note_others(self, newest: int) -> None:
        """Learn which older ones are good, so that they are kept as a way back."""
        for step in self._local():
            if step < newest:
                try:
                    self._good[step] = _verified(self._path(step))["score"]
                except CheckpointError:
                    continue

    @property
    def _best(self) -> int | None:
        scored = {step: score for step, score in self._good.items() if score is not None}
        return max(scored, key=lambda step: (scored[step], step), default=None)

    def _forget(self) -> None:
        if len(self._good) < _KEPT:
            return
        kept = {*sorted(self._good)[-_KEPT:], self._best}
        for step in self._local():
            if step not in kept:
                shutil.rmtree(self._path(step), ignore_errors=True)
                self._good.pop(step, None)

    def _mirror_soon(self, step: int) -> None:
        """Send a checkpoint in the background; the newest waits for the one that is on its way."""
        self._next = step
        if self._sender is None or not self._sender.is_alive():
            self._sender = threading.Thread(target=self._send_all, daemon=True)
            self._sender.start()

    def _send_all(self) -> None:
        while (step := self._next) is not None:
            self._next = None
            try:
                self._send(step)
            except BigTransferError as error:
                self._warn(
                    f"step-{step:08d} is kept here alone, the bucket did not take it: {error}"
                )

    def _send(self, step: int) -> None:
        """Send a checkpoint, its manifest last; then forget the bucket's own older ones.

        Another attempt of the same run may take what is on its way for what a lost machine left
        half sent, and remove it: so it is looked at before the manifest goes, and after.
        """
        assert self._mirror is not None
        path = self._path(step)
        names = sorted(p.name for p in path.iterdir() if p.name != MANIFEST_NAME)
        for name in names:
            self._mirror.put(f"{path.name}/{name}", path / name)
        for _ in range(2):
            there = self._in_mirror().get(step, [])
            missing = [name for name in (*names, MANIFEST_NAME) if name not in there]
            for name in missing:
                self._mirror.put(f"{path.name}/{name}", path / name)
        remote = self._remote()
        for old in sorted(remote)[:-_KEPT]:
            if old != self._best:
                self._forget_remote(old, remote[old])

    def wait_for_mirror(self) -> None:
        """Wait until the bucket has the newest checkpoint, or has refused it."""
        if self._sender is not None:
            self._sender.join()

    def _remote(self) -> dict[int, list[str]]:
        """Return step -> its files, of the complete ones in the bucket."""
        found = self._in_mirror()
        return {step: files for step, files in found.items() if MANIFEST_NAME in files}

    def _remote_without_halves(self) -> dict[int, list[str]]:
        """Return the same; what a lost machine had half sent is removed."""
        found = self._in_mirror()
        halves = [step for step, files in found.items() if MANIFEST_NAME not in files]
        try:
            for step in halves:
                self._forget_remote(step, found[step])
        except BigTransferError as error:
            self._warn(f"half a checkpoint stays in the bucket: {error}")
        return {step: files for step, files in found.items() if step not in halves}

    def _in_mirror(self) -> dict[int, list[str]]:
        """Return step -> its files, complete or not, in the bucket."""
        if self._mirror is None:
            return {}
        found: dict[int, list[str]] = {}
        for path in self._mirror.names():
            name, _, rest = path.partition("/")
            if rest and (match := _NAME.fullmatch(name)):
                found.setdefault(int(match[1]), []).append(rest)
        return found

    def _fetch(self, step: int, files: list[str]) -> None:
        """Bring a checkpoint of the bucket here."""
        assert self._mirror is not None
        began = time.monotonic()
        name = self._path(step).name
        with new_folder(self._path(step), sealed=False) as partial:
            for file in files:
                data = self._mirror.get(f"{name}/{file}")
                if data is None:
                    raise CheckpointError(f"{self._mirror.address}/{name}/{file} vanished")
                (partial / file).write_bytes(data)
            _verified(partial)
        seconds = time.monotonic() - began
        self._warn(f"{name} came from {self._mirror.address} in {seconds:.1f} s")

    def _forget_remote(self, step: int, files: list[str]) -> None:
        assert self._mirror is not None
        name = self._path(step).name
        for file in (MANIFEST_NAME, *(f for f in files if f != MANIFEST_NAME)):
            self._mirror.remove(f"{name}/{file}")


def read_state(folder: Path) -> State:
    """Return the tensors of a verified checkpoint.

    Raises:
        CheckpointError: If they cannot be read.
    """
    return {group: read_tensors(folder, group) for group in GROUPS}


def is_finite(tensor: Tensor) -> bool:
    """Say whether a tensor holds neither NaN nor Inf."""
    if not tensor.is_floating_point() or bool(torch.isfinite(tensor.sum())):
        return True  # one pass without a temporary; the sum of good numbers hardly overflows
    return bool(torch.isfinite(tensor).all())


def _verified(folder: Path) -> Mapping[str, Any]:
    try:
        verify_folder(folder, CheckpointError)
    except OSError as error:
        raise CheckpointError(f"{str(folder)!r} cannot be read: {error.strerror}") from error
    try:
        meta: Mapping[str, Any] = read_json(folder / "meta.json")
        schema, step = meta["schema"], meta["step"]
    except (StorageError, KeyError, TypeError) as error:
        raise CheckpointError(f"{str(folder)!r} has no usable meta.json; remove it") from error
    if schema != SCHEMA:
        whose = "a newer" if isinstance(schema, int) and schema > SCHEMA else "another"
        raise CheckpointError(
            f"{str(folder)!r} was written by {whose} version (schema {schema!r}, this one reads "
            f"{SCHEMA}); use that version, or remove it"
        )
    if folder.name.startswith("step-") and folder.name != f"step-{step:08d}":
        raise CheckpointError(f"{str(folder)!r} holds step {step}, not what its name says")
    return meta


def _refuse_nan(step: int, state: State) -> None:
    for group, tensors in state.items():
        for name, tensor in tensors.items():
            if not is_finite(tensor):
                raise CheckpointError(
                    f"after step {step:,} the {group} of {name!r} hold NaN or Inf; no checkpoint "
                    "was written of that, the one before it is kept. Lower 'base_lr' or lengthen "
                    "the warm-up"
                )


def _written(file: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write tensors, flush, read back and compare; return the SHA-256 of what was read.

    The training runs beside this: chunks leave its memory and the interpreter to it.
    """
    save_tensors(tensors, file)
    digest = hashlib.sha256()
    chunk = torch.empty(_CHUNK_BYTES, dtype=torch.uint8)
    bytes_of_chunk: Any = chunk.numpy()
    with file.open("rb", buffering=0) as handle:
        os.fsync(handle.fileno())
        length = handle.read(8)
        text = handle.read(int.from_bytes(length, "little"))
        digest.update(length + text)
        header = json.loads(text)
        names = (name for name in header if name != "__metadata__")
        for name in sorted(names, key=lambda n: header[n]["data_offsets"]):
            meant = tensors[name].flatten().view(torch.uint8)
            for at in range(0, len(meant), _CHUNK_BYTES):
                count = handle.readinto(bytes_of_chunk)
                handle.seek(min(0, len(meant) - at - count), os.SEEK_CUR)  # not into the next one
                count = min(count, len(meant) - at)
                digest.update(bytes_of_chunk[:count])
                if not torch.equal(chunk[:count], meant[at : at + _CHUNK_BYTES]):
                    raise CheckpointError(
                        f"{str(file)!r}: {name!r} read back differs from what was written; check "
                        "the disk"
                    )
    return digest.hexdigest()
