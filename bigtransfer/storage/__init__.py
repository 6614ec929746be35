"""What every room does to the disk and to remote storage, done once.

`local`: atomic files and sealed folders. `tree`, `trees`: reading files below an address, wherever
it is. `places`: writing there. `download`: one file by HTTP. `s3`, `dvc_version`: the only places
that talk to boto3 and to DVC.
"""

from bigtransfer.storage.local import (
    MANIFEST_NAME,
    MANIFEST_SCHEMA,
    FileFacts,
    as_csv,
    as_json,
    digest_of,
    explained,
    free_bytes,
    lock,
    new_file,
    new_folder,
    read_json,
    seal,
    sha256_file,
    sha256_json,
    verify_folder,
    write_text,
)

__all__ = [
    "MANIFEST_NAME",
    "MANIFEST_SCHEMA",
    "FileFacts",
    "as_csv",
    "as_json",
    "digest_of",
    "explained",
    "free_bytes",
    "lock",
    "new_file",
    "new_folder",
    "read_json",
    "seal",
    "sha256_file",
    "sha256_json",
    "verify_folder",
    "write_text",
]
