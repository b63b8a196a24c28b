"""Files beside the weights that state how images were prepared: taken as transformers' own processors do it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from memaudit.adapters.base import ModelOptions
from memaudit.adapters.preprocessing import resolve
from memaudit.adapters.registry import choose
from memaudit.checkpoints import read
from memaudit.data.images.geometry import at_size
from memaudit.data.images.preprocess import Preprocess

transformers = pytest.importorskip("transformers")
NUMBERS = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.25]}
# Mean difference of two pixels in [0, 1]; another geometry gives 0.02 and more on the pattern below.
CLOSE = 0.006
PROCESSORS: list[tuple[str, Callable[[], Any]]] = [
    ("height and width", lambda: transformers.ViTImageProcessor(size={"height": 32, "width": 48}, **NUMBERS)),
    ("one number", lambda: transformers.ViTImageProcessor(size=40, **NUMBERS)),
    ("shortest edge and crop", lambda: transformers.CLIPImageProcessor(size={"shortest_edge": 40}, crop_size=32)),
    (
        "shortest edge and share",
        lambda: transformers.ConvNextImageProcessor(size={"shortest_edge": 28}, crop_pct=0.875, **NUMBERS),
    ),
    ("a large shortest edge", lambda: transformers.ConvNextImageProcessor(size={"shortest_edge": 384}, crop_pct=0.875)),
    (
        "squashed, then cropped",
        lambda: transformers.EfficientNetImageProcessor(size={"height": 40, "width": 40}, crop_size=32),
    ),
    ("from -1 to 1", lambda: transformers.ViTImageProcessor(size=32, image_mean=[0.5] * 3, image_std=[0.5] * 3)),
    ("not normalised", lambda: transformers.ViTImageProcessor(size=32, do_normalize=False)),
    ("not scaled", lambda: transformers.ViTImageProcessor(size=32, do_rescale=False, **NUMBERS)),
    (
        "an offset",
        lambda: transformers.EfficientNetImageProcessor(
            size=32, do_center_crop=False, rescale_factor=1 / 127.5, rescale_offset=True, do_normalize=False
        ),
    ),
]


def pattern() -> Image.Image:
    y, x = np.mgrid[0:120, 0:150] / 9
    waves = [np.sin((1 + c / 9) * x) * np.cos((0.8 + c / 9) * y) for c in range(3)]
    return Image.fromarray(np.round(127.5 + 100 * np.stack(waves, -1)).astype(np.uint8))


def stated(folder: Path) -> Preprocess:
    """What the files beside `model.safetensors` say, and nothing else."""
    return resolve(ModelOptions(), read(folder / "model.safetensors").facts.preprocess, {}, "")


@pytest.mark.parametrize(("name", "make"), PROCESSORS, ids=[n for n, _ in PROCESSORS])
def test_images_are_prepared_as_the_processor_does(name: str, make: Callable[[], Any], tmp_path: Path) -> None:
    processor = make()
    processor.save_pretrained(tmp_path)
    save_file({"w": torch.ones(2)}, tmp_path / "model.safetensors")
    preprocess = stated(tmp_path)
    theirs = processor(pattern(), return_tensors="pt")["pixel_values"][0].float()
    pixels = torch.from_numpy(np.array(at_size(pattern(), preprocess))).permute(2, 0, 1)[None] / 255
    ours = preprocess.normalise(pixels)[0]
    assert ours.shape == theirs.shape
    spread = float(theirs.max() - theirs.min())
    assert float((ours - theirs).abs().mean()) < CLOSE * spread


def bare(folder: Path, name: str = "model.safetensors") -> Path:
    save_file(timm.create_model("test_resnet", num_classes=3).state_dict(), folder / name)
    return folder / name


def test_a_timm_file_takes_what_stands_beside_it(tmp_path: Path) -> None:
    named = bare(tmp_path, "net.safetensors")
    transformers.ViTImageProcessor(size=64, **NUMBERS).save_pretrained(tmp_path)
    used = choose(read(named), ModelOptions()).preprocess
    assert (used.input_size, used.mean, used.std) == ((3, 64, 64), (0.4, 0.5, 0.6), (0.2, 0.3, 0.25))
    assert dict(used.origins)["mean"] == "checkpoint"


def test_it_is_another_files_where_one_of_the_usual_names_is_there(tmp_path: Path) -> None:
    named, _ = bare(tmp_path, "net.safetensors"), bare(tmp_path)
    transformers.ViTImageProcessor(size=64, **NUMBERS).save_pretrained(tmp_path)
    assert choose(read(named), ModelOptions()).preprocess.mean != (0.4, 0.5, 0.6)
    assert choose(read(tmp_path), ModelOptions()).preprocess.mean == (0.4, 0.5, 0.6)


def test_the_models_own_configuration_goes_before_it(tmp_path: Path) -> None:
    bare(tmp_path)
    (tmp_path / "config.json").write_text(
        json.dumps({"architecture": "test_resnet", "pretrained_cfg": {"mean": [0.1] * 3}})
    )
    transformers.ViTImageProcessor(size=64, **NUMBERS).save_pretrained(tmp_path)
    used = choose(read(tmp_path), ModelOptions()).preprocess
    assert (used.mean, used.std) == ((0.1,) * 3, (0.2, 0.3, 0.25))


def test_a_configuration_says_it_at_its_top(tmp_path: Path) -> None:
    bare(tmp_path)
    said = {"architecture": "test_resnet", "mean": [0.1] * 3, "image_std": [0.3] * 3, "image_size": 96}
    (tmp_path / "config.json").write_text(json.dumps(said))
    used = choose(read(tmp_path), ModelOptions()).preprocess
    assert (used.input_size, used.mean, used.std) == ((3, 96, 96), (0.1,) * 3, (0.3,) * 3)


@pytest.mark.parametrize(
    "said",
    [
        {"size": {"longest_edge": 99}},
        {"size": {"shortest_edge": 99}},
        {"size": -1, "image_mean": "no"},
        {"size": {"height": 1e9, "width": None}},
        {"crop_size": True, "do_center_crop": 1, "size": []},
        {"rescale_factor": -1, "image_mean": [None], "image_std": [0]},
        {"pretrained_cfg": {"mean": [float("nan")] * 3, "url": "https://nowhere"}},
    ],
)
def test_what_cannot_be_told_is_left_open(said: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    save_file({"w": torch.ones(2)}, tmp_path / "model.safetensors")
    assert not set(read(tmp_path).facts.preprocess) & {"input_size", "crop_pct", "mean", "std"}
