"""Try what a training does with a bucket: write, read, list, upload in parts, give one up."""

from __future__ import annotations

import os
import uuid
from typing import Any

from bigtransfer.errors import StorageError
from bigtransfer.storage.s3 import S3Path, client, explained

_PART_BYTES = 5 << 20
"""The least that S3 takes for a part that is not the last."""


def probe(address: str) -> str:
    """Do it all below an address, and leave nothing behind.

    Returns:
        What holds, in words.

    Raises:
        StorageError: Names what the storage does not do.
        InfrastructureError: If it does not answer.
    """
    place = S3Path.parse(address) / f"bigtransfer-probe-{uuid.uuid4().hex[:12]}"
    s3 = client(tries=2)
    at = {"Bucket": place.bucket, "Key": place.key}
    with explained(place):
        data = os.urandom(1024)
        s3.put_object(**at, Body=data, ChecksumAlgorithm="SHA256")
        try:
            if s3.get_object(**at)["Body"].read() != data:
                raise StorageError("what was written is read otherwise")
            listed = s3.list_objects_v2(Bucket=place.bucket, Prefix=place.key)
            if not listed.get("Contents"):
                raise StorageError("what was written is not listed")
            _in_parts(s3, at)
        finally:
            s3.delete_object(**at)
    return "put, get, list, upload in parts, abort and delete work"


def _in_parts(s3: Any, at: dict[str, str]) -> None:
    begin = s3.create_multipart_upload
    given_up = begin(**at)["UploadId"]
    s3.abort_multipart_upload(**at, UploadId=given_up)
    upload = begin(**at, ChecksumAlgorithm="SHA256")["UploadId"]
    parts = []
    for number, size in ((1, _PART_BYTES), (2, 10)):
        sent = s3.upload_part(
            **at, UploadId=upload, PartNumber=number, Body=bytes(size), ChecksumAlgorithm="SHA256"
        )
        known = {"ChecksumSHA256": sent["ChecksumSHA256"]} if "ChecksumSHA256" in sent else {}
        parts.append({"PartNumber": number, "ETag": sent["ETag"], **known})
    s3.complete_multipart_upload(**at, UploadId=upload, MultipartUpload={"Parts": parts})
    size = s3.head_object(**at)["ContentLength"]
    if size != _PART_BYTES + 10:
        raise StorageError(f"an upload in parts of {_PART_BYTES + 10} bytes is one of {size}")
