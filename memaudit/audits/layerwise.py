"""What the audits over time say of each layer group, put together: fields as they were yielded, and the verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from memaudit.audits.verdicts import verdict
from memaudit.findings import LayerEvidence
from memaudit.network.layer_groups import LayerGroup


def layer_evidence(groups: Sequence[LayerGroup], found: Sequence[Mapping[str, Any]]) -> list[LayerEvidence]:
    """The evidence on each of `groups`, in execution order.

    Args:
        found: by group, the fields that the audits yielded.
    """
    rows = []
    for group, fields in zip(groups, found, strict=True):
        word, sentence = verdict(fields.get("retrain"), fields.get("rewind", []))
        rows.append(
            LayerEvidence(
                layer=group.layer, parameters=group.parameters, verdict=word, sentence=sentence, **fields
            )
        )  # fmt: skip
    return rows
