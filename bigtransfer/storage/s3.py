"""S3 through boto3: list, read, write with checksums; its errors in our words.

Addresses and secrets come from the environment and the usual files (`AWS_ENDPOINT_URL`,
`AWS_ACCESS_KEY_ID`, `~/.aws`), never from params.yaml. boto3 retries what it knows to be transient;
a body that is cut while it is read is fetched again here.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from bigtransfer.errors import ConfigError, InfrastructureError, StorageError
from bigtransfer.extras import require
from bigtransfer.retry import retry
from bigtransfer.storage.local import sha256_file
from bigtransfer.storage.tree import Contents, TreeFile, all_of

_TRIES = 5
_POOL = 64
_QUICK_SECONDS = 3
_PART_BYTES = 16 << 20
_SHA256 = "sha256"
"""Key of the object metadata that holds the digest of the whole object."""
_T = TypeVar("_T")


@dataclass(frozen=True)
class S3Path:
    """A place below a bucket; `/` joins as it does for paths."""

    bucket: str
    key: str

    @classmethod
    def parse(cls, url: str) -> S3Path:
        """Return the place of `s3://<bucket>/<key>`.

        Raises:
            ConfigError: If there is no bucket.
        """
        bucket, _, key = url.removeprefix("s3://").partition("/")
        if not url.startswith("s3://") or not bucket:
            raise ConfigError(f"address {url!r} names no bucket; write s3://<bucket>/<prefix>")
        return cls(bucket, key.strip("/"))

    def __truediv__(self, name: str) -> S3Path:
        return S3Path(self.bucket, f"{self.key}/{name}" if self.key else name)

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.key}"


@dataclass(frozen=True)
class S3Tree:
    """The objects below a prefix."""

    root: S3Path
    known: dict[str, TreeFile] = field(repr=False)
    """By path, where the listing is already known: reads then insist on its ETags."""
    _client: Any = field(repr=False)

    @classmethod
    def at(cls, url: str, known: dict[str, TreeFile]) -> S3Tree:
        """Open an address; nothing is sent yet."""
        return cls(S3Path.parse(url), known, client())

    @property
    def address(self) -> str:
        """Return the address."""
        return str(self.root)

    def contents(self) -> Contents:
        """List the objects; markers of empty folders are passed over."""
        prefix = f"{self.root.key}/" if self.root.key else ""
        files: list[TreeFile] = []
        with explained(self.root):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self.root.bucket, Prefix=prefix
            )
            for page in pages:
                files += [
                    TreeFile(o["Key"].removeprefix(prefix), int(o["Size"]), o["ETag"].strip('"'))
                    for o in page.get("Contents", [])
                    if not o["Key"].endswith("/")
                ]
        return Contents(sorted(files, key=lambda f: f.path), [])

    def read(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return bytes of an object, or of a part of it."""
        place = self.root / path
        request: dict[str, Any] = {"Bucket": place.bucket, "Key": place.key}
        if path in self.known:
            request["IfMatch"] = f'"{self.known[path].digest}"'
        if length == 0:
            return b""
        if offset or length is not None:
            last = "" if length is None else str(offset + length - 1)
            request["Range"] = f"bytes={offset}-{last}"

        with explained(place):
            data = _retried(lambda: _body(self._client.get_object(**request)))
        return all_of(data, length)


def client(*, seconds: float = 10, tries: int | None = None) -> Any:
    """Return a boto3 client that retries with growing, random pauses.

    Args:
        seconds: To wait for a connection.
        tries: Of each request; None: one, and five more.

    Raises:
        ConfigError: If the environment's settings cannot be used, or boto3 is not installed.
    """
    require("boto3", "an s3:// address")
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError

    try:
        return boto3.session.Session().client(
            "s3",
            config=Config(
                retries={
                    "total_max_attempts": 1 + _TRIES if tries is None else tries,
                    "mode": "standard",
                },
                max_pool_connections=_POOL,
                connect_timeout=seconds,
                read_timeout=6 * seconds,
            ),
        )
    except (BotoCoreError, ValueError) as error:
        raise ConfigError(f"S3 cannot be set up from the environment: {error}") from error


def exists_with(s3: Any, place: S3Path, sha256: str) -> bool:
    """Say whether an object of this digest is there already: an upload that need not be repeated.

    Raises:
        StorageError: If it may not be asked.
        InfrastructureError: If the storage does not answer.
    """
    head = described(s3, place)
    return head is not None and bool(head["Metadata"].get(_SHA256) == sha256)


