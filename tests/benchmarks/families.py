"""Are sites found, does a mask equal the edit, does a search run: one smallest member of every timm model module, or
every classifier of torchvision, which must also be identified from its tensors alone.

    python -m tests.benchmarks.families [--library torchvision] [--only PATTERN] [--store DIR]
        [--out reports/benchmarks/timm-families.md]

Random weights, small input where the model allows it. Prints and writes one Markdown table.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import resource
import signal
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import timm
import torch
from torch import Tensor, nn

from memaudit.adapters import vision
from memaudit.adapters.base import Adapter
from memaudit.adapters.building import build as build_network
from memaudit.adapters.building import default_config, installed_version, library_of
from memaudit.adapters.identify import identify
from memaudit.audits.localize.population import measure_population
from memaudit.audits.localize.search import Search
from memaudit.data.examples import ExampleSet
from memaudit.data.images.preprocess import Preprocess
from memaudit.engine.answers import margin
from memaudit.engine.device import exact_arithmetic
from memaudit.engine.evaluator import Evaluator
from memaudit.errors import MemauditError
from memaudit.findings import Example
from memaudit.network.ablate import ablated, edited
from memaudit.network.units import UnitSpace, select
from tests.benchmarks.table import publish

CLASSES = 5
TOLERANCE = 1e-5  # of the largest logit
UNMEASURED = "not measured"
PROVEN = 8  # sites of a kind whose mask and edit are compared, evenly spread in depth
SEARCHED, FEWER = 4, 2  # images searched, and of a network with more parameters than this
BIG = 60_000_000
# Names that are never a family's smallest member: building them on `meta` only costs time.
LARGE = ("giant", "huge", "large", "xlarge", "xxl", "gigantic", "so400m", "so150m", "_base", "_512", "_448", "_384")


@dataclass
class Row:
    """What one family gave."""

    family: str
    model: str = ""
    parameters: float = 0.0
    size: int = 0
    units: str = ""
    gap: float = float("nan")
    found: str = ""
    seconds: float = 0.0
    problem: str = ""
    identified: str = ""


class Late(BaseException):
    """A family took too long: not an `Exception`, which memaudit would call the network's own."""


def smallest(family: str) -> str:
    """The member with the fewest parameters; of torchvision every member is a family of its own."""
    if library_of(family) == "torchvision":
        return family
    names = timm.list_models(module=family)
    likely = [n for n in names if not any(word in n for word in LARGE)] or names
    best = ("", float("inf"))
    for name in likely:
        try:
            with torch.device("meta"):
                count = sum(p.numel() for p in timm.create_model(name).parameters())
        except Exception:  # a member that cannot be built on meta is simply not chosen
            continue
        if count < best[1]:
            best = (name, count)
    return best[0] or likely[0]


def build(name: str) -> tuple[nn.Module, int]:
    """The model with random weights and lively norms, at the smallest input it takes."""
    torch.manual_seed(0)
    channels, side = input_of(name)
    told = [(size, {"img_size": size}) for size in (56, 64, 112, 128)]  # multiples of 14, 16, 32
    for size, kwargs in ((64, {}), told[1], (96, {}), told[3], *((told[0], told[2]) if vision.is_vision(name) else ()),
                         (side, {})):  # fmt: skip
        try:
            model = build_network(name, {"num_classes": CLASSES, **kwargs}, device="cpu").eval()
            enliven(model)
            with torch.no_grad():
                out = model(torch.rand(2, channels, size, size))
            if out.shape == (2, CLASSES) and bool(torch.isfinite(out).all()):
                return model, size
        except Exception:  # this size is not for this model: try the next
            continue
    raise RuntimeError("no input size works")


def input_of(name: str) -> tuple[int, int]:
    """Channels and side of the images the architecture is for."""
    size = default_config(name).get("input_size") or (3, 224, 224)
    return size[0], size[-1]


