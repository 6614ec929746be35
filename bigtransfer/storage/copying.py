"""Bring a file or a folder from an address here, whole and checked."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

from bigtransfer.errors import ConfigError, StorageError, did_you_mean
from bigtransfer.storage.local import (
    MANIFEST_NAME,
    digest_of,
    new_folder,
    sha256_file,
    verify_folder,
)
from bigtransfer.storage.tree import safe_name

_THREADS = 8
_SCHEMES = ("s3", "https", "http", "file")


def copy_here(address: str, folder: Path, sha256: str | None = None) -> str:
    """Bring what lies at an address into a folder.

    A sealed folder is checked against its MANIFEST.json, file by file.

    Args:
        address: Of a file or a folder at `s3://…`, of a file at `https://…`, or a local path.
        folder: Written beside and renamed when complete; a single file lies in it by its name.
        sha256: What it must be: of the file, or of the folder's MANIFEST.json.

    Returns:
        The SHA-256 of it.

    Raises:
        ConfigError: If the address cannot be understood.
        StorageError: If nothing is there, it is damaged, or it is not what was asked for.
        InfrastructureError: If the storage does not answer.
    """
    with new_folder(folder, sealed=False) as partial:
        scheme = urlsplit(address).scheme if "://" in address else "file"
        if scheme == "s3":
            _from_s3(address, partial)
        elif scheme in ("http", "https"):
            from bigtransfer.storage.download import fetch

            name = urlsplit(address).path.rpartition("/")[2] or "weights"
            fetch(address, partial / name)
            for path in partial.iterdir():  # the record of the download, and its lock
                if path.name != name:
                    path.unlink()
        elif scheme == "file":
            _from_here(Path(address.removeprefix("file://")), partial)
        else:
            raise ConfigError(
                f"address {address!r}: unknown scheme {scheme!r}{did_you_mean(scheme, _SCHEMES)}; "
                "give s3://…, https://…, or a path"
            )
        return checked(partial, address, sha256)


def digest_when_copied(path: Path) -> str:
    """Return the digest that `copy_here` finds of a file or a folder that is here.

    Raises:
        StorageError: If it is damaged.
    """
    return sha256_file(path) if path.is_file() else checked(path, str(path), None)


def checked(folder: Path, address: str, sha256: str | None) -> str:
    """Return the SHA-256 of what was brought: of its manifest, of its only file, or of all of it.

    Raises:
        StorageError: If it is damaged, or not what was asked for.
    """
    files = [path for path in folder.rglob("*") if path.is_file()]
    if (folder / MANIFEST_NAME).is_file():
        found = verify_folder(folder)
    else:
        found = digest_of(files[0] if len(files) == 1 else folder)
    if sha256 is not None and found != sha256:
        raise StorageError(
            f"{address!r} has the sha256 {found}, but {sha256} was asked for; correct the address "
            "or the digest"
        )
    return found


def _from_s3(address: str, folder: Path) -> None:
    from bigtransfer.storage.s3 import S3Path, S3Tree, client, described, download_file

    place, s3 = S3Path.parse(address), client()
    files = S3Tree(place, {}, s3).contents().files
    if not files and (not place.key or described(s3, place) is None):
        raise StorageError(f"{address!r} holds nothing; correct the bucket, prefix or name")
    if not files:  # no folder, so it is an object
        download_file(s3, place, folder / (place.key.rpartition("/")[2] or "object"))
        return
    if bad := next((f.path for f in files if not safe_name(f.path)), None):
        raise StorageError(f"{address}: the name {bad!r} leads out of the folder")
    for file in files:
        (folder / file.path).parent.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(_THREADS) as pool:
        for _ in pool.map(lambda f: download_file(s3, place / f.path, folder / f.path), files):
            pass


def _from_here(path: Path, folder: Path) -> None:
    if path.is_dir():
        shutil.copytree(path, folder, dirs_exist_ok=True)
    elif path.is_file():
        shutil.copy(path, folder / path.name)
    else:
        raise StorageError(f"{str(path)!r} does not exist; correct the path")
