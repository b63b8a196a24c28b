"""Checkpoint series as training scripts leave them: found with no flag but MODEL, in order, each file once."""

from __future__ import annotations

import argparse
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.utils import CheckpointSaver
from torch import Tensor, nn

from memaudit.__main__ import run
from memaudit.adapters.base import Adapter
from memaudit.checkpoints import find_series, read
from memaudit.checkpoints.marks import Mark, mark_of, named_mark
from memaudit.data import Preprocess
from memaudit.errors import ModelRejected, PremiseBroken, UsageError
from memaudit.pipeline.series import read_states, spread
from tests.conftest import Trained

State = dict[str, Tensor]
MODEL = "test_resnet"


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(MODEL, num_classes=5)


def at(network: nn.Module, epoch: int) -> State:
    """The state after `epoch`: every weight a little further."""
    return {n: t + 0.001 * epoch if t.is_floating_point() else t.clone() for n, t in network.state_dict().items()}


def timm_run(folder: Path, network: nn.Module, epochs: int, keep: int = 10, recovery: bool = False) -> Path:
    """A run directory as timm's train.py writes it: by its own saver, with `args.yaml` and `summary.csv`."""
    model = timm.create_model(MODEL, num_classes=5)
    args = argparse.Namespace(model=MODEL, num_classes=5, checkpoint_hist=keep)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    folder.mkdir(parents=True)
    where = {"checkpoint_dir": str(folder), "recovery_dir": str(folder)}
    saver = CheckpointSaver(model, optimizer, args=args, max_history=keep, **where)
    for epoch in range(epochs):
        model.load_state_dict(at(network, epoch))
        if recovery and epoch == 1:
            saver.save_recovery(epoch, batch_idx=40)
        saver.save_checkpoint(epoch, metric=float(epoch))
    (folder / "args.yaml").write_text(f"model: {MODEL}\nnum_classes: 5\ncheckpoint_hist: {keep}\n")
    (folder / "summary.csv").write_text("epoch,train_loss\n")
    return folder


def lightning_run(folder: Path, network: nn.Module, last: bool = True) -> Path:
    """`checkpoints/` of a Lightning logger's version, as its `ModelCheckpoint` names them."""
    inner = folder / "checkpoints"
    inner.mkdir(parents=True)
    for epoch in (0, 1, 2, 10):
        content = {
            "epoch": epoch, "global_step": 120 * (epoch + 1), "pytorch-lightning_version": "2.5.0",
            "state_dict": {f"model.{n}": t for n, t in at(network, epoch).items()},
            "loops": {"fit_loop": {"epoch_progress": {"current": {"ready": 99}}, "state_dict": {"epoch": 77}}},
            "callbacks": {}, "optimizer_states": [{"state": {}, "param_groups": [{"lr": 0.1}]}], "lr_schedulers": [],
        }  # fmt: skip
        torch.save(content, inner / f"epoch={epoch}-step={120 * (epoch + 1)}.ckpt")
        if last and epoch == 10:
            content["callbacks"] = {"note": "written later, so not the same bytes"}
            torch.save(content, inner / "last.ckpt")
    return folder


