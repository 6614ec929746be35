"""A small folder that stands for what lies in a bucket: its address and its digest."""

from __future__ import annotations

from pathlib import Path

from bigtransfer.errors import BigTransferError, StorageError
from bigtransfer.storage.local import read_json, verify_folder

POINTER = "address.json"
"""File of such a folder."""


def pointed_to(
    folder: Path, error: type[BigTransferError] = StorageError
) -> tuple[str, str] | None:
    """Return address and digest of what a folder stands for; None if it is the thing itself.

    Raises:
        BigTransferError: Of the given kind, if the folder is damaged.
    """
    if not (folder / POINTER).is_file():
        return None
    verify_folder(folder, error)
    facts = read_json(folder / POINTER)
    try:
        return str(facts["address"]), str(facts["digest"])
    except (KeyError, TypeError) as fault:
        raise error(f"{str(folder / POINTER)!r} names no address; make it anew") from fault
