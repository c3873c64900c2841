"""Aggregates, and how they are loaded."""

from eventflow.aggregates.aggregate import (
    Aggregate,
    advance,
    aggregate_name,
    aggregate_version,
    appliers_of,
    applies,
    emitted,
    id_type,
    stream_of,
)
from eventflow.aggregates.definitions import AggregateDefinitions
from eventflow.aggregates.repository import AggregateRepository

__all__ = [
    "Aggregate",
    "AggregateDefinitions",
    "AggregateRepository",
    "advance",
    "aggregate_name",
    "aggregate_version",
    "appliers_of",
    "applies",
    "emitted",
    "id_type",
    "stream_of",
]
