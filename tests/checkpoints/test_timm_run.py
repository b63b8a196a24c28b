"""A timm run's folder says where its data is: nothing but the flagged examples needs to be named."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.torch import save_file

from memaudit import report
from memaudit.checkpoints import find_run, read
from memaudit.errors import ModelRejected, UsageError
from tests.cli_support import Command, command
from tests.timm_run import CHANGED, CLASSES, SIDE, arguments, train, write_images

FAST = ("--profile", "fast", "--images", "none", "-q", "--audit", "localize", "--out", "out")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project folder as training leaves it: `data/`, `output/train/run/`, and the flagged examples."""
    folder = tmp_path_factory.mktemp("project")
    flagged = write_images(folder / "data")
    with (folder / "data/train/flagged.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["path", "label"], *flagged])
    (folder / "flagged.txt").write_text("".join(f"{path}\n" for path, _ in flagged))
    train(folder / "output/train/run", folder / "data", arguments("data"))
    return folder


@pytest.fixture
def cli(project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return command(project, monkeypatch, capsys)


def test_the_folder_and_the_flagged_examples_are_enough(cli: Command, project: Path) -> None:
    ran = cli("scan", "output/train/run", "--flagged", "flagged.txt", *FAST)
    assert ran.code in (0, 1), ran.err
    found = report.read(project / "out/report.json")
    assert found.model.path == "output/train/run/model_best.pth.tar"
    assert found.data.class_names == list(CLASSES)
    assert found.data.class_order == "natural"
    assert (found.data.flagged.count, found.data.reference.count) == (CHANGED, 200)
    assert found.data.reference.accuracy > 0.8  # type: ignore[operator]
    assert found.summary.fitted >= CHANGED - 2
    assert found.config["class_order"].origin == "checkpoint"
    assert found.config["preprocess"].value == f"3x{SIDE}x{SIDE}, crop 1, bilinear, mean 0.2,0.3,0.4 std 0.5,0.4,0.3"
    said = [w.message for w in found.warnings if w.code == "MEM905"]
    assert said == [
        "the training data was taken from the run's args.yaml: train",
        "the reference was taken from the run's args.yaml: val",
    ]
    assert str(project) not in (project / "out/report.json").read_text("utf-8")


def test_the_data_is_found_from_elsewhere_and_a_manifest_serves(
    cli: Command, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project / "output")
    ran = cli("scan", "train/run", "--flagged", "../data/train/flagged.csv", *FAST)
    assert ran.code in (0, 1), ran.err
    found = report.read("out/report.json")
    assert found.data.reference.count == 200
    named = [f.example.source.split("/")[0] for f in found.findings]
    assert [CLASSES[f.example.label] for f in found.findings] == named


def test_a_wrong_class_order_is_caught(cli: Command) -> None:
    ran = cli("scan", "output/train/run", "--flagged", "flagged.txt", "--class-order", "lexical", *FAST)
    assert ran.code == 3
    assert "the class order is wrong (MEM902): reference accuracy is 0." in ran.err
    assert "--class-order natural" in ran.err


def test_inspect_shows_where_the_data_is(cli: Command) -> None:
    ran = cli("inspect", "output/train/run")
    assert "data           training train, reference val; classes in natural order (args.yaml)\n" in ran.out
    shown = json.loads(cli("inspect", "output/train/run", "-f", "json").out)
    assert shown["run"] == {"class_order": "natural", "problem": "", "train": "train", "validation": "val"}
    assert shown["preprocess"]["origins"]["mean"] == "checkpoint"
    assert shown["config"]["max-units"] == {"origin": "default", "value": 10}


def test_a_file_that_says_nothing_is_read_as_its_run_says(cli: Command, project: Path) -> None:
    """Weights alone, as one converts them, beside the `args.yaml` of the training; a checkpoint comes first."""
    run = project / "output/train/run"
    told = read(run / "model_best.pth.tar").facts
    save_file(dict(read(run / "model_best.pth.tar").tensors), run / "bare.safetensors")
    bare = read(run / "bare.safetensors").facts
    assert (bare.architecture, bare.num_classes) == (told.architecture, told.num_classes)
    assert bare.preprocess == told.preprocess
    assert "arch in args.yaml" in cli("inspect", "output/train/run/bare.safetensors").out
    args = run / "args.yaml"
    kept = args.read_text()
    try:
        args.write_text(kept.replace("- 0.2", "- 0.7"))
        assert read(run / "model_best.pth.tar").facts == told
        assert read(run / "bare.safetensors").facts.preprocess["mean"] == (0.7, 0.3, 0.4)
        args.write_text("- a list\n")
        assert read(run / "bare.safetensors").facts.architecture is None
    finally:
        args.write_text(kept)
        (run / "bare.safetensors").unlink()


def test_without_a_validation_folder_the_rest_of_the_training_data_is_the_reference(
    cli: Command, project: Path, tmp_path: Path
) -> None:
    shutil.copytree(project / "data/train", tmp_path / "data/train")
    (tmp_path / "data/train/flagged.csv").unlink()
    shutil.copytree(project / "output/train/run", tmp_path / "run")
    ran = cli("scan", str(tmp_path / "run"), "--flagged", "flagged.txt", *FAST)
    assert ran.code in (0, 1), ran.err
    found = report.read("out/report.json")
    assert found.data.reference.source == "train"
    assert any("all of the data that is not flagged" in w.message for w in found.warnings)
    assert any(f"{CHANGED} reference examples are also flagged" in w.message for w in found.warnings)


def test_the_average_is_a_question_to_the_user(cli: Command, project: Path, tmp_path: Path) -> None:
    run = train(tmp_path / "run", project / "data", arguments("data", model_ema=True, epochs=1), ema=True)
    scan = ("scan", str(run), "--flagged", "flagged.txt", *FAST)
    ran = cli(*scan)
    assert ran.code == 2
    assert "--weights raw or --weights ema" in ran.err
    chosen = cli(*scan, "--weights", "ema", "--dry-run")
    assert chosen.code == 0 or "near chance" in chosen.err  # after one epoch the average knows little
    assert "--weights" not in chosen.err


def test_nobody_says_where_the_examples_are(cli: Command, project: Path, tmp_path: Path) -> None:
    model = "output/train/run/model_best.pth.tar"
    ran = cli("scan", model, "--flagged", "data/train/flagged.csv", *FAST)
    assert (ran.code, "no reference examples" in ran.err) == (2, True)


# ---- args.yaml --------------------------------------------------------------------------------------------------


def run_of(folder: Path, **changes: object) -> Path:
    for name in ("train/a", "val/a"):
        (folder / "images" / name).mkdir(parents=True)
    (folder / "run").mkdir()
    args = {"data_dir": str(folder / "images"), **changes}
    (folder / "run" / "args.yaml").write_text(yaml.safe_dump(args))
    return folder / "run"


@pytest.mark.parametrize(
    ("args", "train_", "validation", "order"),
    [
        ({}, "train", "val", "natural"),
        ({"dataset": "torch/image_folder"}, "train", "val", "lexical"),
        ({"train_split": "training", "val_split": "val[:50%]"}, "train", "val", "natural"),
        ({"train_split": "all", "val_split": "test"}, "images", None, "natural"),
        ({"val_split": "../images/val"}, "train", None, "natural"),
        ({"dataset": "hfds/x"}, None, None, "natural"),
        ({"data_dir": "/gone"}, None, None, "natural"),
        ({"data_dir": None}, None, None, "natural"),
        ({"data_dir": ["a"], "data": 3}, None, None, "natural"),
    ],
)
def test_what_args_say_of_the_data(
    tmp_path: Path, args: dict[str, object], train_: str | None, validation: str | None, order: str
) -> None:
    found = find_run(run_of(tmp_path, **args))
    assert found is not None
    names = tuple(None if p is None else p.name for p in (found.train, found.validation))
    assert (*names, found.class_order) == (train_, validation, order)
    assert bool(found.problem) == (train_ is None)


def test_a_class_map_is_the_class_order(tmp_path: Path) -> None:
    run = run_of(tmp_path, class_map="classes.txt")
    with pytest.raises(UsageError, match=r"class map classes\.txt, which is not on this machine"):
        find_run(run)
    (tmp_path / "images" / "classes.txt").write_text("b\na\n")
    found = find_run(run)
    assert found is not None
    assert Path(found.class_order).read_text() == "b\na\n"


@pytest.mark.parametrize("text", ["- a\n", "a: !!python/object/apply:os.system [touch pwned]\n", "a: [" * 3000, "\0"])
def test_args_that_are_no_settings_are_refused(tmp_path: Path, text: str) -> None:
    run = run_of(tmp_path)
    (run / "args.yaml").write_text(text)
    with pytest.raises(ModelRejected, match=r"args\.yaml"):
        find_run(run)
    assert not Path("pwned").exists()


def test_other_folders_are_no_runs(tmp_path: Path) -> None:
    assert find_run(tmp_path) is None
    assert find_run(tmp_path / "gone") is None
    np.save(tmp_path / "x.npy", np.zeros(1))
    assert find_run(tmp_path / "x.npy") is None
