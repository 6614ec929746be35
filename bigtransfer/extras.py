"""The optional parts of an installation: what brings which, and what a missing one says.

`pip install bigtransfer` brings what the way from a folder of images to predictions needs. Servers,
clusters and file formats are extras: their packages are imported where they are used.
"""

from __future__ import annotations

from importlib.util import find_spec

from bigtransfer.errors import ConfigError

EXTRAS = {
    "mlflow": "mlflow",
    "alembic": "mlflow",  # of MLflow's database; the small client of the images lacks it
    "fastapi": "mlflow",
    "flask": "mlflow",
    "sqlalchemy": "mlflow",
    "uvicorn": "mlflow",
    "dvc": "dvc",
    "dvc_s3": "dvc",
    "scmrepo": "dvc",
    "sklearn": "dvc",
    "kfp": "kfp",
    "kfp_server_api": "kfp",
    "kubernetes": "kfp",
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "onnxscript": "onnx",
    "boto3": "s3",
    "botocore": "s3",
    "jax": "tpu",
    "torchax": "tpu",
}
"""Import name of an optional package -> the extra of pyproject.toml that brings it."""
BASE = {
    "PIL": "pillow",
    "great_expectations": "great-expectations",
    "jinja2": "jinja2",
    "matplotlib": "matplotlib",
    "numpy": "numpy",
    "pandas": "pandas",
    "pi_heif": "pi-heif",
    "psutil": "psutil",
    "pyarrow": "pyarrow",
    "pydantic": "pydantic",
    "ruamel": "ruamel.yaml",
    "safetensors": "safetensors",
    "scipy": "scipy",
    "simplejpeg": "simplejpeg",
    "torch": "torch",
    "tqdm": "tqdm",
}
"""Import name of a package that every installation has -> its name where packages are fetched."""


def require(module: str, need: str, *, or_else: str = "") -> None:
    """Refuse in one line where an optional package is not installed; nothing of it is imported.

    Args:
        module: Import name, one of `EXTRAS`.
        need: What cannot be done without it; begins the message.
        or_else: Another way out; ends the message.

    Raises:
        ConfigError: If it is not installed.
    """
    if not is_installed(module):
        said = f"{need} needs {module}, which is not installed; {install(module)}"
        raise ConfigError(f"{said}, {or_else}" if or_else else said)


def is_installed(module: str) -> bool:
    """Return whether a package is here; a mere folder of its name is none."""
    try:
        found = find_spec(module)
    except ValueError:  # it was imported in a way that left no spec
        return True
    return found is not None and found.origin is not None


def install(module: str) -> str:
    """Return the command that brings an optional package."""
    return f"`pip install 'bigtransfer[{EXTRAS[module]}]'`"


def missing(error: ModuleNotFoundError) -> ConfigError | None:
    """Return what an import that failed says to people; None: of no package that we know, a bug."""
    module = (error.name or "").partition(".")[0]
    if module in EXTRAS:
        return ConfigError(f"this needs {module}, which is not installed; {install(module)}")
    if module in BASE:
        return ConfigError(
            f"the package {BASE[module]!r} is not installed, which every installation of "
            "bigtransfer has; `pip install bigtransfer` without --no-deps brings it"
        )
    return None
