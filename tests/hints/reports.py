"""Hints about reports, the gate, edited copies and the places they are written to, each followed."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from filelock import FileLock
from safetensors.torch import load_file, save_file

from memaudit.cli.erase import Edit
from memaudit.engine.journal import journalled
from tests.hints.follow import DRY, REPORT, SCANNED, Follow, Right, Wrong, scanned
from tests.real_inputs.crashes import MODEL
from tests.real_inputs.harness import Ran, execute
from tests.real_inputs.pictures import pictures

CHECK = ("check", REPORT, "--exit-zero")
ERASE = ("erase", REPORT, "--model", MODEL[0], "-o", "edited.safetensors", "-q")
UNITS = (*ERASE, "--method", "units")
ALL = ("--all", "--max-test-drop", "100")
STEPPED = (*ERASE, "--method", "curvature", "--clean-steps", "1", "--test", "test.npz", "--max-test-drop", "100")
REBUILT = (*ERASE, "--method", "head", "--test", "test.npz", "--max-test-drop", "100")
RELEARNED = (*REBUILT[:-5], "relearn", *REBUILT[-4:], "--clean-steps")
CURVED = (*ERASE, "--method", "curvature", "--clean-steps", "0", "--test", "test.npz")


def named(*words: str) -> Right:
    return lambda folder, ran: words


def reported(*words: str, before: Callable[[Path], object] = lambda f: None) -> Wrong:
    """With the report of a scan in place."""

    def wrong(folder: Path) -> tuple[str, ...]:
        scanned(folder)
        before(folder)
        return words

    return wrong


def edited(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    """The report's JSON, changed by hand."""

    def change_it(folder: Path) -> None:
        report = json.loads((folder / REPORT).read_text())
        change(report)
        (folder / REPORT).write_text(json.dumps(report))

    return change_it


def anew(folder: Path, ran: Ran) -> None:
    shutil.rmtree(folder / "report")
    scanned(folder)


def written(name: str, content: str | bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)


def then_written(name: str, content: str | bytes) -> Right:
    def right(folder: Path, ran: Ran) -> None:
        written(name, content)(folder)

    return right


def first(folder: Path, outcome: str = "localized") -> str:
    found = json.loads((folder / REPORT).read_text())["findings"]
    lost = {f["id"] for f in found if f["units"] and f["after"] and f["after"]["prediction"] != f["example"]["label"]}
    return str(next(f["id"] for f in found if f["outcome"] == outcome and (f["id"] in lost) != (outcome == "diffuse")))


# ---- waivers ------------------------------------------------------------------------------------------------------

WAIVER = '[[waiver]]\nid = "{}"\nreason = "agreed"\nowner = "somebody"\nexpires = {}\n'
SOUND = WAIVER.format("0123456789abcdef", "2099-01-31")
WAIVED = (*CHECK, "--waivers", "waivers.toml")


def waiver(hint: str, text: str) -> Follow:
    return Follow(hint, reported(*WAIVED, before=written("waivers.toml", text)), then_written("waivers.toml", SOUND))


# ---- edits --------------------------------------------------------------------------------------------------------


def held_out(folder: Path, count: int = 100, start: int = 300) -> None:
    x, truth = pictures()
    images = x[start : start + count].transpose(0, 3, 1, 2).astype(np.float32) / 255
    np.savez(folder / "test.npz", x=images, y=truth[start : start + count])


def other(folder: Path) -> None:
    tensors = {n: t + 1e-3 for n, t in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "other.safetensors")


def outcome(kind: str) -> Callable[[Path], object]:
    def all_of_it(report: dict[str, Any]) -> None:
        for finding in report["findings"]:
            finding["outcome"] = kind

    return edited(all_of_it)


def without_units(folder: Path) -> None:
    def one(report: dict[str, Any]) -> None:
        report["findings"][0] |= {"units": [], "after": None, "outcome": "diffuse"}

    edited(one)(folder)