def described(s3: Any, place: S3Path) -> Any:
    """Return what the storage says of an object; None where there is none.

    Raises:
        StorageError: If it may not be asked.
        InfrastructureError: If the storage does not answer.
    """
    from botocore.exceptions import ClientError

    with explained(place):
        try:
            return s3.head_object(Bucket=place.bucket, Key=place.key)
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
                return None
            raise


def upload(s3: Any, source: Path, place: S3Path) -> bool:
    """Send a file, in parts where it is large; the storage checks the sum of every part.

    An object of the same digest that is there already is left as it is, so that a repeated upload
    goes on where the first one ended.

    Returns:
        Whether anything was sent.

    Raises:
        StorageError: If the bucket is missing or may not be written.
        InfrastructureError: If the storage does not answer, or keeps cutting the upload.
    """
    from boto3.s3.transfer import TransferConfig

    sha256 = sha256_file(source)
    if exists_with(s3, place, sha256):
        return False
    with explained(place):
        _retried(
            lambda: s3.upload_file(
                str(source),
                place.bucket,
                place.key,
                ExtraArgs={"Metadata": {_SHA256: sha256}, "ChecksumAlgorithm": "SHA256"},
                Config=TransferConfig(
                    multipart_threshold=_PART_BYTES, multipart_chunksize=_PART_BYTES
                ),
            )
        )
    return True


def upload_bytes(s3: Any, data: bytes, place: S3Path) -> None:
    """Send a small object; the storage checks its sum.

    Raises:
        StorageError: If the bucket is missing or may not be written.
        InfrastructureError: If the storage does not answer.
    """
    digest = hashlib.sha256(data)
    with explained(place):
        s3.put_object(
            Bucket=place.bucket,
            Key=place.key,
            Body=data,
            Metadata={_SHA256: digest.hexdigest()},
            ChecksumSHA256=base64.b64encode(digest.digest()).decode(),
        )


def create(s3: Any, data: bytes, place: S3Path) -> bool:
    """Send a small object where there is none yet (`If-None-Match: *`).

    Returns:
        Whether it was sent; False: there is one already, whatever it holds.

    Raises:
        StorageError: If the bucket is missing or may not be written, or the storage does not know
            that condition.
        InfrastructureError: If the storage does not answer.
    """
    from botocore.exceptions import ClientError

    with explained(place):
        try:
            s3.put_object(Bucket=place.bucket, Key=place.key, Body=data, IfNoneMatch="*")
        except ClientError as error:
            code = error.response["ResponseMetadata"]["HTTPStatusCode"]
            if code == 412:
                return False
            if code == 501:
                raise StorageError(
                    f"{place}: the storage cannot write on a condition (If-None-Match)"
                ) from error
            raise
    return True


def names_below(s3: Any, place: S3Path) -> list[str]:
    """Return the names of the objects below a place, in order.

    Raises:
        StorageError: If the bucket is missing or may not be read.
        InfrastructureError: If the storage does not answer.
    """
    with explained(place):
        pages = s3.get_paginator("list_objects_v2").paginate(
            Bucket=place.bucket, Prefix=f"{place.key}/"
        )
        found = [one["Key"] for page in pages for one in page.get("Contents", ())]
    return sorted(key.removeprefix(f"{place.key}/") for key in found)


def download(s3: Any, place: S3Path) -> bytes | None:
    """Return an object, or None where there is none.

    Raises:
        StorageError: If the bucket is missing or may not be read.
        InfrastructureError: If the storage does not answer, or keeps cutting the body.
    """
    from botocore.exceptions import ClientError

    with explained(place):
        try:
            return _retried(lambda: _body(s3.get_object(Bucket=place.bucket, Key=place.key)))
        except ClientError as error:
            if error.response.get("Error", {}).get("Code") == "NoSuchKey":
                return None
            raise


def download_file(s3: Any, place: S3Path, path: Path) -> None:
    """Write an object to a file, in parts where it is large.

    Raises:
        StorageError: If there is no such object, or it may not be read.
        InfrastructureError: If the storage does not answer, or keeps cutting the body.
    """
    with explained(place):
        _retried(lambda: s3.download_file(place.bucket, place.key, str(path)))


def end_of(url: str, size: int = 1 << 16) -> bytes:
    """Return the last bytes of an object, or give up within seconds.

    Raises:
        StorageError: If it is not there or may not be read.
        InfrastructureError: If the storage does not answer.
    """
    place = S3Path.parse(url)
    with explained(place):
        answer = client(seconds=_QUICK_SECONDS, tries=1).get_object(
            Bucket=place.bucket, Key=place.key, Range=f"bytes=-{size}"
        )
        return _body(answer)


