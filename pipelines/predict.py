"""What a registered model sees in images, a row per image; a recurring run, say, each night.

`kfp run submit pipelines/predict.py model=models:/bigtransfer-digits@champion images=s3://…`
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from kfp import dsl

from bigtransfer import config
from bigtransfer.kubeflow.image_tag import source_tag
from bigtransfer.kubeflow.submission import current
from pipelines import containers
from pipelines.compiling import compile_beside
from pipelines.dag import PROJECT
from pipelines.placement import image_of, let_long_tasks_be_retried, place

_INPUTS = ("model", "images", "top")
_DEFAULTS = {"top": "1"}


def build_predict(name: str, overlay: Path | None = None) -> Any:
    """Return the pipeline: one task.

    Args:
        name: Of the pipeline, and of its component.
        overlay: YAML file laid over params.yaml.

    Raises:
        ConfigError: If the params do not fit the schema.
    """
    submission = current()
    cluster = config.load(PROJECT / "params.yaml", overlay, submission.changes).cluster
    tag = submission.tag or source_tag(PROJECT)

    def pipeline(model: Any, images: Any, top: Any) -> None:
        made = containers.component(name, image_of(name, cluster, tag))
        task = made(params=f'{{"model": "{model}", "images": "{images}", "top": {top}}}')
        task.set_display_name(name)
        # The alias moves, and what lies at an address changes, though both are called the same.
        task.set_caching_options(False)
        place(task, name, name, cluster, submission.told)

    pipeline.__signature__ = inspect.Signature(  # type: ignore[attr-defined]  # read by kfp
        [
            inspect.Parameter(
                key, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=str,
                default=_DEFAULTS.get(key, inspect.Parameter.empty),
            )
            for key in _INPUTS
        ]
    )  # fmt: skip
    pipeline.__doc__ = "What a registered model sees in images."
    made = dsl.pipeline(name=name)(pipeline)
    let_long_tasks_be_retried(made)
    return made


if __name__ == "__main__":
    compile_beside("predict", __file__, maker=build_predict)
else:
    predict = build_predict("predict")
