"""Folders of transformers, written by its own code: opened without a flag, audited, edited, loaded by it again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from memaudit_transformers import TransformersAdapter
from memaudit_transformers.library import quiet
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoImageProcessor, AutoModelForImageClassification, PreTrainedModel

from memaudit.adapters.base import Adapter, ModelOptions
from memaudit.adapters.registry import choose
from memaudit.checkpoints import read
from memaudit.errors import MemauditError, ModelRejected, UsageError
from memaudit.testing import check_adapter
from tests.cli_support import FAST, Command, command
from tests.plugins.trainer_run import NAMES, write_run

TINY: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24, "image_size": 32,
    "patch_size": 8, "num_labels": 3,
}  # fmt: skip


def saved(folder: Path, name: str = "ViT", **settings: Any) -> PreTrainedModel:
    """A small network of this class with random weights, in `folder`."""
    config = getattr(transformers, f"{name}Config")(**{**TINY, **settings})
    with torch.random.fork_rng(), quiet():
        torch.manual_seed(0)
        network: PreTrainedModel = getattr(transformers, f"{name}ForImageClassification")(config).eval()
        network.save_pretrained(folder)
    return network


def adapter_of(folder: Path, **options: Any) -> Adapter:
    return choose(read(folder), ModelOptions(**options))


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


# ---- a run of Trainer, from the command line --------------------------------------------------------------------


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("trainer"))


@pytest.fixture
def memaudit(work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return command(work, monkeypatch, capsys)


def test_a_trainer_run_is_scanned_and_erased_without_a_flag(work: Path, memaudit: Command) -> None:
    done = memaudit("scan", "run", "--flagged", "flagged", "--reference", "reference", "--out", "report", *FAST)
    assert done.code == 1, done.err  # memorized, and the default policy allows none
    report = json.loads((work / "report" / "report.json").read_text())
    assert (report["model"]["adapter"], report["model"]["architecture"]) == (
        "transformers",
        "ViTForImageClassification",
    )
    assert report["data"]["class_names"] == list(NAMES)
    assert report["summary"]["fitted"] >= 6
    assert report["summary"]["outcomes"]["localized"] >= 1
    assert len(report["series"]) >= 2  # Trainer's three checkpoints, found by themselves

    done = memaudit(
        "erase", "report/report.json", "--model", "run", "-o", "edited", "-q", "--all", "--max-test-drop", "100"
    )
    assert done.code == 0, done.err
    erasure = json.loads((work / "edited.erase.json").read_text())
    predicted = plain_predictions(work / "edited", sorted((work / "flagged").rglob("*.png")))
    by_file = {f["example"]["source"].removeprefix("flagged/"): f for f in report["findings"]}
    checked = 0
    for example in erasure["examples"]:
        source = next(s for s, f in by_file.items() if f["id"] == example["id"])
        name = Path(source.split("#")[0]).name
        assert predicted[name] == example["after"]["prediction"]
        checked += 1
    assert checked >= 1
    last = max((work / "run").glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))
    names = [set(safe_open(f / "model.safetensors", "pt").keys()) for f in (last, work / "edited")]
    assert names[0] == names[1]


def plain_predictions(folder: Path, images: list[Path]) -> dict[str, int]:
    """By file name, what transformers alone predicts."""
    with quiet(), torch.no_grad():
        processor = AutoImageProcessor.from_pretrained(folder)
        network = AutoModelForImageClassification.from_pretrained(folder).eval()
        values = processor([Image.open(p).convert("RGB") for p in images], return_tensors="pt")["pixel_values"]
        return {p.name: int(y) for p, y in zip(images, network(values).logits.argmax(1), strict=True)}


def test_an_edited_file_alone_has_the_names_of_the_original(work: Path, memaudit: Command) -> None:
    adapter = adapter_of(work / "run")
    adapter.write(adapter.module.state_dict(), work / "copy.safetensors")
    original = load_file(adapter.saved.folder / "model.safetensors")  # type: ignore[attr-defined]
    copied = load_file(work / "copy.safetensors")
    assert copied.keys() == original.keys()
    assert all(torch.equal(copied[n], original[n]) for n in original)


@pytest.mark.parametrize(("output", "says"), [("edited.pt", "is no .safetensors"), ("flagged", "is not empty")])
def test_a_place_for_the_edited_folder_is_refused_first(work: Path, memaudit: Command, output: str, says: str) -> None:
    done = memaudit("erase", "report/report.json", "--model", "run", "-o", output, "-q", "--all")
    assert (done.code, says in done.err) == (2, True), done.err


# ---- weights -----------------------------------------------------------------------------------------------------


def sharded(folder: Path) -> None:
    network = AutoModelForImageClassification.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    network.save_pretrained(folder, max_shard_size="10KB")
    assert (folder / "model.safetensors.index.json").exists()


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def halved(folder: Path) -> None:
    half = {n: t.half() for n, t in load_file(folder / "model.safetensors").items()}
    save_file(half, folder / "model.safetensors", {"format": "pt"})


def compiled(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({f"_orig_mod.{n}": t for n, t in tensors.items()}, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(("change", "exact"), [(sharded, True), (pickled, True), (compiled, True), (halved, False)])
def test_weights_are_read_in_every_form(tmp_path: Path, change: Callable[[Path], None], exact: bool) -> None:
    original = saved(tmp_path)
    with quiet():
        change(tmp_path)
    adapter = adapter_of(tmp_path)
    for name, tensor in original.state_dict().items():
        kept = tensor if exact else tensor.half().float()
        assert torch.equal(adapter.module.state_dict()[name], kept), name


def without_head(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({n: t for n, t in tensors.items() if "classifier" not in n}, folder / "model.safetensors")


def with_more(folder: Path) -> None:
    save_file({**load_file(folder / "model.safetensors"), "extra.weight": torch.ones(2)}, folder / "model.safetensors")


# how the folder is spoiled, what the refusal says
SPOILED: list[tuple[str, Callable[[Path], None], str]] = [
    ("no head", without_head, "2 missing ('classifier."),
    ("left over", with_more, "1 not used ('extra.weight')"),
    ("other shapes", lambda f: change_config(f, hidden_size=32), "is not the ViTForImageClassification of its config"),
    ("more layers", lambda f: change_config(f, num_hidden_layers=2), "missing"),
    ("a bomb", lambda f: change_config(f, num_hidden_layers=10**9), "larger than the checkpoint"),
    ("code of its own", lambda f: change_config(f, auto_map={"AutoConfig": "x.Y"}), "(auto_map), which is never run"),
    ("quantised", lambda f: change_config(f, quantization_config={"quant_method": "gptq"}), "quantised weights"),
    ("no classifier", lambda f: change_config(f, architectures=["ViTModel"]), "ViTModel is no classifier"),
    ("unknown type", lambda f: change_config(f, model_type="brand_new"), "has no model_type 'brand_new'"),
    ("palette", lambda f: change_config(f, model_type="imagegpt", architectures=None), "palette numbers"),
]


@pytest.mark.parametrize(("spoil", "says"), [s[1:] for s in SPOILED], ids=[s[0] for s in SPOILED])
def test_what_is_not_the_whole_classifier_is_refused(tmp_path: Path, spoil: Callable[[Path], None], says: str) -> None:
    saved(tmp_path)
    spoil(tmp_path)
    with pytest.raises(ModelRejected) as caught:
        adapter_of(tmp_path)
    assert says in caught.value.message
    assert caught.value.hint


def test_options_for_other_libraries_are_usage_errors(tmp_path: Path) -> None:
    saved(tmp_path)
    with pytest.raises(UsageError, match="--num-classes 4: the classifier has 3"):
        adapter_of(tmp_path, num_classes=4)
    with pytest.raises(UsageError, match=r"config\.json says this one"):
        choose(read(tmp_path), ModelOptions(arch="resnet18"), "transformers")


@pytest.mark.filterwarnings("ignore")
def test_lora_that_is_not_merged_is_refused_and_merged_as_the_hint_says_it_is_read(tmp_path: Path) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model

    base = saved(tmp_path / "base")
    linear = sorted({n for n, m in base.vit.named_modules() if isinstance(m, torch.nn.Linear)})
    tuned = get_peft_model(base, LoraConfig(target_modules=linear, modules_to_save=["classifier"]))
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.1)
    tuned.save_pretrained(tmp_path / "lora")
    torch.save(tuned.state_dict(), tmp_path / "whole.pt")
    for path in (tmp_path / "lora", tmp_path / "whole.pt"):
        with pytest.raises(ModelRejected, match="LoRA adapters") as caught:
            read(path)
        assert "merge_and_unload().save_pretrained(OUT)" in caught.value.hint
    plain = AutoModelForImageClassification.from_pretrained(tmp_path / "base")
    PeftModel.from_pretrained(plain, tmp_path / "lora").merge_and_unload().save_pretrained(tmp_path / "out")
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = tuned.eval()((images - 0.5) / 0.5).logits
        assert torch.allclose(adapter_of(tmp_path / "out").forward(images), expected, atol=1e-5)


# ---- preprocessing -------------------------------------------------------------------------------------------------

# what preprocessor_config.json says, and how many pixels the short side has before the crop
SIZES: list[tuple[str, dict[str, Any], str, int]] = [
    ("a number", {"image_processor_type": "ViTImageProcessor", "size": 32}, "squash", 32),
    ("an old name", {"feature_extractor_type": "ViTFeatureExtractor", "size": 32}, "squash", 32),
    ("both sides", {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}}, "squash", 32),
    (
        "the short side",
        {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 40}, "crop_size": 32},
        "center",
        40,
    ),
    ("a share", {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 32}}, "center", 36),
    ("levit", {"image_processor_type": "LevitImageProcessor", "size": 32, "crop_size": 32}, "center", 36),
]


@pytest.mark.parametrize(("raw", "mode", "side"), [s[1:] for s in SIZES], ids=[s[0] for s in SIZES])
def test_preprocessing_is_what_the_processor_does(tmp_path: Path, raw: dict[str, Any], mode: str, side: int) -> None:
    saved(tmp_path)
    colours = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**raw, **colours}))
    used = adapter_of(tmp_path).preprocess
    assert (used.input_size, used.crop_mode, int(32 / used.crop_pct)) == ((3, 32, 32), mode, side)
    assert used.mean == pytest.approx((0.1, 0.2, 0.3), abs=1e-5)
    assert used.std == pytest.approx((0.4, 0.5, 0.6), abs=1e-5)


def test_a_processor_that_turns_colours_round_is_followed(tmp_path: Path) -> None:
    original = saved(tmp_path)
    raw = {"image_processor_type": "MobileViTImageProcessor", "size": {"shortest_edge": 32}, "crop_size": 32}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(raw))
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(adapter_of(tmp_path).forward(images), original(images.flip(1)).logits)


def test_a_folder_without_a_processor_says_whose_values_it_got(tmp_path: Path) -> None:
    saved(tmp_path)
    used = adapter_of(tmp_path).preprocess
    assert (used.input_size, used.mean) == ((3, 32, 32), (0.5, 0.5, 0.5))
    assert "no preprocessor_config.json says them" in used.origin


UNUSABLE: list[tuple[str, dict[str, Any], str]] = [
    ("padding", {"image_processor_type": "DonutImageProcessor", "size": {"height": 32, "width": 32}}, "Donut"),
    ("code", {"image_processor_type": "ViTImageProcessor", "auto_map": {"AutoImageProcessor": "x.Y"}}, "auto_map"),
    ("unknown", {"image_processor_type": "NoSuchProcessor"}, "has no image processor 'NoSuchProcessor'"),
]


@pytest.mark.parametrize(("raw", "says"), [u[1:] for u in UNUSABLE], ids=[u[0] for u in UNUSABLE])
def test_a_processor_that_cannot_be_followed_asks_for_flags_that_do(
    tmp_path: Path, raw: dict[str, Any], says: str
) -> None:
    saved(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(raw))
    with pytest.raises(MemauditError, match=says) as caught:
        adapter_of(tmp_path)
    assert "--input-size" in caught.value.hint
    flags = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "input_size": (3, 32, 32)}
    assert adapter_of(tmp_path, **flags).preprocess.input_size == (3, 32, 32)


# ---- the rest ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ViT", "DeiT", "Dinov2"])
def test_the_conformance_kit_passes(tmp_path: Path, name: str) -> None:
    saved(tmp_path, name, initializer_range=0.2)
    assert len(check_adapter(adapter_of(tmp_path))) == 11


def test_the_example_passes_too() -> None:
    assert len(check_adapter(TransformersAdapter.example())) == 11


def test_logits_are_those_of_plain_transformers(tmp_path: Path) -> None:
    original = saved(tmp_path, "ViT")
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected: Tensor = original((images - 0.5) / 0.5).logits
        assert torch.equal(adapter_of(tmp_path).forward(images), expected)


def test_inspect_names_the_classes(work: Path, memaudit: Command) -> None:
    found = json.loads(memaudit("inspect", "run", "-f", "json").out)
    assert found["model"]["architecture"] == "ViTForImageClassification"
    assert found["model"]["num_classes"] == len(NAMES)