def identified(name: str) -> str:
    """How a bare file of the architecture with other classes is told: alone, or among how many."""
    candidates = identify(build_network(name, {"num_classes": CLASSES}, device="meta").state_dict())
    if not any(name in c.same for c in candidates):
        return "wrong" if candidates else "no"
    also = [n for c in candidates for n in c.same if n != name]
    return "alone" if not also else f"{'same as' if len(candidates) == 1 else 'among'} {', '.join(also)}"


def enliven(model: nn.Module) -> None:
    """Random statistics and affine parameters, so that no layer is an identity or a zero."""
    generator = torch.Generator().manual_seed(1)

    def uniform(like: Tensor, low: float, high: float) -> Tensor:
        return torch.rand(like.shape, generator=generator) * (high - low) + low

    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name == "running_mean":
                buffer.copy_(uniform(buffer, -0.2, 0.2))
            elif name == "running_var":
                buffer.copy_(uniform(buffer, 0.5, 1.5))
        for parameter in module.parameters(recurse=False):
            if parameter.dim() == 1:
                parameter.data.add_(uniform(parameter, 0.05, 0.3))


def gap(adapter: Adapter, space: UnitSpace, images: Tensor) -> float:
    """Largest relative difference, over some sites, between masked and edited logits, a random unit of each cut."""
    generator = torch.Generator().manual_seed(2)
    worst = 0.0
    with torch.no_grad():
        scale = float(adapter.forward(images).abs().max()) + 1e-6
        for number in {round(n) for n in np.linspace(0, len(space.sites) - 1, PROVEN)}:
            unit = space.offsets[number] + int(torch.randint(space.sites[number].width, (1,), generator=generator))
            with ablated(adapter.module, space, space.keep([[unit]])[0]):
                masked = adapter.forward(images)
            with edited(adapter.module, space, [unit]):
                changed = adapter.forward(images)
            worst = max(worst, float((masked - changed).abs().max()) / scale)
    return worst


def run(family: str) -> Row:
    row = Row(family)
    start = time.time()
    try:
        row.model = smallest(family)
        model, row.size = build(row.model)
        if vision.is_vision(row.model):
            row.identified = identified(row.model)
        row.parameters = sum(p.numel() for p in model.parameters()) / 1e6
        channels, _ = input_of(row.model)
        adapter = Adapter(model, architecture=row.model, preprocess=Preprocess((channels, row.size, row.size)))
        generator = torch.Generator().manual_seed(0)
        pixels = torch.rand(12, channels, row.size, row.size, generator=generator)
        with exact_arithmetic():
            sites = adapter.sites(pixels)
            widths: Counter[str] = Counter()
            for site in sites:
                widths[site.kind] += site.width
            row.units = ", ".join(f"{n:,} {k}" for k, n in widths.most_common())
            row.gap = max(
                gap(adapter, UnitSpace(tuple(s for s in sites if s.kind == kind)), pixels[:2]) for kind in widths
            ) if widths else float("nan")  # fmt: skip
            row.found = search(adapter, select(sites), pixels)
    except MemauditError as error:
        row.problem = error.message
    except Late as late:
        row.problem = str(late)
    except Exception as error:
        row.problem = f"{type(error).__name__}: {error}".splitlines()[0][:120]
    row.seconds = time.time() - start
    return row


def search(adapter: Adapter, space: UnitSpace, pixels: Tensor) -> str:
    """Search the model's own predictions on a few random images: what matters here is that it runs and erases."""
    asked = FEWER if adapter.parameters > BIG else SEARCHED
    pixels = pixels[: 3 * asked]
    logits = adapter.forward(pixels)
    examples = ExampleSet(
        tuple(Example(id=str(i), source="random", label=int(y), index=i) for i, y in enumerate(logits.argmax(1))),
        pixels,
        "random",
    )
    evaluator = Evaluator(adapter, batch_size=4)
    population = measure_population(evaluator, space, examples, range(asked, len(pixels)))
    rows = (margin(logits, examples.labels)[:asked] > 0).nonzero().flatten().tolist()
    proposals = list(
        Search(space, torch.ones(space.total, dtype=torch.bool), population, 10).run(evaluator, examples, rows)
    )
    erased = [len(p.cut) for p in proposals if p.erased]
    return f"{len(erased)}/{len(proposals)}" + (f" with {min(erased)}-{max(erased)} units" if erased else "")