def trainer_run(folder: Path, network: nn.Module, final: bool = True) -> Path:
    """`checkpoint-N/` as Hugging Face's Trainer writes them, and what `save_model` puts beside them."""
    config = {"architecture": MODEL, "num_classes": 5}
    places = {f"checkpoint-{step}": step for step in (100, 200, 1000)}
    for name, step in places.items():
        inner = folder / name
        inner.mkdir(parents=True)
        save_file(at(network, step // 100), inner / "model.safetensors")
        (inner / "config.json").write_text(json.dumps(config))
        (inner / "trainer_state.json").write_text(json.dumps({"epoch": step / 400, "global_step": step}))
        torch.save({"state": {}}, inner / "optimizer.pt")
    if final:
        shutil.copy(folder / "checkpoint-1000" / "model.safetensors", folder)
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def labels(model: Path, *named: str) -> list[str]:
    return [p.label for p in find_series(model, named).points]


# ---- the three kinds of runs ----------------------------------------------------------------------------------------


def test_a_timm_run_has_each_epoch_once_whatever_its_hard_links(tmp_path: Path, network: nn.Module) -> None:
    folder = timm_run(tmp_path / "run", network, 4, recovery=True)
    assert (folder / "last.pth.tar").stat().st_nlink > 1
    series = find_series(folder)
    assert [p.label for p in series.points] == ["epoch 0", "epoch 1, batch 40", "epoch 1", "epoch 2", "epoch 3"]
    assert [p.name for p in series.points][-1] == "checkpoint-3.pth.tar"
    assert not series.notes


def test_a_copied_run_without_hard_links_still_has_each_epoch_once(tmp_path: Path, network: nn.Module) -> None:
    folder = timm_run(tmp_path / "run", network, 3)
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    assert os.stat(copy / "last.pth.tar").st_nlink == 1
    assert labels(copy) == ["epoch 0", "epoch 1", "epoch 2"]


def test_pruned_epochs_are_said_with_the_flag_that_keeps_them(tmp_path: Path, network: nn.Module) -> None:
    series = find_series(timm_run(tmp_path / "run", network, 6, keep=2))
    assert [p.label for p in series.points] == ["epoch 4", "epoch 5"]
    (note,) = series.notes
    assert note.startswith("4 of 6 epochs have no checkpoint (the first kept is epoch 4): timm keeps only the best")
    assert note.endswith("train with --checkpoint-hist 6 to keep all")


def test_what_was_saved_after_the_model_is_left_out(tmp_path: Path, network: nn.Module) -> None:
    folder = timm_run(tmp_path / "run", network, 4)
    series = find_series(folder / "checkpoint-1.pth.tar")
    assert [p.label for p in series.points] == ["epoch 0", "epoch 1"]
    assert series.notes[0] == "2 checkpoints were saved after the audited one (epoch 1); they were left out"


@pytest.mark.parametrize("name", ["", "checkpoints/last.ckpt"])
def test_a_lightning_series(tmp_path: Path, network: nn.Module, name: str) -> None:
    folder = lightning_run(tmp_path / "version_0", network)
    model = folder / name
    assert len(read(model).tensors) == len(network.state_dict())
    points = find_series(model).points
    assert [p.mark.epoch for p in points][:4] == [0, 1, 2, 10]
    if not name:  # each file is read in a process of its own, which takes its time
        states, notes = read_states(adapter(network, 10), find_series(model), weights="raw", most=9)
        assert [s.epoch for s in states] == [0, 1, 2, 10]
        assert states[-1].final
        assert not notes


def test_a_lightning_folder_without_a_last_file_is_read_at_its_highest_step(tmp_path: Path, network: nn.Module) -> None:
    folder = lightning_run(tmp_path / "version_0", network, last=False)
    assert read(folder).path.name == "epoch=10-step=1320.ckpt"


@pytest.mark.parametrize("final", [True, False])
@pytest.mark.parametrize("name", ["", "checkpoint-1000", "checkpoint-1000/model.safetensors"])
def test_checkpoint_folders_of_a_trainer(tmp_path: Path, network: nn.Module, final: bool, name: str) -> None:
    folder = trainer_run(tmp_path / "out", network, final)
    assert read(folder / name).tensors.keys() == network.state_dict().keys()
    points = find_series(folder / name).points
    assert [(p.name, p.mark.step, p.mark.epoch) for p in points] == [
        ("checkpoint-100", 100, 0.25), ("checkpoint-200", 200, 0.5), ("checkpoint-1000", 1000, 2.5),
    ]  # fmt: skip


def test_the_demos_folder_beside_the_model(tmp_path: Path, network: nn.Module) -> None:
    inner = tmp_path / "checkpoints"
    inner.mkdir()
    for epoch in (10, 2, 1):
        save_file(at(network, epoch), inner / f"e{epoch}.safetensors", metadata={"epoch": str(epoch)})
    save_file(at(network, 11), tmp_path / "model.safetensors")
    assert labels(tmp_path / "model.safetensors") == ["epoch 1", "epoch 2", "epoch 10"]
    states, _ = read_states(adapter(network, 11), find_series(tmp_path / "model.safetensors"), weights="raw", most=9)
    assert [(s.label, s.final) for s in states][-2:] == [("epoch 10", False), ("audited model", True)]


# ---- names and contents ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "mark"),
    [
        ("epoch-012.safetensors", Mark(epoch=12, origin="name")),
        ("resnet50_ep3.pt", Mark(epoch=3, origin="name")),
        ("epoch=3-step=120.ckpt", Mark(epoch=3, step=120, origin="name")),
        ("model_step_5000.bin", Mark(step=5000, origin="name")),
        ("checkpoint-7.pth.tar", Mark(number=7, origin="name")),
        ("recovery-3-40.pth.tar", Mark(epoch=3, batch=40, origin="name")),
        ("resnet50.pt", Mark()),
        ("deepvit12.pt", Mark()),
    ],
)
def test_what_a_name_says(name: str, mark: Mark) -> None:
    assert named_mark(name) == mark


def test_contents_say_more_than_names(tmp_path: Path) -> None:
    tensors = {"w": torch.ones(2)}
    save_file(tensors, tmp_path / "epoch-9.safetensors", metadata={"epoch": "4", "global_step": "44"})
    assert mark_of(tmp_path / "epoch-9.safetensors", "epoch-9.safetensors") == Mark(4, 44, origin="contents")
    torch.save({"net": {"epoch": torch.ones(1)}, "deep": {"epoch": 8}, "step": 12}, tmp_path / "a.pt")
    assert mark_of(tmp_path / "a.pt", "a.pt") == Mark(None, 12, origin="contents"), "only the outermost table counts"
    torch.save({"epoch": True, "state_dict": tensors}, tmp_path / "b.pt")
    assert mark_of(tmp_path / "b.pt", "b.pt") == Mark()


def test_a_mark_is_told_without_running_anything(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (os.system, (f"touch {tmp_path / 'ran'}",))

    torch.save({"epoch": 3, "state_dict": {"w": torch.ones(1)}, "x": Bomb()}, tmp_path / "checkpoint-3.pt")
    assert mark_of(tmp_path / "checkpoint-3.pt", "checkpoint-3.pt").epoch == 3
    assert not (tmp_path / "ran").exists()


def test_without_numbers_inside_names_are_sorted_as_people_count(tmp_path: Path) -> None:
    for number in (10, 9, 1):
        torch.save({"w": torch.full((2,), float(number))}, tmp_path / f"checkpoint_{number}.pt")
    assert labels(tmp_path / "checkpoint_10.pt") == ["checkpoint 1", "checkpoint 9", "checkpoint 10"]


def test_two_series_beside_the_model_are_not_mixed(tmp_path: Path, network: nn.Module) -> None:
    for run_name in ("red", "blue"):
        for epoch in (1, 2):
            save_file(at(network, epoch), tmp_path / f"{run_name}-epoch-{epoch}.safetensors")
    assert labels(tmp_path / "red-epoch-2.safetensors") == ["epoch 1", "epoch 2"]
    save_file(at(network, 3), tmp_path / "final.safetensors")
    series = find_series(tmp_path / "final.safetensors")
    assert not series.points
    assert "several series lie beside the model" in series.notes[0]
    assert labels(tmp_path / "final.safetensors", str(tmp_path / "blue-*")) == ["epoch 1", "epoch 2"]


def test_absent_files_are_an_error_and_a_lone_model_has_no_series(tmp_path: Path, network: nn.Module) -> None:
    save_file(at(network, 3), tmp_path / "model.safetensors")
    assert find_series(tmp_path / "model.safetensors").points == ()
    with pytest.raises(UsageError, match=r"--checkpoints .*nowhere: no such file or folder"):
        find_series(tmp_path / "model.safetensors", [str(tmp_path / "nowhere")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no checkpoint in that folder"):
        find_series(tmp_path / "model.safetensors", [str(tmp_path / "empty")])


# ---- states of the model --------------------------------------------------------------------------------------------


def adapter(network: nn.Module, epoch: int) -> Adapter:
    model = timm.create_model(MODEL, num_classes=5)
    model.load_state_dict(at(network, epoch))
    return Adapter(model, architecture=MODEL, preprocess=Preprocess((3, 32, 32)))


@pytest.fixture
def run_folder(tmp_path: Path, network: nn.Module) -> Path:
    for epoch in (1, 2, 3):
        save_file(at(network, epoch), tmp_path / f"epoch-{epoch}.safetensors")
    return tmp_path


def test_a_stranger_is_left_out_when_found_and_refused_when_named(run_folder: Path, network: nn.Module) -> None:
    other = timm.create_model(MODEL, num_classes=7).state_dict()
    save_file(other, run_folder / "epoch-2.safetensors")
    model = run_folder / "epoch-3.safetensors"
    states, notes = read_states(adapter(network, 3), find_series(model), weights="raw", most=9)
    assert [s.label for s in states] == ["epoch 1", "epoch 3"]
    assert notes[0].startswith("1 checkpoints beside the model were left out: epoch-2.safetensors (")
    with pytest.raises(ModelRejected, match=r"epoch-2\.safetensors is no checkpoint of this model: .* other shapes"):
        read_states(adapter(network, 3), find_series(model, [str(run_folder)]), weights="raw", most=9)


def test_a_checkpoint_that_diverged_is_no_state(run_folder: Path, network: nn.Module) -> None:
    broken = at(network, 2)
    broken["conv1.weight" if "conv1.weight" in broken else next(iter(broken))].view(-1)[0] = float("nan")
    save_file(broken, run_folder / "epoch-2.safetensors")
    series = find_series(run_folder / "epoch-3.safetensors", [str(run_folder)])
    with pytest.raises(PremiseBroken, match="not finite"):
        read_states(adapter(network, 3), series, weights="raw", most=9)


def test_long_series_are_thinned_out_evenly_and_that_is_said(run_folder: Path, network: nn.Module) -> None:
    assert spread(list(range(14)), 9) == [0, 2, 3, 5, 6, 8, 10, 11, 13]
    series = find_series(run_folder / "epoch-3.safetensors")
    states, notes = read_states(adapter(network, 3), series, weights="raw", most=2)
    assert [s.label for s in states] == ["epoch 1", "epoch 3"]
    assert notes == ["2 of 3 checkpoints are used, evenly spread"]


def test_inspect_shows_the_series(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(run_folder / "epoch-3.safetensors"), "-f", "json"]) == 0
    found = json.loads(capsys.readouterr().out)["series"]
    assert [(p["checkpoint"], p["file"], p["epoch"]) for p in found] == [
        (f"epoch {n}", f"epoch-{n}.safetensors", float(n)) for n in (1, 2, 3)
    ]
    assert run(["inspect", str(run_folder / "epoch-3.safetensors")]) == 0
    assert "3 checkpoints, epoch 1 (epoch-1.safetensors) to epoch 3" in capsys.readouterr().out


def test_a_scan_takes_the_series_with_no_flag_but_the_model(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    for epoch, share in ((1, 0.8), (2, 0.4)):
        state = {n: t * (1 - share) if n.endswith("weight") else t for n, t in trained.module.state_dict().items()}
        save_file(state, folder / "checkpoints" / f"epoch-{epoch}.safetensors")
    save_file(trained.module.state_dict(), folder / "model.safetensors")
    for name, examples in (("flagged", trained.flagged), ("reference", trained.reference)):
        np.savez(tmp_path / f"{name}.npz", x=examples.pixels.numpy(), y=examples.labels.numpy())
    scan = [
        "scan", str(folder / "model.safetensors"), "--adapter", "tests/networks.py:DigitsNet", "--input-size", "1,8,8",
        "--flagged", str(tmp_path / "flagged.npz"), "--reference", str(tmp_path / "reference.npz"), "--profile", "fast",
        "--exit-zero", "-q", "-f", "json", "--out", str(tmp_path / "report"),
    ]  # fmt: skip
    monkeypatch.chdir(Path(__file__).parents[2])
    assert run([*scan, "--dry-run"]) == 0
    assert "series     3 checkpoints, the audited model included" in capsys.readouterr().out
    assert run([*scan, "--audit", "gradients,rewind", "--layers", "two*,three*"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [p["checkpoint"] for p in found["series"]] == ["epoch 1", "epoch 2", "audited model"]
    assert [(x["layer"], len(x["gradients"]), len(x["rewind"]), x["retrain"]) for x in found["layers"]] == [
        ("two", 3, 3, None), ("three", 3, 3, None),
    ]  # fmt: skip
    assert {f["outcome"] for f in found["findings"]} <= {"not_searched", "not_fitted"}
    assert run([*scan, "--audit", "rewnd"]) == 2
    assert "--audit 'rewnd' is no audit; closest: 'rewind'" in capsys.readouterr().err
