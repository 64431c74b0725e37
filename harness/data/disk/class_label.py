"""Names of classes in the metadata of parquet and Arrow files of the Hugging Face layout."""

from __future__ import annotations

# Any: JSON.
from typing import TYPE_CHECKING, Any

from harness.files.parse import parse_json

if TYPE_CHECKING:
    import pyarrow as pa


def class_names(schema: pa.Schema) -> dict[str, list[str]]:
    """Return the columns of type ClassLabel in the Hugging Face metadata, with the names of their classes.

    Metadata of another structure declares none.
    """
    try:
        features = parse_json((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError, RecursionError):
        return {}
    declared = features.items() if isinstance(features, dict) else ()
    return {
        name: feature["names"]
        for name, feature in declared
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and _are_names(feature)
    }


def _are_names(feature: dict[str, Any]) -> bool:
    """Return whether a ClassLabel has names that differ."""
    names = feature.get("names")
    return (
        isinstance(names, list)
        and bool(names)
        and all(isinstance(name, str) for name in names)
        and len(set(names)) == len(names)
    )
