"""What all artifacts that are a JSON file have in common: a schema number, reading, writing."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from bigtransfer.errors import BigTransferError, StorageError
from bigtransfer.storage import as_json, read_json, write_text


class Artifact(BaseModel):
    """A JSON file of a fixed name; what stands in it was written by this program.

    Keys that are not known are an error of the file, because a newer program raises the schema.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    FILE: ClassVar[str]
    """Its name."""
    WHAT: ClassVar[str]
    """What it is, for people, e.g. `the list of fine-tuned networks`."""
    MAKER: ClassVar[str]
    """What makes it anew, e.g. `finetune`."""
    SCHEMA: ClassVar[int] = 1
    """The newest that this program knows, and the one that it writes."""
    REFUSAL: ClassVar[type[BigTransferError]] = StorageError

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read it from a folder.

        Raises:
            StorageError: If there is no such file, or it is no JSON.
            BigTransferError: The kind of `REFUSAL`, in one line, if it is something else, damaged,
                or written by a newer version.
        """
        return cls.read_file(folder / cls.FILE)

    @classmethod
    def read_file(cls, path: Path) -> Self:
        """Read it from a file of whatever name; raises as `read` does."""
        raw = read_json(path)
        if not isinstance(raw, dict):
            raise cls.REFUSAL(f"{str(path)!r} is not {cls.WHAT}; make it anew: `{cls.MAKER}`")
        schema = raw.pop("schema", 1)  # before there was one, it was the first
        if not isinstance(schema, int) or schema > cls.SCHEMA:
            raise cls.REFUSAL(
                f"{str(path)!r} was written by a newer version of this program (schema {schema!r}, "
                f"this one knows {cls.SCHEMA}); update it, or make the file anew: `{cls.MAKER}`"
            )
        try:
            return cls.model_validate_json(as_json(raw))
        except ValidationError as error:
            fault = error.errors()[0]
            place = ".".join(map(str, fault["loc"])) or "it"
            raise cls.REFUSAL(
                f"{str(path)!r} is not {cls.WHAT}, or is damaged ({place}: "
                f"{fault['msg'].lower()}); make it anew: `{cls.MAKER}`"
            ) from error

    def write(self, folder: Path) -> None:
        """Write it into a folder, beside its name and renamed."""
        self.write_file(folder / self.FILE)

    def write_file(self, path: Path) -> None:
        """Write it under whatever name."""
        write_text(path, as_json({"schema": self.SCHEMA, **self.model_dump(mode="json")}))
