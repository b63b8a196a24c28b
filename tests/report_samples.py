"""Synthetic reports for the tests of every view: one to read, one that attacks, one that is large."""

from __future__ import annotations

import hashlib
import random
import struct
import zlib
from typing import Any

from memaudit.findings import (
    Atypicality,
    AugmentedControl,
    ConfigValue,
    Controls,
    CurvePoint,
    DataInfo,
    DataSource,
    Example,
    Finding,
    FlaggedOthersControl,
    Gate,
    GradientPoint,
    Groups,
    LayerEvidence,
    LayerUnits,
    LayerVerdict,
    Learning,
    MatchedControls,
    ModelInfo,
    Neighbour,
    Neuron,
    Outcome,
    Prediction,
    RandomControl,
    ReferenceAccuracy,
    ReportWarning,
    Retrain,
    RetrainEpoch,
    RewindPoint,
    SeriesPoint,
    Share,
    Slice,
    Summary,
    ToolInfo,
    UnitRef,
    Units,
)
from memaudit.report.document import Report

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
LAYERS = [("conv1.bn", 64), ("layer1.0.bn1", 64), ("layer1.0.bn2", 64), ("layer2.0.bn1", 128), ("layer2.0.bn2", 128)]
LAYERS += [("layer3.0.bn1", 256), ("layer3.0.bn2", 256), ("layer4.0.bn1", 512), ("layer4.0.bn2", 512)]
HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</script><script>alert(1)</script>",
    "{{ 7 * 7 }}{% raw %}",
    "javascript:alert(1)",
    "img[/].png",
    "[bold red]x[/]:skull:",
    "a\n::error::owned",
    "##[error]owned",
    "\x1b[31mred\x1b]0;t\x07",
    "c1\x9b31m",
    "\u202egnp.exe",
    "\ud800lone",
    "a|b\\|c`d``e",
    "]]>&<!--",
    "x" * 4096,
)
"""Outside strings that would leave their place if a sink trusted them."""


def small(**changes: Any) -> Report:
    """Four findings, one of each outcome, under a policy that is not met."""
    report = Report(
        status="complete",
        verdict="fail",
        tool=ToolInfo(version="0.1.0"),
        command="memaudit scan model.safetensors --flagged flagged.csv --reference val",
        config={
            "max-units": ConfigValue(value=10, origin="default"),
            "seed": ConfigValue(value=0, origin="default"),
            "unit": ConfigValue(value="channel", origin="measured"),
            "audit": ConfigValue(value=["localize"], origin="default"),
            "exit-zero": ConfigValue(value=False, origin="default"),
            "time-limit": ConfigValue(value=None, origin="default"),
        },
        environment={"python": "3.11.7", "torch": "2.10.0", "device": "cpu"},
        volatile={"started": "2026-01-05T10:00:00Z", "seconds": 12.5},
        model=_model(),
        data=_data(4),
        units=_units(),
        summary=Summary(
            flagged=4,
            fitted=3,
            memorized=2,
            outcomes=dict.fromkeys(list(Outcome)[:4], 1),
            median_units=2.5,
            reference_retained=0.9712,
            random_erased=0.0333,
            random_low=0.0059,
            random_high=0.1667,
            reference_retained_low=0.9611,
            reference_retained_high=0.9834,
            atypicality_auroc=0.91,
        ),
        findings=[
            _finding("a", Outcome.LOCALIZED, 3, 5, ["layer3.0.bn2:17", "layer4.0.bn1:200"], memorized=True, line=2),
            _finding("b", Outcome.ENTANGLED, 1, 9, ["layer4.0.bn1:200", "layer4.0.bn2:7", "conv1.bn:3"], line=3),
            _finding("c", Outcome.DIFFUSE, 0, 8, [], memorized=True, line=4),
            _finding("d", Outcome.NOT_FITTED, 2, 6, [], line=5),
        ],
        neurons=[
            _neuron("layer4.0.bn1:200", ["a", "b"], 0.9081),
            _neuron("layer3.0.bn2:17", ["a"], 0.9102),
            _neuron("layer4.0.bn2:7", ["b"], 0.8877),
            _neuron("conv1.bn:3", ["b"], None),
        ],
        groups=Groups(
            curve=[
                CurvePoint(units=0, flagged_fitted=1.0, reference_accuracy=0.912),
                CurvePoint(units=1, flagged_fitted=0.6667, reference_accuracy=0.908),
                CurvePoint(units=2, flagged_fitted=0.3333, reference_accuracy=0.894),
                CurvePoint(units=4, flagged_fitted=0.3333, reference_accuracy=0.751),
            ],
            overlap=0.25,
            matched_controls=MatchedControls(examples=20, median_units=7.0, auc=0.87, low=0.79, high=0.93),
        ),
        passes={"search": 4_210, "controls": 21_000},
        gate=Gate(
            policy={"max_memorized": "0", "min_reference_accuracy": "90%"},
            failed=["max_memorized: 2 of 4 flagged examples are memorized"],
        ),
    )
    return report.model_copy(update=changes)


