"""Every image classifier of transformers, tiny and with random weights: saved by it, opened, audited, written back.

    python -m tests.benchmarks.transformers_families [--only PATTERN]
        [--out reports/benchmarks/transformers-families.md]

Needs plugins/memaudit-transformers. Prints and writes one Markdown table.
"""

from __future__ import annotations

import argparse
import fnmatch
import sys
import time
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers
from memaudit_transformers.folder import NO_IMAGES
from memaudit_transformers.library import quiet
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import CONFIG_MAPPING, AutoModelForImageClassification, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

from memaudit.adapters.base import Adapter, ModelOptions
from memaudit.adapters.registry import choose
from memaudit.checkpoints import read
from memaudit.engine.device import exact_arithmetic
from memaudit.errors import MemauditError
from memaudit.network.ablate import silence
from memaudit.network.units import UnitSpace, select
from tests.benchmarks.families import PROVEN, TOLERANCE, enliven, gap, limited, search
from tests.benchmarks.table import publish

CLASSES, SIDE = 5, 64
STAGES = {"depths": [1, 1, 1, 1], "hidden_sizes": [16, 24, 32, 40]}
VIT: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48,
    "image_size": SIDE, "patch_size": 16, "initializer_range": 0.2,
}  # fmt: skip
SWIN: dict[str, Any] = {
    "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "image_size": SIDE, "patch_size": 4, "window_size": 4,
}  # fmt: skip
CLIP: dict[str, Any] = {"vision_config": VIT, "text_config": {**VIT, "vocab_size": 64}}
# Settings that make a small network of each type; what is not named keeps the library's own value.
TINY: dict[str, dict[str, Any]] = {
    "bit": {**STAGES, "embedding_size": 16, "num_groups": 4},
    "clip": CLIP,
    "convnext": STAGES,
    "convnextv2": STAGES,
    "cvt": {"embed_dim": [16, 24, 32], "depth": [1, 2, 3], "num_heads": [1, 1, 2]},
    "donut-swin": SWIN,
    "efficientnet": {"width_coefficient": 0.3, "depth_coefficient": 0.3, "image_size": SIDE, "hidden_dim": 384},
    "focalnet": {"embed_dim": 16, "depths": [1, 1], "image_size": SIDE, "hidden_sizes": [16, 32],
                 "focal_levels": [2, 2], "focal_windows": [3, 3]},
    "hgnet_v2": {"stem_channels": [3, 8, 12], "stage_in_channels": [12, 16, 24, 32],
                 "stage_mid_channels": [8, 8, 12, 12], "stage_out_channels": [16, 24, 32, 40],
                 "stage_num_blocks": [1, 1, 1, 1], "stage_numb_of_layers": [2, 2, 2, 2],
                 "hidden_sizes": [16, 24, 32, 40], "depths": [1, 1, 1, 1], "embedding_size": 12},
    "hiera": {"embed_dim": 16, "depths": [1, 1, 1], "num_heads": [1, 2, 2], "image_size": [64, 64],
              "num_query_pool": 2, "masked_unit_size": [4, 4], "query_stride": [2, 2],
              "patch_size": [7, 7], "patch_stride": [4, 4]},
    "levit": {"hidden_sizes": [16, 24, 32], "depths": [1, 1, 1], "num_attention_heads": [2, 2, 2],
              "key_dim": [8, 8, 8], "image_size": SIDE},
    "metaclip_2": CLIP,
    "mobilenet_v1": {"depth_multiplier": 0.25},
    "mobilenet_v2": {"depth_multiplier": 0.25},
    "mobilevit": {"image_size": SIDE, "hidden_sizes": [24, 32, 40], "neck_hidden_sizes": [8, 8, 12, 16, 20, 24, 32],
                  "num_attention_heads": 2},
    "mobilevitv2": {"image_size": SIDE, "width_multiplier": 0.25, "n_attn_blocks": [1, 1, 1]},
    "perceiver": {"image_size": SIDE, "num_latents": 8, "d_latents": 32, "num_blocks": 1,
                  "num_self_attends_per_block": 2, "num_self_attention_heads": 2, "num_cross_attention_heads": 1,
                  "train_size": [SIDE, SIDE], "initializer_range": 0.2},
    "poolformer": {**STAGES},
    "pvt": {**STAGES, "num_attention_heads": [1, 2, 2, 4], "image_size": SIDE, "mlp_ratios": [2, 2, 2, 2],
            "hidden_sizes": [16, 24, 32, 40]},
    "pvt_v2": {**STAGES, "num_attention_heads": [1, 2, 2, 4], "image_size": SIDE, "mlp_ratios": [2, 2, 2, 2]},
    "regnet": {**STAGES, "embedding_size": 16, "groups_width": 8},
    "resnet": {**STAGES, "embedding_size": 16},
    "segformer": {**STAGES, "num_attention_heads": [1, 2, 2, 4], "image_size": SIDE, "mlp_ratios": [2, 2, 2, 2]},
    "siglip": CLIP,
    "siglip2": CLIP,
    "swiftformer": {"depths": [1, 1, 1, 1], "embed_dims": [16, 24, 32, 40], "image_size": SIDE},
    "swin": SWIN,
    "swinv2": SWIN,
    "textnet": {"hidden_sizes": [8, 8, 16, 16, 24], "stem_out_channels": 8, "image_size": [SIDE, SIDE]},
    "timm_wrapper": {"architecture": "test_vit"},
}  # fmt: skip
PLAIN = ("beit", "data2vec-vision", "deit", "dinov2", "dinov2_with_registers", "ijepa", "vit", "vit_msn")


