"""A registered model behind the V2 protocol: what MLServer runs in the image `serve`, for KServe.

MLSERVER_MODEL_IMPLEMENTATION names it, MLSERVER_MODEL_URI the folder of MLflow that it serves.
MLServer's own runtime for MLflow takes no list of answers, and ends a request with a picture that
cannot be read in HTTP 500.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlserver import MLModel
from mlserver.codecs import NumpyCodec, StringCodec
from mlserver.errors import InferenceError
from mlserver.types import InferenceRequest, InferenceResponse, MetadataTensor, ResponseOutput
from mlserver.utils import get_model_uri

_IMAGE, _TOP = "image", "top"
_KINDS = {"string": "BYTES", "double": "FP64", "boolean": "BOOL"}


class Runtime(MLModel):  # type: ignore[misc]
    """Answers one input, `image`: BYTES, a picture's file in base64 each."""

    async def load(self) -> bool:
        """Open the model folder.

        Returns:
            Whether it can answer.
        """
        folder = await get_model_uri(self._settings)
        self._model = mlflow.pyfunc.load_model(str(Path(folder)))
        columns = self._model.metadata.get_output_schema().to_dict()
        # A list of guesses is said as JSON: the protocol knows tensors alone.
        self._outputs = {one["name"]: _KINDS.get(one["type"], "BYTES") for one in columns}
        self.inputs = [_tensor(_IMAGE, "BYTES")]
        self.outputs = [_tensor(name, kind) for name, kind in self._outputs.items()]
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Answer each picture, in the order in which they came.

        Args:
            payload: With an input `image`; its parameter `top` sets how many guesses `top_k` names.

        Returns:
            Outputs of the model's signature; what is no number is a string, lists are JSON.

        Raises:
            InferenceError: If there is no such input, or a picture cannot be read (HTTP 400).
        """
        given = [one for one in payload.inputs if one.name == _IMAGE]
        if len(given) != 1 or len(payload.inputs) != 1:
            names = ", ".join(repr(one.name) for one in payload.inputs)
            raise InferenceError(f"one input {_IMAGE!r} is wanted, of type BYTES; it has {names}")
        if given[0].datatype != "BYTES":
            raise InferenceError(f"{_IMAGE!r} is of type {given[0].datatype}, not BYTES")
        asked = payload.parameters.model_dump() if payload.parameters else {}
        top = asked.get(_TOP, 1)
        if isinstance(top, bool) or not isinstance(top, int):
            raise InferenceError(f"parameter {_TOP!r} is {top!r}; it must be a whole number")
        params = {_TOP: top} if _TOP in asked else None
        try:
            texts = StringCodec.decode_input(given[0])
            table = pd.DataFrame({_IMAGE: pd.Series(texts, dtype=object)})
            found = await asyncio.to_thread(self._model.predict, table, params=params)
        except (MlflowException, TypeError, ValueError) as error:
            raise InferenceError(str(getattr(error, "message", error))) from error
        return InferenceResponse(
            model_name=self.name,
            model_version=self.version,
            id=payload.id,
            outputs=[
                _output(name, kind, [one[name] for one in found])
                for name, kind in self._outputs.items()
            ],
        )


def _tensor(name: str, kind: str) -> MetadataTensor:
    return MetadataTensor(name=name, datatype=kind, shape=[-1])


def _output(name: str, kind: str, values: list[Any]) -> ResponseOutput:
    if kind == "BYTES":
        texts = [own if isinstance(own, str) else json.dumps(own) for own in values]
        return StringCodec.encode_output(name, texts, use_bytes=False)
    column = np.array(values, bool if kind == "BOOL" else np.float64)
    return NumpyCodec.encode_output(name, column)