def over_time(labels: tuple[str, ...] = ("epoch 1", "epoch 5", "epoch 20"), **changes: Any) -> Report:
    """The small report with all audits over time: three layers, one of each verdict."""
    layers = [
        _layer("conv1", labels, LayerVerdict.REDUNDANT, 0.91),
        _layer("layer3.0", labels, LayerVerdict.CRITICAL, 0.12),
        _layer("fc", labels, LayerVerdict.UNDECIDED, 0.5),
    ]
    last = len(labels) - 1
    series = [
        SeriesPoint(
            checkpoint=label, file=f"{label}.pth", epoch=float(n), sha256=digest(label), final=n == last,
            flagged=n / last, reference=0.5 + 0.4 * n / last, matched=0.5 + 0.5 * n / last,
            flagged_confidence=n / last, reference_confidence=0.8, matched_confidence=0.7,
        )
        for n, label in enumerate(labels)
    ]  # fmt: skip
    learning = Learning(score=0.8, p_value=0.01, learned=labels[-1], confidence=[0.1, 0.2, 0.9][: len(labels)])
    findings = [f.model_copy(update={"learning": learning}) for f in small().findings]
    summary = small().summary.model_copy(update={"learning_auroc": 0.97})
    return small(**{"series": series, "layers": layers, "findings": findings, "summary": summary, **changes})


def _layer(name: str, labels: tuple[str, ...], verdict: LayerVerdict, back: float) -> LayerEvidence:
    last = len(labels) - 1
    return LayerEvidence(
        layer=name,
        parameters=1728,
        gradients=[
            GradientPoint(
                checkpoint=label, flagged=0.4, reference=0.2, matched=0.3, ratio=8.0, matched_ratio=2.0,
                cosine=0.5 - n / last, matched_cosine=0.9,
            )
            for n, label in enumerate(labels)
        ],
        rewind=[
            RewindPoint(
                checkpoint=label, flagged=n / last, flagged_low=0.0, flagged_high=1.0, reference=0.912, matched=1.0,
                flagged_recalibrated=n / last, recalibrated_low=0.0, recalibrated_high=1.0, reference_recalibrated=0.9,
                matched_recalibrated=1.0,
            )
            for n, label in enumerate(labels)
        ],
        retrain=Retrain(
            checkpoint=labels[0], flagged=back, low=max(0.0, back - 0.08), high=min(1.0, back + 0.08), reference=0.99,
            matched=0.97, matched_low=0.95, matched_high=0.99, reference_before=0.99, fitted=True, seeds=[0, 1],
            epochs=[RetrainEpoch(epoch=e, flagged=back * e / 2, reference=0.4 + 0.3 * e) for e in (0, 1)],
            budget=8, rate=1e-3, examples=1000,
        ),
        verdict=verdict,
        sentence=f"Put back to {labels[0]} and retrained: {back:.0%} of the flagged labels came back.",
    )  # fmt: skip


