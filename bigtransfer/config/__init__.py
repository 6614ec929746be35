"""What the user may set: the typed sections, and how they are read from YAML and JSON."""

from bigtransfer.config.base import Section
from bigtransfer.config.cluster import PLACED, ClusterParams, PoolParams, looks_secret
from bigtransfer.config.reading import (
    from_json,
    laid_over,
    load,
    read_yaml,
    resolve,
    typed_value,
)
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
    SplitFractions,
    SummarizeParams,
    TaskParams,
)

__all__ = [
    "AuditParams",
    "AuditRules",
    "ClusterParams",
    "DatasetParams",
    "DatasetRules",
    "EvaluateParams",
    "FinetuneParams",
    "LAYOUTS",
    "MaterializeParams",
    "Params",
    "PLACED",
    "PoolParams",
    "PretrainParams",
    "RegisterParams",
    "SOURCES",
    "Section",
    "SplitFractions",
    "SummarizeParams",
    "TaskParams",
    "from_json",
    "laid_over",
    "load",
    "looks_secret",
    "read_yaml",
    "resolve",
    "typed_value",
]