@dataclass
class Row:
    """What one class gave."""

    kind: str
    name: str
    parameters: float = 0.0
    size: str = ""
    units: str = ""
    gap: float = float("nan")
    found: str = ""
    written: str = ""
    note: str = ""
    problem: str = ""
    refused: bool = False
    seconds: float = 0.0

    @property
    def good(self) -> bool:
        """Audited and written back, or refused by name with the reason."""
        return self.refused or (not self.problem and self.gap < TOLERANCE and self.written == "same")


def tiny(kind: str, name: str) -> PreTrainedModel:
    """A small network of this class with random weights, none of them constant."""
    settings = VIT if kind in PLAIN else TINY.get(kind, {})
    config = CONFIG_MAPPING[kind](**settings, num_labels=CLASSES, architectures=[name])
    torch.manual_seed(0)
    network: PreTrainedModel = getattr(transformers, name)(config).eval()
    with torch.no_grad():
        enliven(network)
        for parameter in network.parameters():
            if parameter.dim() > 1:
                parameter.add_(0.05 * torch.randn(parameter.shape))
    return network


def run(kind: str, name: str) -> Row:
    """Save, open, look for units, search, write back."""
    row, start = Row(kind, name), time.time()
    with TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        try:
            with quiet():
                if kind in NO_IMAGES and kind != "timm_wrapper":  # what there is to read is its config.json
                    CONFIG_MAPPING[kind](architectures=[name]).save_pretrained(folder)
                    save_file({"weight": torch.ones(1)}, folder / "model.safetensors")
                else:
                    tiny(kind, name).save_pretrained(folder)
            adapter = opened(row, folder)
            measure(row, adapter)
            row.written = rewritten(adapter, folder, Path(scratch))
        except MemauditError as error:
            row.problem, row.refused = error.message, True
        except ImportError as error:
            row.problem, row.refused = f"transformers: {' '.join(str(error).split())[:100]}", True
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            row.problem = f"{type(error).__name__}: {error}".splitlines()[0][:160]
    row.seconds = time.time() - start
    return row


def opened(row: Row, folder: Path) -> Adapter:
    """The adapter; where the preprocessing must be said, as the message asks for it."""
    checkpoint = read(folder)
    said = (folder / "config.json").read_text("utf-8")
    free = "image_size" not in said and "timm_wrapper" not in said
    try:  # the usual size where the network has one, else a small one
        return choose(checkpoint, ModelOptions(input_size=(3, SIDE, SIDE) if free else None))
    except MemauditError as error:
        if not error.hint or "--input-size" not in error.hint:
            raise
        row.note = "with --mean, --std, --input-size"
        return choose(checkpoint, ModelOptions(mean=(0.5,) * 3, std=(0.5,) * 3, input_size=(3, SIDE, SIDE)))


