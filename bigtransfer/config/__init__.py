"""What the user may set: the typed sections, and how they are read from YAML and JSON."""

from bigtransfer.config.reading import from_json, load, read_yaml, resolve
from bigtransfer.config.sections import (
    LAYOUTS,
    SOURCES,
    AuditParams,
    AuditRules,
    DatasetParams,
    DatasetRules,
    EvaluateParams,
    FinetuneParams,
    MaterializeParams,
    Params,
    PretrainParams,
    RegisterParams,
    Section,
    SplitFractions,
    SummarizeParams,
    TaskParams,
)

__all__ = [
    "AuditParams",
    "AuditRules",
    "DatasetParams",
    "DatasetRules",
    "EvaluateParams",
    "FinetuneParams",
    "LAYOUTS",
    "MaterializeParams",
    "Params",
    "PretrainParams",
    "RegisterParams",
    "SOURCES",
    "Section",
    "SplitFractions",
    "SummarizeParams",
    "TaskParams",
    "from_json",
    "load",
    "read_yaml",
    "resolve",
]