def few_of_the_test(folder: Path) -> None:
    held_out(folder)
    with np.load(folder / "test.npz") as test:
        np.savez(folder / "few.npz", x=test["x"][:22], y=test["y"][:22])


def two(folder: Path) -> None:
    with np.load(folder / "reference.npz") as rest:
        np.savez(folder / "two.npz", x=rest["x"][:2], y=rest["y"][:2])


def begun(folder: Path) -> tuple[str, ...]:
    """What another run measured lies in the folder of the report."""
    (folder / "report").mkdir()
    with journalled(folder / "report", {"model": "another"}) as journal:
        journal.add("first", 1, 0.5)
    return SCANNED


@contextmanager
def taken() -> Iterator[None]:
    """Another process writes to the folder."""
    Path("report").mkdir()
    with FileLock("report/.lock"):
        yield


def failing(code: int, what: str = "memaudit.system.files._stage") -> Callable[[], AbstractContextManager[object]]:
    """The disk says `code` where a file is written."""
    return lambda: mock.patch(what, side_effect=OSError(code, os.strerror(code)))


def locked(path: Path, *args: Any, **options: Any) -> Any:
    if path.name == "journal.jsonl":
        raise PermissionError(errno.EACCES, "Permission denied")
    return io.open(path, *args, **options)  # noqa: UP020 - Path.open is what is replaced


