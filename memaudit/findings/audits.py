"""The audits by name: what they are called, and which need earlier checkpoints."""

from collections.abc import Mapping
from typing import NamedTuple


class AuditKind(NamedTuple):
    """One audit a user may ask for.

    Attributes:
        title: what reports call it.
        series: it needs earlier checkpoints of the model.
    """

    title: str
    series: bool


AUDITS: Mapping[str, AuditKind] = {
    "localize": AuditKind("localization and its controls", series=False),
    "gradients": AuditKind("gradient accounting", series=True),
    "rewind": AuditKind("layer rewinding", series=True),
    "retrain": AuditKind("layer retraining", series=True),
}
OVER_TIME = tuple(name for name, kind in AUDITS.items() if kind.series)
