"""Arrays of MATLAB files of version 5, as SVHN and Flowers 102 come in."""

from __future__ import annotations

import io
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bigtransfer.data.vtab.opened import needed
from bigtransfer.errors import DatasetError

if TYPE_CHECKING:
    from numpy.typing import NDArray


def load_mat(data: bytes, keys: Sequence[str], name: str) -> dict[str, NDArray[Any]]:
    """Return arrays of a file.

    Args:
        data: Its bytes.
        keys: Names of the arrays.
        name: Of the file, for messages.

    Raises:
        DatasetError: If it is no such file, is damaged, or lacks an array; if SciPy is missing.
    """
    scipy = needed("scipy.io", "scipy", f"{name!r} (MATLAB)")
    faults = (ValueError, TypeError, IndexError, KeyError, OSError, EOFError, NotImplementedError,
              zlib.error, scipy.matlab.MatReadError)  # fmt: skip
    try:
        tables: dict[str, NDArray[Any]] = scipy.loadmat(io.BytesIO(data), variable_names=keys)
    except faults as error:
        raise DatasetError(f"{name!r} is no MATLAB file ({error}); fetch it again") from error
    for key in keys:
        if key not in tables:
            raise DatasetError(f"{name!r} has no {key!r}: it is not the authors' file")
    return {key: tables[key] for key in keys}
