"""What all artifacts that are a JSON file have in common: a schema number, reading, writing."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Self

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from bigtransfer.errors import BigTransferError, StorageError
from bigtransfer.storage import as_json, read_json, write_text

Json = dict[str, JsonValue]
"""A JSON object of which this program need not know more."""


class Part(BaseModel):
    """A value within an artifact."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Artifact(Part):
    """A JSON file of a fixed name; what stands in it was written by this program.

    Keys that are not known are an error of the file, because a newer program raises the schema.
    """

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
        return cls.parse(read_json(path), str(path))

    @classmethod
    def parse(cls, raw: object, where: str) -> Self:
        """Make it of a JSON value.

        Args:
            raw: What the file holds.
            where: The file, for messages.

        Raises:
            BigTransferError: As `read`.
        """
        if not isinstance(raw, dict):
            raise cls.REFUSAL(f"{where!r} is not {cls.WHAT}; make it anew: `{cls.MAKER}`")
        raw = dict(raw)
        schema = raw.pop("schema", 1)  # before there was one, it was the first
        if not isinstance(schema, int) or schema > cls.SCHEMA:
            raise cls.REFUSAL(
                f"{where!r} was written by a newer version of this program (schema {schema!r}, "
                f"this one knows {cls.SCHEMA}); update it, or make the file anew: `{cls.MAKER}`"
            )
        try:
            if schema < cls.SCHEMA:
                raw = cls.upgraded(raw, schema)
            return cls.model_validate_json(as_json(raw))
        except ValidationError as error:
            fault = error.errors()[0]
            place = ".".join(map(str, fault["loc"])) or "it"
            raise cls._damaged(where, f"{place}: {fault['msg'].lower()}") from error
        except (KeyError, TypeError, AttributeError) as error:  # of an upgrade
            raise cls._damaged(where, f"lacks {error}") from error

    @classmethod
    def upgraded(cls, raw: Json, schema: int) -> Json:
        """Return what an older schema held as the newest would say it."""
        return raw

    @classmethod
    def _damaged(cls, where: str, fault: str) -> BigTransferError:
        return cls.REFUSAL(
            f"{where!r} is not {cls.WHAT}, or is damaged ({fault}); make it anew: `{cls.MAKER}`"
        )

    def text(self) -> str:
        """Return what its file holds."""
        return as_json({"schema": self.SCHEMA, **self.model_dump(mode="json")})

    def write(self, folder: Path) -> None:
        """Write it into a folder, beside its name and renamed."""
        self.write_file(folder / self.FILE)

    def write_file(self, path: Path) -> None:
        """Write it under whatever name."""
        write_text(path, self.text())