def measure(row: Row, adapter: Adapter) -> None:
    """Units, the gap between masks and edits, and a search."""
    row.parameters = adapter.parameters / 1e6
    size = adapter.preprocess.input_size
    row.size = f"{size[1]}" if size[1] == size[2] else f"{size[1]} x {size[2]}"
    pixels = torch.rand(12, *size, generator=torch.Generator().manual_seed(0))
    with exact_arithmetic():
        sites = adapter.sites(pixels)
        widths = Counter[str]()
        for site in sites:
            widths[site.kind] += site.width
        row.units = ", ".join(f"{n:,} {k}" for k, n in widths.most_common())
        spaces = [UnitSpace(tuple(s for s in sites if s.kind == kind)) for kind in widths]
        row.gap = max((gap(adapter, space, pixels[:2]) for space in spaces), default=float("nan"))
        row.found = search(adapter, select(sites), pixels)


def rewritten(adapter: Adapter, folder: Path, scratch: Path) -> str:
    """`same` if the edited folder loads by plain `from_pretrained`, answers alike, and has the names it had."""
    size = adapter.preprocess.input_size
    pixels = torch.rand(3, *size, generator=torch.Generator().manual_seed(1))
    space = select(adapter.sites(pixels))
    state = {n: t.clone() for n, t in adapter.module.state_dict().items()}
    silence(state, space, [0, space.total - 1])
    if adapter.name != "transformers":
        return "same"  # timm's own, written as one file
    adapter.write(state, scratch / "edited")
    with quiet(), torch.no_grad():
        loaded = AutoModelForImageClassification.from_pretrained(scratch / "edited").eval()
        adapter.module.load_state_dict(state)
        own = adapter.forward(pixels)
        adapter.module = loaded
        theirs = adapter.forward(pixels)
    names = [set(safe_open(f / "model.safetensors", "pt").keys()) for f in (folder, scratch / "edited")]
    if names[0] != names[1]:
        return f"{len(names[0] ^ names[1])} names differ"
    return "same" if torch.equal(own, theirs) else f"differs by {float((own - theirs).abs().max()):.1e}"


def table(rows: list[Row]) -> str:
    """Markdown."""
    audited, good = [r for r in rows if r.good and not r.refused], [r for r in rows if r.good]
    lines = [
        "# transformers: image classifiers",
        "",
        (
            f"Every class that AutoModelForImageClassification of transformers {transformers.__version__} knows, small "
            f"and with random weights, saved by save_pretrained (torch {torch.__version__}). {len(audited)} of "
            f"{len(rows)} can be audited and edited, {len(good) - len(audited)} are refused by name with the reason: "
            f"{100 * len(good) / len(rows):.0f} %."
        ),
        "",
        f"Gap: largest difference of masked and edited logits over {PROVEN} sites of a kind, of the largest logit.",
        "Erased: of four random images, how many lose the model's own prediction within 10 units.",
        "Written: two units silenced, written back, loaded by plain from_pretrained: same answers, same names.",
        "",
        "| model type | class | parameters | input | units | gap | erased | written | note |",
        "|---|---|---:|---|---|---:|---|---|---|",
    ]
    lines += [
        f"| {r.kind} | {r.name.replace('ForImageClassification', '…')} | {r.parameters:.2f} M | {r.size} | {r.units} "
        f"| {r.gap:.1e} | {r.found} | {r.written} | {(r.problem or r.note).replace('|', '/')} |"
        for r in rows
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="*")
    parser.add_argument("--limit", type=int, default=300, help="seconds a class may take")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    rows = []
    for kind, names in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES.items():
        for name in [names] if isinstance(names, str) else names:
            if fnmatch.fnmatch(kind, args.only):
                with limited(args.limit):
                    rows.append(run(kind, name))
                r = rows[-1]
                print(f"{r.kind:22} {r.name:40} {r.parameters:6.2f} {r.size:8} {r.gap:8.1e} {r.units:36} {r.found:22} "
                      f"{r.written} {r.note} {r.problem} {r.seconds:.0f}s", file=sys.stderr, flush=True)  # fmt: skip
    publish(table(rows), args.out)


if __name__ == "__main__":
    main()