def settled() -> Report:
    """The small report with one finding waived and one known from a baseline."""
    gate = Gate(
        policy={"max_memorized": "0"},
        waived=[identity("a")],
        reasons={identity("a"): "a canary (ann, until 2027-01-31)"},
        known=[identity("c")],
        baseline="accepted.json",
    )
    return small(gate=gate, verdict="pass")


def incomplete() -> Report:
    """Nothing memorized among what was seen, but not everything was seen."""
    report = small(
        status="incomplete",
        verdict="pass",
        findings=[_finding("d", Outcome.NOT_FITTED, 2, 6, [])],
        neurons=[],
        groups=Groups(),
        warnings=[ReportWarning(code="limit", message="only 1 of 4 flagged examples was audited (--limit 1)")],
        gate=Gate(policy={"max_memorized": "0"}),
    )
    outcomes = {Outcome.NOT_FITTED: 1}
    empty = Summary(
        flagged=1,
        fitted=0,
        memorized=0,
        outcomes=outcomes,
        median_units=None,
        reference_retained=None,
        random_erased=None,
    )
    return report.model_copy(update={"summary": empty})


def hostile() -> Report:
    """Every outside string is one of `HOSTILE`; each is at least once a label, source, layer, setting and warning."""
    findings = [
        _finding(str(i), Outcome.LOCALIZED, i % 10, (i + 1) % 10, [], memorized=True, line=i + 2).model_copy(
            update={
                "id": text,
                "example": Example(
                    id=text,
                    source=text,
                    label=i,
                    index=i,
                    line=i + 2 if i % 2 else None,
                    true_label=0,
                    note=text,
                    columns={text[:60] or "x": text},
                ),
                "units": [UnitRef(layer=text, index=i, kind="channel")],
            }
        )
        for i, text in enumerate(HOSTILE)
    ]
    bad = HOSTILE[0]
    model = _model().model_copy(
        update={"path": bad, "sha256": bad, "architecture": bad, "adapter": bad, "dtype": bad, "stripped_prefix": bad}
    )
    source = DataSource(source=bad, count=16, sha256=bad, accuracy=0.9)
    outcomes = {Outcome.LOCALIZED: len(HOSTILE)}
    counted = {"flagged": len(HOSTILE), "fitted": len(HOSTILE), "memorized": len(HOSTILE), "outcomes": outcomes}
    return over_time(
        HOSTILE[:3],
        layers=[_layer(text, (HOSTILE[0], text), LayerVerdict.CRITICAL, 0.1) for text in HOSTILE],
        command="memaudit scan " + " ".join(HOSTILE[:-1]),
        config={text: ConfigValue(value=[text, text], origin=text) for text in HOSTILE},
        environment={text: text for text in HOSTILE},
        volatile={text: text for text in HOSTILE} | {"nan": float("nan")},
        model=model.model_copy(update={"candidates": list(HOSTILE)}),
        data=DataInfo(flagged=source, reference=source, class_names=list(HOSTILE), class_order=bad),
        units=Units(total=160, dead=0, by_layer=[LayerUnits(layer=text, kind="channel", width=10) for text in HOSTILE]),
        summary=small().summary.model_copy(update=counted),
        findings=findings,
        neurons=[
            Neuron(layer=text, index=i, kind="channel", erases=[text], reference_accuracy_after=0.9)
            for i, text in enumerate(HOSTILE)
        ],
        warnings=[ReportWarning(code=text, message=text) for text in HOSTILE],
        gate=Gate(policy={text: text for text in HOSTILE}, failed=list(HOSTILE), waived=[HOSTILE[0]]),
    )


