"""What MLflow runs of a registered model: pictures in base64 in, answers with their labels out.

MLflow copies this file into the model's folder and executes it there (models from code): nothing is
pickled. The network lies beside it as a checkpoint; the code is that of the installed bigtransfer.
"""

from __future__ import annotations

import base64
import binascii
from threading import Lock
from typing import Any

import mlflow
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

from bigtransfer.api.model import Model, Prediction

_TOP = 5
_NAMED = 20
"""Rows that a refusal names."""


class Refused(MlflowException):  # type: ignore[misc]
    """A request with a picture that cannot be read; HTTP 400.

    MLflow's server writes the whole request before the reason of an error. This one stays one line.
    """

    def __init__(self, reason: str) -> None:
        self._reason = reason
        super().__init__(reason, error_code=INVALID_PARAMETER_VALUE)

    @property
    def message(self) -> str:
        """Return the reason alone."""
        return self._reason

    @message.setter
    def message(self, text: str) -> None:
        pass


class ServedModel(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """Answers a table with one column, `image`: a picture's file in base64."""

    def load_context(self, context: Any) -> None:
        """Open the network that lies with the model.

        Raises:
            CheckpointError: If it is damaged.
        """
        self._model = Model(context.artifacts["checkpoint"])
        self._one_at_a_time = Lock()  # a recorded network has one place for its input

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """Answer each row.

        Args:
            context: Of MLflow.
            model_input: With a column `image`. (MLflow reads its type; of others it would warn.)
            params: `top`: how many guesses `top_k` names.

        Raises:
            Refused: If a row cannot be read; names all such rows, and no row is answered.
        """
        top = int((params or {}).get("top", _TOP))
        if top < 1:
            raise Refused(f"top is {top}; it must be 1 or more")
        faults: dict[int, str] = {}
        pictures: list[bytes] = []
        for row, text in enumerate(model_input["image"].tolist()):
            try:
                pictures.append(decoded(text))
            except ValueError as error:
                faults[row] = str(error)
                pictures.append(b"")
        # Rows with a fault are looked at again below: the others must be named with them.
        with self._one_at_a_time:
            found = self._model.predict(pictures) if pictures else []
        faults |= {
            row: one.fault for row, one in enumerate(found) if one.fault and row not in faults
        }
        if faults:
            raise Refused(_refusal(faults, len(pictures)))
        several = self._model.meta.multi_label
        return [answer(one, top, several=several) for one in found]


def decoded(text: object) -> bytes:
    """Return the file that a cell holds in base64, with or without `data:…;base64,` before it.

    Raises:
        ValueError: If it is not base64, or empty.
    """
    if not isinstance(text, str) or not text:
        raise ValueError("holds no picture")
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        # Line ends, as `base64 FILE` writes them; all else that is foreign is refused.
        found = base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("is not base64 of a picture's file") from None
    if not found:
        raise ValueError("holds no picture")
    return found


def answer(one: Prediction, top: int, *, several: bool) -> dict[str, Any]:
    """Return what is said of one picture, as the model's signature declares it.

    Args:
        one: The prediction.
        top: Guesses to name.
        several: Whether an image may have several labels.
    """
    guesses = [
        {"label": label, "probability": probability}
        for label, probability in list(one.probabilities.items())[:top]
    ]
    if several:
        chances = [one.probabilities[label] for label in one.labels]
        return {"labels": [*one.labels], "probabilities": chances, "top_k": guesses}
    return {
        "label": one.label,
        "probability": one.probability,
        "sure": bool(one.sure),  # what nobody calibrated is not called sure
        "top_k": guesses,
    }


def _refusal(faults: dict[int, str], rows: int) -> str:
    named = [f"row {row} {reason}" for row, reason in sorted(faults.items())]
    more = [f"and {len(named) - _NAMED} more"] if len(named) > _NAMED else []
    said = "; ".join(named[:_NAMED] + more)
    good = [str(row) for row in range(rows) if row not in faults]
    if not good:
        return f"{said}; no row can be read"
    most = ", ".join(good[:_NAMED]) + (", …" if len(good) > _NAMED else "")
    return f"{said}; {len(good)} of {rows} rows can be read ({most}): send these alone"


if __name__ != "bigtransfer.api.served.model_code":  # MLflow executes it under a name of its own
    mlflow.models.set_model(ServedModel())