@contextmanager
def limited(seconds: int) -> Iterator[None]:
    """The body is interrupted by `Late` after so many seconds."""

    def late(_: int, frame: object) -> None:
        raise Late(f"not finished within {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def table(rows: list[Row], library: str) -> str:
    measured = [r for r in rows if r.problem != UNMEASURED]
    good = [r for r in measured if not r.problem and r.gap < TOLERANCE]
    left = f" {len(rows) - len(measured)} are not measured yet." if len(measured) < len(rows) else ""
    told = library == "torchvision"
    what = "The" if told else "One smallest member of each of the"
    which = "classifiers" if told else "model modules"
    own = " identified |" if told else ""
    lines = [
        f"# {library} {'classifiers' if told else 'families'}",
        "",
        (
            f"{what} {len(rows)} {which} of {library} {installed_version(library)}, random weights, "
            f"torch {torch.__version__}. {len(good)} of {len(measured)} can be audited.{left}"
        ),
        "",
        f"Gap: largest difference of masked and edited logits over {PROVEN} sites of a kind, of the largest logit.",
        f"Erased: of {SEARCHED} random images, or {FEWER}, how many lose the model's own prediction within 10 units.",
        *(
            ["Identified: a bare file with other classes, by names and shapes; *same as*: equal in what they compute."]
            if told
            else []
        ),
        "",
        f"| {'' if told else 'family | '}model | parameters | input | units | gap | erased |{own} note |",
        f"|{'' if told else '---|'}---|---:|---:|---|---:|---|{'---|' if told else ''}---|",
    ]
    for r in rows:
        note = r.problem or ("" if r.gap < TOLERANCE else "mask and edit differ")
        first = r.model.removeprefix(vision.PREFIX) if told else f"{r.family} | {r.model}"
        if r.problem == UNMEASURED:
            lines.append(f"| {first} |  |  |  |  |  | {r.identified} | {note} |")
            continue
        lines.append(
            f"| {first} | {r.parameters:.1f} M | {r.size or ''} | {r.units} | {r.gap:.1e} "
            f"| {r.found} |{f' {r.identified} |' if told else ''} {note} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--library", default="timm", choices=("timm", "torchvision"))
    parser.add_argument("--only", default="*")
    parser.add_argument("--store", type=Path, help="folder of what was measured, so that a run can go on")
    parser.add_argument("--stored", action="store_true", help="measure nothing more: a table of what the store holds")
    parser.add_argument("--limit", type=int, default=900, help="seconds a family may take")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    everything = vision.names() if args.library == "torchvision" else timm.list_modules()
    families = [f for f in everything if fnmatch.fnmatch(f, args.only)]
    rows = []
    for family in families:
        path = None if args.store is None else args.store / f"{family}.json"
        if path is not None and path.is_file():
            rows.append(Row(**json.loads(path.read_text("utf-8"))))
            continue
        if args.stored:
            rows.append(Row(family, family, problem=UNMEASURED, identified=identified(family)))
            continue
        with limited(args.limit):
            rows.append(run(family))
        r = rows[-1]
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(asdict(r)), encoding="utf-8")
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        line = f"{r.family:28} {r.model:36} {r.gap:8.1e} {r.units:40} {r.found:22} {r.problem}"
        print(f"{line} {r.seconds:.0f}s {peak:.1f}GiB", file=sys.stderr, flush=True)
    text = table(rows, args.library)
    publish(text, args.out)


if __name__ == "__main__":
    main()