def large(findings: int = 2000) -> Report:
    """A big audit with plausible proportions; the same one on every call."""
    rng = random.Random(0)
    found = [_random_finding(rng, i) for i in range(findings)]
    serves: dict[str, list[str]] = {}
    for finding in found:
        for unit in finding.units:
            serves.setdefault(str(unit), []).append(finding.id)
    shared = sorted(serves.items(), key=lambda item: (-len(item[1]), item[0]))
    cut = [f for f in found if f.units]
    sizes = sorted(len(f.units) for f in cut)
    curve = [
        CurvePoint(units=n, flagged_fitted=2.718 ** (-n / 60), reference_accuracy=0.912 - 0.0031 * n + 2e-6 * n * n)
        for n in (0, 5, 10, 20, 40, 80, 120)
    ]
    return small(
        data=_data(findings),
        summary=Summary(
            flagged=findings,
            fitted=sum(f.fitted for f in found),
            memorized=sum(f.memorized for f in found),
            outcomes={o: sum(f.outcome is o for f in found) for o in Outcome},
            median_units=float(sizes[len(sizes) // 2]),
            reference_retained=0.9861,
            random_erased=0.0004,
            random_low=0.0002,
            random_high=0.0009,
        ),
        findings=found,
        neurons=[_neuron(name, ids, rng.uniform(0.88, 0.912), hashed=False) for name, ids in shared],
        groups=small().groups.model_copy(update={"curve": curve, "overlap": 0.0413}),
        warnings=[ReportWarning(code="early-epochs", message="epochs 1 to 40 have no checkpoint")],
        gate=Gate(
            policy={"max_memorized": "0", "min_reference_accuracy": "90%"},
            failed=[f"max_memorized: {sum(f.memorized for f in found)} found"],
            waived=[finding.id for finding in found[3:5]],
        ),
    )


def whole(findings: int = 200) -> Report:
    """The large report with everything a page can show: neighbours, slices and the audits over time."""
    report, timed = large(findings), over_time()
    found = [
        f.model_copy(
            update={
                "nearest": [
                    Neighbour(id=identity(f"near {n} {k}"), source=f"val/{n}-{k}.png", index=k, label=k, similarity=0.7)
                    for k in range(3)
                ]
            }
        )
        for n, f in enumerate(report.findings)
    ]
    some = Share(hits=9, rate=0.45, low=0.26, high=0.66)
    slices = [
        Slice(
            by="label", value=name, count=20, fitted=some, memorized=some, localized=some, gap=0.3 - n / 20, small=n > 7
        )
        for n, name in enumerate(CLASSES)
    ]
    return report.model_copy(
        update={"findings": found, "slices": slices, "series": timed.series, "layers": timed.layers}
    )


def digest(text: str) -> str:
    """A content hash of a file."""
    return hashlib.sha256(text.encode()).hexdigest()


def identity(text: str) -> str:
    """An id of a finding or an example, as long as the tool makes them."""
    return digest(text)[:16]


def _model() -> ModelInfo:
    return ModelInfo(
        path="model.safetensors",
        sha256=digest("model"),
        architecture="resnet18",
        adapter="timm",
        num_classes=10,
        parameters=11_173_962,
        dtype="float32",
    )


def _data(flagged: int) -> DataInfo:
    return DataInfo(
        flagged=DataSource(source="flagged.csv", count=flagged, sha256=digest("flagged")),
        reference=DataSource(source="val", count=2000, sha256=digest("reference"), accuracy=0.912),
        class_names=CLASSES,
        class_order="natural",
    )


def _units() -> Units:
    by_layer = [LayerUnits(layer=layer, kind="channel", width=width) for layer, width in LAYERS]
    return Units(total=sum(width for _, width in LAYERS), dead=12, by_layer=by_layer)


def _ref(text: str) -> UnitRef:
    layer, index = text.rsplit(":", 1)
    return UnitRef(layer=layer, index=int(index), kind="channel")


def _neuron(text: str, ids: list[str], accuracy: float | None, hashed: bool = True) -> Neuron:
    unit = _ref(text)
    erases = [identity(i) for i in ids] if hashed else ids
    return Neuron(layer=unit.layer, index=unit.index, kind="channel", erases=erases, reference_accuracy_after=accuracy)


def _finding(
    name: str,
    outcome: Outcome,
    label: int,
    other: int,
    units: list[str],
    memorized: bool = False,
    line: int | None = None,
) -> Finding:
    fitted, cut = outcome is not Outcome.NOT_FITTED, outcome in (Outcome.LOCALIZED, Outcome.ENTANGLED)
    cost = 0.004 if outcome is Outcome.LOCALIZED else 0.121
    return Finding(
        id=identity(name),
        example=Example(
            id=identity("x" + name), source=f"train/{name}.png", label=label, index=0, line=line, true_label=other
        ),
        outcome=outcome,
        fitted=fitted,
        memorized=memorized,
        atypicality=Atypicality(score=0.94 if memorized else 0.31, p_value=0.012 if memorized else 0.62),
        before=Prediction(
            prediction=label if fitted else other,
            margin=6.25 if fitted else -1.5,
            confidence=0.9973 if fitted else 0.11,
        ),
        after=Prediction(prediction=other, margin=-0.21, confidence=0.4081) if cut else None,
        units=[_ref(u) for u in units],
        reference_accuracy=ReferenceAccuracy(
            before=0.912, after=0.912 - cost, low=0.9 - cost, high=0.921 - cost, retained=0.985 - cost, examples=2000
        )
        if cut
        else None,
        controls=Controls(
            random=RandomControl(draws=10, erased=0 if outcome is Outcome.LOCALIZED else 1, low=0.0, high=0.28),
            augmented=AugmentedControl(copies=8, erased=7),
            flagged_others=FlaggedOthersControl(examples=2, lost=1),
        )
        if cut
        else None,
    )


def _random_finding(rng: random.Random, i: int) -> Finding:
    outcome = rng.choices(list(Outcome)[:4], [8, 70, 15, 7])[0]
    label = rng.randrange(10)
    other = (label + rng.randrange(1, 10)) % 10
    cut = outcome in (Outcome.LOCALIZED, Outcome.ENTANGLED)
    layers = rng.choices(LAYERS, [1, 1, 1, 1, 2, 3, 6, 9, 5], k=max(1, min(10, int(rng.expovariate(0.35)) + 1)))
    units = sorted({f"{layer}:{int(rng.betavariate(1, 4) * width)}" for layer, width in layers}) if cut else []
    found = _finding(
        str(i), outcome, label, other, units, memorized=outcome is not Outcome.NOT_FITTED and rng.random() < 0.9
    )
    after = 0.912 - rng.random() * (0.012 if outcome is Outcome.LOCALIZED else 0.2)
    changes: dict[str, object] = {
        "example": found.example.model_copy(
            update={"source": f"train/{CLASSES[label]}/{i:05}.png", "index": i, "line": i + 2}
        ),
        "atypicality": Atypicality(score=rng.betavariate(8, 1), p_value=rng.betavariate(1, 30)),
        "before": Prediction(
            prediction=found.before.prediction, margin=rng.uniform(0.1, 14.0), confidence=rng.betavariate(9, 1)
        ),
    }
    if cut and found.controls:
        changes["after"] = Prediction(prediction=other, margin=-rng.uniform(0, 2), confidence=rng.uniform(0.02, 0.49))
        changes["reference_accuracy"] = ReferenceAccuracy(
            before=0.912, after=after, low=after - 0.0127, high=after + 0.0119, retained=after / 0.912, examples=2000
        )
        changes["controls"] = found.controls.model_copy(
            update={
                "augmented": AugmentedControl(copies=8, erased=rng.randrange(4, 9)),
                "flagged_others": FlaggedOthersControl(examples=1849, lost=rng.randrange(2, 60)),
            }
        )
    return found.model_copy(update=changes)


def _picture() -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", 2, 2, 8, 2, 0, 0, 0)
    pixels = zlib.compress((b"\0" + bytes([200, 40, 40, 40, 40, 200])) * 2)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


PICTURE = _picture()
"""A PNG of two by two pixels."""