RENDER = ("render", REPORT, "-o")
NO_ARROW = mock.patch.dict(sys.modules, {"pyarrow": None})
FOLLOWED = [
    # ---- reports ----
    Follow(
        "Compare it with: memaudit schema report",
        reported(*CHECK, before=edited(lambda r: r["findings"][0].pop("id"))),
        lambda f, r: (anew(f, r), execute(f, ("schema", "report")))[0],
    ),
    Follow("Name the file: {}/report.json", reported("check", "report", "--exit-zero"), named(*CHECK)),
    Follow("Fetch it with: git lfs pull", reported(*CHECK, before=written(REPORT, "version https://git-lfs")), anew),
    Follow(
        "Check the reports one by one.",
        reported(*CHECK, REPORT, "--model", "model.safetensors"),
        named(*CHECK, "--model", "model.safetensors"),
    ),
    Follow("Choose the format by suffix: {}", reported(*RENDER, "page.htm5"), named(*RENDER, "page.html")),
    Follow(
        "Name the page that the scan wrote, with pictures in it (scan --images thumbs).",
        reported(*RENDER, "page.html", "--images", "none.html", before=written("none.html", "<p>")),
        named(*RENDER, "page.html", "--images", "report/report.html"),
    ),
    Follow(
        "pip install pyarrow, or write a .csv: it has the same columns.",
        reported(*RENDER, "rows.parquet"),
        named(*RENDER, "rows.csv"),
        fault=lambda: NO_ARROW,
    ),
    # ---- which checkpoint it is of ----
    Follow(
        "audit this checkpoint, or check the report that belongs to it",
        reported(*CHECK, "--model", "other.safetensors", before=other),
        named(*CHECK, "--model", "model.safetensors"),
    ),
    Follow(
        "give the checkpoint itself; a report of a model in memory, or of several shards, has no md5",
        reported(
            *CHECK,
            "--model",
            "model.safetensors.dvc",
            before=lambda f: (
                edited(lambda r: r["model"].update(md5=""))(f),
                written("model.safetensors.dvc", f"outs:\n- md5: {'0' * 32}\n  path: model.safetensors\n")(f),
            ),
        ),
        named(*CHECK, "--model", "model.safetensors"),
    ),
    Follow(
        "fetch it with dvc pull and give the checkpoint",
        reported(*CHECK, "--model", "m.dvc", before=written("m.dvc", "outs:\n- md5: 0123.dir\n  path: models\n")),
        named(*CHECK, "--model", "model.safetensors"),
    ),
    Follow(
        "give the checkpoint",
        reported(*CHECK, "--model", "m.dvc", before=written("m.dvc", "outs: none")),
        named(*CHECK, "--model", "model.safetensors"),
    ),
    # ---- waivers ----
    waiver("[[waiver]], two brackets a side", SOUND.replace("[[waiver]]", "[waiver]")),
    waiver("[[waiver]] with {}", 'waiver = ["0123456789abcdef"]\n'),
    waiver("Every waiver says {}.", SOUND.replace('owner = "somebody"\n', "")),
    waiver("Give {} characters or more.", SOUND.replace("0123456789abcdef", "012")),
    waiver("For example: expires = 2027-01-31", WAIVER.format("0123456789abcdef", '"next year"')),
    waiver("Keep one of them.", SOUND + SOUND),
    Follow("Check the path.", reported(*CHECK, "--waivers", "nowhere.toml"), named(*CHECK)),
    Follow(
        "Save it as UTF-8.",
        reported(*WAIVED, before=written("waivers.toml", SOUND.replace("agreed", "ä").encode("latin-1"))),
        then_written("waivers.toml", SOUND.replace("agreed", "ä")),
    ),
    # ---- edited copies ----
    Follow("The copy is written in that format.", reported(*ERASE[:5], "edited.pth", "-q", *ALL), named(*ERASE, *ALL)),
    Follow(
        "Name another place.",
        reported(*ERASE[:5], "model.safetensors", "-q", *ALL),
        named(*ERASE, *ALL),
    ),
    Follow(
        "Name a folder that does not exist yet.",
        reported(
            "erase",
            REPORT,
            "--model",
            "run",
            "-o",
            "edited",
            *ALL,
            before=lambda f: (
                (f / "run").mkdir(),
                shutil.copy(f / "model.safetensors", f / "run"),
                (f / "edited").mkdir(),
                written("edited/x", "")(f),
            ),
        ),
        named(*ERASE, *ALL),
    ),
    Follow(
        "Name a .safetensors file.",
        reported(
            "erase",
            REPORT,
            "--model",
            "run",
            "-o",
            "edited",
            *ALL,
            before=lambda f: ((f / "run").mkdir(), shutil.copy(f / "model.safetensors", f / "run")),
        ),
        named(*ERASE, *ALL),
    ),
    Follow(
        "Give the audited checkpoint, or scan this one.",
        reported(*ERASE[:3], "other.safetensors", *ERASE[4:], *ALL, before=other),
        named(*ERASE, *ALL),
    ),
    Follow(
        "{} erases a group; name it with --flagged.",
        reported(*CURVED, "--examples", "0123456789abcdef", before=held_out),
        named(*CURVED, "--max-test-drop", "100", "--flagged", "flagged.npz"),
    ),
    Follow(
        "Name findings with --examples, by their ids.",
        reported(*UNITS, *ALL, before=outcome("entangled")),
        lambda f, r: (*UNITS, "--examples", first(f, "entangled")),
    ),
    Follow(
        "Give a finding's id.",
        reported(*UNITS, "--examples", "nobody"),
        lambda f, r: (*UNITS, "--examples", first(f)),
    ),
    Follow(
        "Silence localized findings; for a whole group use --method curvature.",
        lambda f: (scanned(f), without_units(f), (*UNITS, "--examples", first(f, "diffuse")))[2],
        lambda f, r: (*UNITS, "--examples", first(f)),
    ),
    Follow(
        "Give the flagged examples of the audit, with --flagged.",
        reported(*UNITS, *ALL, "--flagged", "test.npz", before=held_out),
        named(*UNITS, *ALL, "--flagged", "flagged.npz"),
    ),
    Follow(
        "Give {} or more with --test; a thousand tell accuracies a point apart.",
        reported(*CURVED, "--max-test-drop", "100", before=lambda f: held_out(f, 3)),
        lambda f, r: held_out(f),
    ),
    Follow(
        "Give --reference and --test different examples.",
        reported(*STEPPED, "--reference", "few.npz", before=few_of_the_test),
        named(*STEPPED, "--reference", "reference.npz"),
    ),
    Follow(
        "Allow more with --max-test-drop, or silence units of single findings with --method units.",
        reported(*CURVED, "--max-test-drop", "0", before=held_out),
        lambda f, r: (*UNITS, "--examples", first(f)),
        fault=lambda: mock.patch.object(Edit, "allowed", -1.0),
    ),
    Follow(
        "Give --clean-steps 150 or more.",
        reported(*RELEARNED, "0", before=held_out),
        named(*RELEARNED, "1"),
    ),
    Follow(
        "Give --method finetune or relearn, and --clean-steps 150 or more.",
        reported(*REBUILT, "--wrong-labels", before=held_out),
        named(*RELEARNED, "1", "--wrong-labels"),
    ),
    Follow(
        "Flag more, or leave --wrong-labels away.",
        reported(*RELEARNED, "1", "--wrong-labels", before=held_out),
        named(*RELEARNED, "1"),
        fault=lambda: mock.patch("memaudit.erase.group.USED", 1.0),
    ),
    Follow(
        "Use --method relearn or --method curvature.",
        reported(*REBUILT, before=held_out),
        named(*STEPPED),
        fault=lambda: mock.patch("memaudit.erase.head.in_order", return_value={}),
    ),
    Follow(
        "Give a few hundred.",
        reported(*UNITS, *ALL, "--reference", "two.npz", before=two),
        named(*UNITS, *ALL, "--reference", "reference.npz"),
    ),
    # ---- places ----
    Follow(
        "Name the file it points to.",
        lambda f: ((f / "link.json").symlink_to("to.json"), (*SCANNED, "-o", "link.json"))[1],
        named(*SCANNED, "-o", "to.json"),
    ),
    Follow(
        "Name a file in it.",
        lambda f: ((f / "page.html").mkdir(), (*SCANNED, "-o", "page.html"))[1],
        named(*SCANNED, "-o", "page.html/page.html"),
    ),
    Follow(
        "Move it away, or choose another folder.",
        lambda f: (written("memaudit.toml", "")(f), ("init", "--ci", "none"))[1],
        named("init", "elsewhere", "--ci", "none"),
    ),
    Follow("Wait for it, or choose another --out.", lambda f: SCANNED, fault=taken),
    Follow(
        "Unset it, or correct its name.",
        lambda f: DRY,
        fault=lambda: mock.patch.dict(os.environ, {"MEMAUDIT_MAX_UNTIS": "5"}),
    ),
    Follow(
        "Choose another --out, or --fresh.",
        begun,
        named(*SCANNED, "--fresh"),
        fault=lambda: mock.patch("memaudit.engine.journal.Path.open", locked),
    ),
    Follow(
        "Repeat that command to go on, add --fresh to throw it away, or choose another --out.",
        begun,
        named(*SCANNED, "--fresh"),
    ),
    Follow(
        "Run the same command again, or change --out.",
        lambda f: SCANNED,
        fault=failing(errno.EIO, "memaudit.engine.journal.failpoint"),
    ),
    Follow(
        "Choose another --out.",
        lambda f: ((f / "report" / "journal.jsonl").mkdir(parents=True), SCANNED)[1],
        named(*SCANNED[:-1], "elsewhere"),
    ),
    Follow("Free some space and run the same command again.", lambda f: SCANNED, fault=failing(errno.ENOSPC)),
    Follow("Use --device cpu, or auto.", lambda f: (*DRY, "--device", "cuda:99"), named(*DRY, "--device", "auto")),
    Follow("Name a file in a folder that can be written to.", lambda f: SCANNED, fault=failing(errno.EACCES)),
    Follow(
        "Make it writable, or name another file.",
        reported(*RENDER, "report/report.html", before=lambda f: (f / "report/report.html").chmod(0o444)),
        lambda f, r: (f / "report/report.html").chmod(0o644),
    ),
    Follow(
        "Name a file in another folder.",
        reported(*RENDER, "kept/page.html", before=lambda f: (f / "kept").mkdir(0o555)),
        named(*RENDER, "page.html"),
    ),
]