def delete(s3: Any, place: S3Path) -> None:
    """Remove an object, if it is there.

    Raises:
        StorageError: If the bucket is missing or may not be written.
        InfrastructureError: If the storage does not answer.
    """
    with explained(place):
        s3.delete_object(Bucket=place.bucket, Key=place.key)


def _body(answer: Any) -> bytes:
    body: bytes = answer["Body"].read()
    if len(body) != answer["ContentLength"]:
        raise ConnectionError(f"{len(body):,} of {answer['ContentLength']:,} bytes came")
    return body


def _retried(action: Callable[[], _T]) -> _T:
    """Repeat what was cut in the middle; boto3 itself retries only until a body begins."""
    return retry(action, may_help=_was_cut, pauses=[0.1 * 2**n for n in range(_TRIES - 1)])


def _was_cut(error: Exception) -> bool:
    from boto3.exceptions import S3UploadFailedError
    from botocore.exceptions import (
        ConnectionClosedError,
        IncompleteReadError,
        ReadTimeoutError,
        ResponseStreamingError,
    )

    if isinstance(error, S3UploadFailedError):
        refusals = ("NoSuchBucket", "AccessDenied", "Redirect")
        return not any(word in str(error) for word in refusals)
    return isinstance(
        error,
        ConnectionClosedError
        | IncompleteReadError
        | ReadTimeoutError
        | ResponseStreamingError
        | ConnectionError,
    )


_ADVICE = {
    "NoSuchBucket": "there is no such bucket; correct its name, or make it",
    "NoSuchKey": "there is no such object any more; fetch the listing again",
    "AccessDenied": "access is denied; give these credentials the right to list, read or write",
    "AllAccessDisabled": "access is denied; ask the bucket's owner",
    "InvalidAccessKeyId": "the access key is unknown; correct AWS_ACCESS_KEY_ID",
    "SignatureDoesNotMatch": "the secret key is wrong; correct AWS_SECRET_ACCESS_KEY",
    "ExpiredToken": "the credentials have expired; log in again",
    "PermanentRedirect": "the bucket is in another region; set AWS_REGION to it",
    "AuthorizationHeaderMalformed": "the bucket is in another region; set AWS_REGION to it",
    "IllegalLocationConstraintException": "the bucket is in another region; set AWS_REGION to it",
    "PreconditionFailed": "the object changed since it was listed; run the stage `fetch` again "
    "(`dvc repro -s -f fetch@<name>`)",
    "InvalidBucketName": "that is no bucket name; correct it",
    "InvalidRange": "the object is shorter than listed; run the stage `fetch` again",
}
_BY_STATUS = {
    301: "PermanentRedirect", 403: "AccessDenied", 404: "NoSuchKey", 412: "PreconditionFailed",
    416: "InvalidRange",
}  # fmt: skip


@contextmanager
def explained(place: S3Path) -> Iterator[None]:
    """Turn boto3's errors into ours.

    Raises:
        StorageError: If it is the user's to mend.
        InfrastructureError: If the storage failed and may work the next time.
    """
    from boto3.exceptions import S3UploadFailedError
    from botocore.exceptions import (
        BotoCoreError,
        ClientError,
        NoCredentialsError,
        NoRegionError,
        ParamValidationError,
    )

    try:
        yield
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        advice = _ADVICE.get(code) or _ADVICE.get(_BY_STATUS.get(status, ""))
        if advice is None or status >= 500:
            raise InfrastructureError(
                f"{place}: the storage answered {code or status} and went on doing so; try later"
            ) from error
        raise StorageError(f"{place}: {advice}") from error
    except (NoCredentialsError, NoRegionError) as error:
        raise StorageError(
            f"{place}: {' '.join(str(error).split())}; set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or a profile (AWS_PROFILE)"
        ) from error
    except ParamValidationError as error:
        raise StorageError(
            f"{place}: no valid address ({' '.join(str(error).split())}); correct it"
        ) from error
    except S3UploadFailedError as error:
        text = str(error)
        known = next((advice for code, advice in _ADVICE.items() if code in text), None)
        if known:
            raise StorageError(f"{place}: {known}") from error
        raise InfrastructureError(f"{place}: {' '.join(text.split())}; try later") from error
    except (BotoCoreError, ConnectionError) as error:
        raise InfrastructureError(
            f"{place}: the storage does not answer ({' '.join(str(error).split())}); try later, or "
            "correct AWS_ENDPOINT_URL"
        ) from error
