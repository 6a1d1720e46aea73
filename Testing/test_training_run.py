"""Whole runs from the command line: they end well, go on after every kind of interruption, and learn."""

from __future__ import annotations

import errno
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("ema_pytorch")
pytest.importorskip("lightning_fabric")
from SpatialDiffusionCore.method import diffusion  # noqa: E402
from SpatialDiffusionCore.modelfile import card as card_module
from SpatialDiffusionCore.modelfile import catalog, model  # noqa: E402
from SpatialDiffusionCore.spatial import transform_file  # noqa: E402
from SpatialDiffusionTraining import checkpoint, export, losses, optimization, retina, train, trainer  # noqa: E402
from SpatialDiffusionTraining import run as runs  # noqa: E402
from SpatialDiffusionTraining.pairs import PairMaker, make_schedule, seeded  # noqa: E402
from SpatialDiffusionTraining.settings import Settings  # noqa: E402
from training_fixtures import ROOT, TINY, real_scans, write_phantoms  # noqa: E402


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    return write_phantoms(tmp_path_factory.mktemp("scans"), 6)


def run(scans, output, *more, steps=4):
    return train.main(["--train", str(scans), *TINY, "--steps", str(steps), "-o", str(output), *more])


def last_state(output):
    return checkpoint.load_checkpoint(checkpoint.checkpoints(output)[-1])


def training_losses(output):
    lines = [json.loads(text) for text in (output / "log.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["kind"] == "training"]


def assert_same_state(first, second):
    assert first["step"] == second["step"]
    for part in ("model", "ema"):
        assert all(torch.equal(first[part][k], second[part][k]) for k in first[part])
    for a, b in zip(first["optimizer"]["state"].values(), second["optimizer"]["state"].values()):
        assert all(torch.equal(a[k], b[k]) for k in a)


# ---------------------------------------------------------------------------------------------- whole runs
def test_a_run_leaves_checkpoints_figures_and_a_model(scans, tmp_path, capsys):
    output = tmp_path / "run"
    assert run(scans, output, "--keep", "2", "--picture-every", "4", steps=8) == 0
    assert [p.name for p in checkpoint.checkpoints(output)] == ["step-00000006.pt", "step-00000008.pt"]
    lines = [json.loads(text) for text in (output / "log.jsonl").read_text().splitlines()]
    training = [line for line in lines if line["kind"] == "training"]
    validation = [line for line in lines if line["kind"] == "validation"]
    assert [line["step"] for line in training] == [2, 4, 6, 8] and len(training[0]["loss_by_band"]) == 4
    assert {"samples_per_second", "data_share", "lr"} <= set(training[0])
    assert [line["step"] for line in validation] == [4, 8]
    assert validation[0]["corrupted"]["registration"]["p95"] >= validation[0]["corrupted"]["registration"]["median"]
    assert (output / "loss.png").stat().st_size > 1000
    assert {p.name for p in (output / "pictures").iterdir()} >= {"pairs-00000004.png", "predictions-00000008.png"}
    assert list((output / "tensorboard").iterdir())
    said = capsys.readouterr().out
    assert (
        "5 training and 1 validation scans" in said
        and "held-out scans of t1-brain end" in said
        and "1 = nothing learned" in said
    )
    # Nothing half-written is left.
    assert not [p for p in output.rglob("*") if ".part" in p.name]

    exported = export.export(
        output, tmp_path / "model.safetensors", half=True, name="tiny", licence="CC0", data="phantoms"
    )
    loaded = model.load_model(exported)
    assert loaded.card.grid.to_dict() == {"size": [16, 16, 16], "spacing": 14.0, "loading": "canonical"}
    assert loaded.card.license == "CC0" and loaded.card.training["scans"] == {
        "t1-brain train": 5,
        "t1-brain validation": 1,
    }
    assert loaded.card.modalities == {"any": 0, "t1-brain": 0}
    assert "median" in loaded.card.accuracy["validation"]["clean"]["registration"]
    assert str(scans) not in loaded.card.to_json() and str(tmp_path) not in loaded.card.to_json()
    best = checkpoint.load_checkpoint(output / "best.pt")["weights"]
    assert all(torch.allclose(v, best[k], atol=1e-3) for k, v in loaded.network.state_dict().items())


def test_the_published_recipe_in_small(scans, tmp_path):
    """The published preset as it is, but for the size: its loading, pose, artifacts, loss, Adam, network."""
    small = [
        "--preset",
        "published",
        "--size",
        "48",
        "56",
        "52",
        "--channels",
        "2",
        "8",
        "8",
        "8",
        "8",
        "8",
        "8",
        "--set",
        "network.options.groups=4",
        "--dataset",
        "t1-brain",
        "--batch",
        "2",
        "--log-every",
        "1",
        "--device",
        "cpu",
        "--threads",
        "1",
        "--validate-draws",
        "4",
        "--picture-every",
        "0",
    ]
    assert train.main(["--train", str(scans), *small, "--steps", "2", "-o", str(tmp_path / "run")]) == 0
    assert all(np.isfinite(training_losses(tmp_path / "run")))
    card = card_module.read_card(export.export(tmp_path / "run"))
    assert card.grid.to_dict() == {"size": [48, 56, 52], "spacing": None, "loading": "published"}
    assert card.sampler == "reference" and card.schedule.translation_range == (0.5, 4.0)
    assert card.architecture["head"] == "matrix" and card.architecture["class_dropout"] == 0.15


def test_install_puts_the_model_where_programs_look(scans, tmp_path, monkeypatch):
    monkeypatch.setenv("SPATIAL_DIFFUSION_MODELS", str(tmp_path / "models"))
    run(scans, tmp_path / "run", steps=2)
    named = ["--name", "mine", "--install", "--replace", "--which", "last", "--measure", "0"]
    assert train.main(["export", str(tmp_path / "run"), *named]) == 0
    assert "mine" in catalog.catalog()


def test_the_how_to_of_the_readme_trains_a_modality_of_ones_own_and_registers_with_it(tmp_path, monkeypatch, capsys):
    """Its commands as they stand there, on real scans, with a tiny network and few steps."""
    from SpatialDiffusionCore import cli
    from SpatialDiffusionCore.spatial import geometry, volume_file

    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    block = text.partition("## Train your own")[2].partition("```sh\n")[2].partition("```")[0]
    commands = [shlex.split(line) for line in block.splitlines()]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPATIAL_DIFFUSION_MODELS", str(tmp_path / "models"))
    (tmp_path / "scans").mkdir()
    for scan in real_scans():
        shutil.copy(scan, tmp_path / "scans")
    scan = volume_file.load(real_scans()[0])
    truth = geometry.about(geometry.rotation_about([1, 2, 0], 0.6), scan.center(), [20, 0, -9])
    volume_file.save(scan, "visit1.nii.gz")
    volume_file.save(scan.moved(truth), "visit2.nii.gz")
    tiny = [o for o in TINY if o not in ("--dataset", "t1-brain")]
    # One pair for the table that export makes, not its eight.
    more = [tiny, [*tiny, "--steps", "4"], ["--measure", "1"], [], []]
    programs = {"spatial-diffusion-train": train.main, "spatial-diffusion": cli.main}
    assert commands.pop(0) == ["pip", "install", ".[training]"]
    assert [c[0] for c in commands] == ["spatial-diffusion-train"] * 3 + ["spatial-diffusion"] * 2
    for number, (program, *arguments) in enumerate(commands):
        assert programs[program](arguments + more[number]) == 0
        if arguments == ["models", "list"]:
            assert "knee-mri" in capsys.readouterr().out
    found = transform_file.read_transform("visit1_to_visit2.tfm")
    corners = scan.center() + 60 * np.array(list(np.ndindex(2, 2, 2))) - 30
    error = geometry.transform_points(found, corners) - geometry.transform_points(truth, corners)
    assert np.linalg.norm(error, axis=1).max() < 5  # the grid has voxels of 14 mm


def test_several_modalities_get_class_ids_in_order(tmp_path):
    first, second = write_phantoms(tmp_path / "t1", 3), write_phantoms(tmp_path / "t2", 2)
    options = [o for o in TINY if o not in ("--dataset", "t1-brain")]
    base = ["--train", str(first), str(second), "--dataset", "t1-brain", "t2-head-neck", *options, "--steps", "2"]
    assert train.main([*base, "-o", str(tmp_path / "run")]) == 0
    assert last_state(tmp_path / "run")["architecture"]["n_classes"] == 2
    exported = export.export(tmp_path / "run", which="last")
    assert card_module.read_card(exported).modalities == {"any": 0, "t1-brain": 1, "t2-head-neck": 2}
    assert train.main([*base, "-o", str(tmp_path / "one"), "--unconditional"]) == 0
    assert last_state(tmp_path / "one")["architecture"]["n_classes"] == 1
    exported = export.export(tmp_path / "one", which="last")
    assert card_module.read_card(exported).modalities == {"any": 0, "t1-brain": 0, "t2-head-neck": 0}


def test_one_model_sees_heads_and_eyes_on_grids_of_their_own(tmp_path, capsys):
    from SpatialDiffusionCore import InputError, register
    from SpatialDiffusionCore.spatial import volume_file

    heads, eyes = write_phantoms(tmp_path / "t1", 2), tmp_path / "oct"
    assert retina.main(["--out", str(eyes), "--count", "2"]) == 0
    options = [o for o in TINY if o not in ("--dataset", "t1-brain")] + ["--head", "points"]
    grid = {"size": [16, 12, 16], "spacing": [0.4, 0.16, 0.4]}
    base = [
        "--train",
        str(heads),
        str(eyes),
        "--dataset",
        "t1-brain",
        "oct",
        *options,
        "--steps",
        "4",
        "--set",
        f"data.grids={json.dumps({'oct': grid})}",
        "--set",
        'augmentation.by_modality.oct={"pose": {"rotation_axis": "y", "rotation_degrees": 180}}',
        "--held-out",
        "0.5",
        "--set",
        'diffusion.by_modality={"oct": {"transform_range": [0.004, 0.03]}}',
    ]
    assert train.main([*base, "-o", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out
    assert "16×12×16 at 0.4×0.16×0.4 mm" in said and "cannot be written" not in said
    assert (tmp_path / "run" / "loss.png").stat().st_size > 1000
    card = card_module.read_card(export.export(tmp_path / "run", which="last"))
    assert card.grid_of("t1-brain") == card.grid_of("any") == card.grid
    assert card.grid_of("oct").to_dict() == {**grid, "loading": "canonical"}
    assert set(card.training["scans"]) == {f"{m} {p}" for m in ("t1-brain", "oct") for p in ("train", "validation")}
    loaded = model.load_model(tmp_path / "run" / "model.safetensors", "oct", "oct")
    assert loaded.schedule("oct").transform_range == (0.004, 0.03)
    assert loaded.schedule("t1-brain") == loaded.schedule() != loaded.schedule("oct")
    state = last_state(tmp_path / "run")
    settings = Settings.from_dict(state["settings"])
    collections = runs.prepare(settings)
    shapes = {c.name: tuple(c.cache.shape) for c in collections}
    assert shapes == {"t1-brain": (16, 16, 16), "oct": (16, 12, 16)}
    made = PairMaker(collections[1].cache, settings)
    pairs = made.make(collections[1].held_out, seeded(1))
    assert made.pose.rotation_axis == "y" and pairs.fixed.shape[2:] == (16, 12, 16)
    # Each modality is registered on its own grid, and the two are not mixed up.
    scans = [volume_file.load(p) for p in sorted(eyes.glob("*.nii.gz"))[:2]]
    file = tmp_path / "run" / "model.safetensors"
    assert np.isfinite(register(*scans, modality="oct", model=file, steps=2).matrix).all()
    with pytest.raises(InputError, match="different scales"):
        register(*scans, moving_modality="oct", fixed_modality="t1-brain", model=file)
    assert train.main([*base, "--head", "matrix", "-o", str(tmp_path / "no")]) == 2
    assert "--head points" in capsys.readouterr().err


@pytest.mark.parametrize("loader", ["canonical", "published"])
def test_octa_is_never_deformed_and_only_the_published_recipe_makes_it_black_and_white(loader, tmp_path):
    scans_ = write_phantoms(tmp_path / "octa", 2)
    options = [o if o != "t1-brain" else "octa" for o in TINY] + ["--loader", loader]
    assert train.main(["--train", str(scans_), *options, "--steps", "1", "-o", str(tmp_path / "run")]) == 0
    settings = Settings.from_dict(json.loads((tmp_path / "run" / "settings.json").read_text()))
    [collection] = runs.prepare(settings)
    cache, sampler = collection.cache, collection.sampler
    settings.augmentation.clean = 0.0
    settings.augmentation.artifacts["deformation"]["probability"] = 1.0
    maker = PairMaker(cache, settings)
    seen = {}
    maker.corruption.warp = lambda source, affine, draws, keep=maker.corruption.warp: (
        seen.update(draws),
        keep(source, affine, draws),
    )[1]
    pairs = maker.make(sampler.draw(0, 8), seeded(1))
    assert not seen["deformation"]["on"].any() and seen["bias"]["on"].any()
    assert (set(pairs.fixed.unique().tolist()) <= {0.0, 1.0}) == (loader == "published")


def test_a_folder_with_broken_files_trains(scans, tmp_path, capsys):
    folder = write_phantoms(tmp_path / "mixed", 3)
    (folder / "broken.nii.gz").write_bytes(b"no image")
    (folder / "text.nii").write_text("no image either")
    assert run(folder, tmp_path / "run", steps=2) == 0
    assert "2 of 5 files cannot be used" in capsys.readouterr().out
    assert len((tmp_path / "run" / "cache" / "skipped.txt").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    "arguments, words",
    [
        ([], "--train FOLDER"),
        (["--train", "{absent}", "--dataset", "t1-brain", "-o", "{out}"], "does not exist"),
        (["--train", "{scans}", "-o", "{out}"], "1 --train but 0 --dataset"),
        (["--train", "{scans}", "--dataset", "t1-brain"], "-o RUN"),
        (["--train", "{scans}", "--dataset", "t1-brain", "-o", "{out}", "--val", "{scans}"], "in both"),
        (["--train", "{scans}", "--dataset", "t1-brain", "-o", "{out}", "--weights", "1", "2"], "--weights"),
        (["--train", "{scans}", "--dataset", "t1-brain", "-o", "{out}", "--set", "run.color=1"], "setting run.color"),
        (["--train", "{scans}", "--dataset", "t1-brain", "-o", "{out}", "--set", 'run.seed="x"'], "expects int"),
        (["--train", "{scans}", "--dataset", "t1-brain", "-o", "{out}", "--size", "1", "2"], "one number or three"),
        (["--train", "{scans}", "--dataset", "t1-brain", "-o", "{out}", "--config", "{absent}"], "cannot be read"),
        (["--resume", "{out}"], "cannot be read"),
        (["export", "{out}"], "no checkpoint"),
        (["preview", "--train", "{scans}", "--dataset", "t1-brain", "-o", "pairs.tif"], "PAIRS.png"),
    ],
)
def test_wrong_usage_is_one_sentence(arguments, words, scans, tmp_path, capsys):
    places = {"scans": scans, "absent": tmp_path / "absent", "out": tmp_path / "out"}
    assert train.main([a.format(**places) for a in arguments]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1 and "Traceback" not in error


def test_settings_come_from_preset_file_options_and_set_in_this_order(tmp_path):
    from SpatialDiffusionTraining import settings

    config = tmp_path / "config.json"
    config.write_text(
        json.dumps(
            {
                "optimization": {"lr": 0.5, "batch": 7, "steps": 11},
                "augmentation": {"artifacts": {"noise": {"sigma": 0.5}}},
            }
        )
    )
    parser = train.parser()
    chosen = settings.resolve(
        parser.parse_args(
            [
                "--preset",
                "published",
                "--config",
                str(config),
                "--batch",
                "3",
                "--set",
                "optimization.steps=5",
                "--set",
                "run.output=x",
            ]
        )
    )
    o = chosen.optimization
    assert (o.lr, o.batch, o.steps, o.warmup, o.optimizer) == (0.5, 3, 5, 5000, "adam")
    assert chosen.augmentation.artifacts["noise"] == {"sigma": 0.5} and "motion" in chosen.augmentation.artifacts
    assert Settings.from_dict(json.loads(json.dumps(chosen.to_dict()))).to_dict() == chosen.to_dict()
    published = settings.resolve(parser.parse_args(["--preset", "published"]))
    assert published.grid()["size"] == (256, 256, 256) and published.network.channels == [
        2,
        64,
        128,
        256,
        256,
        512,
        1024,
    ]
    for name in settings.presets():
        preset = settings.resolve(parser.parse_args(["--preset", name]))
        from SpatialDiffusionTraining.augmentation import Corruption, Pose

        Corruption(preset.augmentation.artifacts, preset.augmentation.strength), Pose(**preset.augmentation.pose)


def test_a_resumed_run_keeps_its_split(scans, tmp_path):
    folder = write_phantoms(tmp_path / "scans", 4)
    assert run(folder, tmp_path / "run", steps=2) == 0
    before = [(tmp_path / "run" / name).read_text() for name in ("train_1.txt", "val_1.txt")]
    assert [text.count("\n") for text in before] == [3, 1]
    write_phantoms(folder / "new", 6)
    assert train.main(["--resume", str(tmp_path / "run"), "--steps", "3"]) == 0
    assert [(tmp_path / "run" / name).read_text() for name in ("train_1.txt", "val_1.txt")] == before
    assert run(folder, tmp_path / "none", "--val", "none", steps=2) == 0
    assert train.main(["--resume", str(tmp_path / "none"), "--steps", "3"]) == 0
    assert (tmp_path / "none" / "train_1.txt").read_text().count("\n") == 10


def test_a_run_is_not_overwritten(scans, tmp_path, capsys):
    assert run(scans, tmp_path / "run", steps=2) == 0
    assert run(scans, tmp_path / "run", steps=2) == 2
    assert "already holds a run" in capsys.readouterr().err


def test_preview_writes_a_sheet(scans, tmp_path):
    from PIL import Image

    options = [o for o in TINY]
    picture = tmp_path / "pairs.png"
    assert train.main(["preview", "--train", str(scans), *options, "--pairs", "3", "-o", str(picture)]) == 0
    image = np.asarray(Image.open(picture))
    assert image.shape == (40 + 3 * (16 * 2 + 4), 4 * (3 * 16 * 2 + 4), 3) and image.std() > 10


# ----------------------------------------------------------------------------------- interruptions
def test_resume_goes_on_bit_for_bit(scans, tmp_path):
    options = ("--set", "optimization.accumulate=2", "--clip", "1")
    run(scans, tmp_path / "whole", *options, steps=6)
    run(scans, tmp_path / "parts", *options, "--checkpoint-every", "3", "--max-minutes", "0", steps=6)
    # As if the run had died right after its third step.
    for file in checkpoint.checkpoints(tmp_path / "parts")[-1:]:
        file.unlink()
    assert train.main(["--resume", str(tmp_path / "parts")]) == 0
    assert_same_state(last_state(tmp_path / "whole"), last_state(tmp_path / "parts"))
    # The meter of the broken-off run began anew after step 3, so its line of step 4 covers that step only.
    whole, parts = training_losses(tmp_path / "whole"), training_losses(tmp_path / "parts")
    assert whole[0] == parts[0] and whole[2] == parts[2]


def start(scans, output, *more, steps=100000):
    command = [
        sys.executable,
        "-m",
        "SpatialDiffusionTraining.train",
        "--train",
        str(scans),
        *TINY,
        "--steps",
        str(steps),
        "-o",
        str(output),
        *more,
    ]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for(condition, process, seconds=900):
    limit = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < limit, "the run did not get there in time"
        time.sleep(0.05)


def test_kill_and_resume(scans, tmp_path):
    """kill -9 loses at most the steps since the last checkpoint, and the end is as if nothing had happened."""
    output = tmp_path / "run"
    # An even learning rate, so that the two runs may differ in the length that they were started with.
    even = ("--checkpoint-every", "3", "--final-lr", "1", "--validate-every", "1000000")
    process = start(scans, output, *even)
    wait_for(lambda: len(checkpoint.checkpoints(output)) > 0, process)
    process.kill()
    process.wait()
    reached = last_state(output)["step"]
    (output / "log.jsonl").open("a").write('{"kind": "training", "st')  # a line that the crash cut off
    steps = reached + 2
    assert train.main(["--resume", str(output), "--steps", str(steps)]) == 0
    run(scans, tmp_path / "whole", *even, steps=steps)
    assert_same_state(last_state(output), last_state(tmp_path / "whole"))
    assert all(json.loads(text) for text in (output / "log.jsonl").read_text().splitlines())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_save_first(number, scans, tmp_path, monkeypatch, capsys):
    output, real = tmp_path / "run", trainer.Trainer.train_step

    def interrupted(self, meter):
        if self.step == 2:
            os.kill(os.getpid(), number)
        real(self, meter)

    before = signal.getsignal(number)
    monkeypatch.setattr(trainer.Trainer, "train_step", interrupted)
    assert run(scans, output, "--checkpoint-every", "1000000", steps=50) == 128 + number
    assert "after step 3, saved" in capsys.readouterr().out and signal.getsignal(number) is before
    monkeypatch.setattr(trainer.Trainer, "train_step", real)
    assert train.main(["--resume", str(output), "--steps", "5"]) == 0
    assert last_state(output)["step"] == 5


def test_a_loss_that_is_no_number_stops_with_step_and_files(scans, tmp_path, monkeypatch, capsys):
    calls = []

    def broken(*arguments, keep=trainer.losses.physical, **options):
        calls.append(1)
        return keep(*arguments, **options) * (float("nan") if len(calls) == 7 else 1.0)  # twice a step

    monkeypatch.setattr(trainer.losses, "physical", broken)
    assert run(scans, tmp_path / "run", steps=20) == 1
    error = capsys.readouterr().err
    assert "step 3" in error and "phantom_0" in error and "nan" in error
    good = last_state(tmp_path / "run")
    assert good["step"] == 2 and all(torch.isfinite(v).all() for v in good["model"].values())


def test_a_full_disk_keeps_the_last_good_checkpoint(scans, tmp_path, monkeypatch, capsys):
    output, real = tmp_path / "run", checkpoint.torch.save

    def full(state, file):
        if state.get("step", 0) in (4, 6):
            file.write(b"half a checkpoint")
            raise OSError(errno.ENOSPC, "No space left on device")
        real(state, file)

    monkeypatch.setattr(checkpoint.torch, "save", full)
    assert run(scans, output, "--validate-every", "100", steps=6) == 1
    assert [p.name for p in checkpoint.checkpoints(output)] == ["step-00000002.pt"]
    captured = capsys.readouterr()
    assert "no space left" in captured.out.lower() and "kept: step-00000002.pt" in captured.out
    assert "newest is of step 2" in captured.err
    assert not list(output.rglob("*.part"))
    monkeypatch.setattr(checkpoint.torch, "save", real)
    assert train.main(["--resume", str(output)]) == 0
    assert last_state(output)["step"] == 6


def test_a_damaged_checkpoint_is_refused(scans, tmp_path, capsys):
    run(scans, tmp_path / "run", steps=2)
    checkpoint.checkpoints(tmp_path / "run")[-1].write_bytes(b"damaged")
    assert train.main(["--resume", str(tmp_path / "run")]) == 2
    assert "cannot be read" in capsys.readouterr().err


def test_time_bounds_a_run_and_the_cosine_follows_it(scans, tmp_path):
    assert run(scans, tmp_path / "run", "--max-minutes", "0.03", "--validate-every", "1000000", steps=0) == 0
    # Without its bound it would never end.
    settings = Settings()
    settings.optimization.lr, settings.optimization.warmup = 1.0, 10
    settings.optimization.steps, settings.optimization.max_minutes = 0, 60.0
    rates = [optimization.learning_rate(settings, 100, minutes) for minutes in (0, 30, 60)]
    assert rates == pytest.approx([1.0, 0.5, 0.0], abs=1e-9)
    assert optimization.learning_rate(settings, 0, 0) == pytest.approx(0.1)
    settings.optimization.max_minutes, settings.optimization.steps = 0.0, 110
    assert optimization.learning_rate(settings, 60, 5.0) == pytest.approx(0.5)


def test_weights_of_a_run_or_model_can_begin_another(scans, tmp_path):
    run(scans, tmp_path / "first", steps=2)
    exported = export.export(tmp_path / "first", which="last")
    for name, place in (("run", tmp_path / "first"), ("file", exported)):
        assert run(scans, tmp_path / name, "--init", str(place), "--lr", "0", steps=1) == 0
        begun = last_state(tmp_path / name)["model"]
        known = model.load_model(exported).network.state_dict()
        source = checkpoint.weights_of_run(tmp_path / "first")["weights"] if name == "run" else known
        assert all(torch.allclose(begun[k], source[k], atol=1e-6) for k in begun)
    assert run(scans, tmp_path / "other", "--init", str(exported), "--set", "network.options.points=9", steps=1) == 2


# ------------------------------------------------------------------------------------------ many processes
def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_two_processes_equal_one_on_the_same_global_batch(scans, tmp_path):
    """Two gloo processes with batches of 1 draw, learn and end as one process with batches of 2."""
    options = ["--validate-every", "1000000", "--log-every", "1"]
    assert run(scans, tmp_path / "one", *options, "--batch", "2", steps=3) == 0
    command = [
        "--train",
        str(scans),
        *TINY,
        "--steps",
        "3",
        "-o",
        str(tmp_path / "two"),
        *options,
        "--batch",
        "1",
        "--cache",
        str(tmp_path / "one" / "cache"),
    ]
    port, processes = str(free_port()), []
    for rank in range(2):
        environment = {
            **os.environ,
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": "2",
            "GROUP_RANK": "0",
            "LOCAL_WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "TORCHELASTIC_RUN_ID": "test",
            "OMP_NUM_THREADS": "1",
        }
        processes.append(
            subprocess.Popen(
                [sys.executable, "-m", "SpatialDiffusionTraining.train", *command],
                cwd=ROOT,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    said = [p.communicate(timeout=900)[0] for p in processes]
    assert [p.returncode for p in processes] == [0, 0], said
    assert not said[1].strip() or "step" not in said[1]  # one process speaks
    one, two = last_state(tmp_path / "one"), last_state(tmp_path / "two")
    differ = sum(int(((v - two["model"][k]).abs() > 1e-5).sum()) for k, v in one["model"].items())
    # Adam turns the rounding of gradients that are zero (a bias that a softmax cancels) into steps.
    assert differ < 1e-3 * sum(v.numel() for v in one["model"].values())
    logs = [training_losses(tmp_path / name) for name in ("one", "two")]
    assert len(logs[0]) == 3 and logs[0] == pytest.approx(logs[1], rel=1e-5)


# ------------------------------------------------------------------------------------------------ learning
def test_it_learns_known_transforms_of_real_scans(tmp_path):
    """A few real heads, a tiny network: unseen known transforms of them come back within 2 mm (median)."""
    listed = tmp_path / "list.txt"
    listed.write_text("".join(f"{p}\n" for p in real_scans()))
    arguments = [
        "--train",
        str(listed),
        "--dataset",
        "t1-brain",
        "-o",
        str(tmp_path / "run"),
        "--size",
        "24",
        "--spacing",
        "9",
        "--head",
        "points",
        "--channels",
        "8",
        "16",
        "32",
        "32",
        "--set",
        "network.options.points=32",
        "--strength",
        "0",
        "--steps",
        "400",
        "--lr",
        "0.004",
        "--warmup",
        "30",
        "--held-out",
        "0",
        "--transform-range",
        "0.008",
        "0.035",
        "--translation-range",
        "0.05",
        "0.3",
        "--loss-floor-voxels",
        "0.2",
        "--ema-decay",
        "0.98",
        "--ema-every",
        "1",
        "--log-every",
        "100",
        "--checkpoint-every",
        "400",
        "--picture-every",
        "0",
        "--threads",
        "1",
        "--device",
        "cpu",
        "--set",
        'augmentation.pose={"rotation_degrees": 15, "free": 0, "scale": 0.05, "shift": 0.02}',
    ]
    assert train.main(arguments) == 0
    settings = Settings.from_dict(json.loads((tmp_path / "run" / "settings.json").read_text()))
    cache = runs.prepare(settings)[0].cache
    network = model.load_model(export.export(tmp_path / "run")).network
    schedule = make_schedule(settings)
    maker = PairMaker(cache, settings)
    rows = (cache.rows("train") * 16)[:16]
    with torch.no_grad():
        pairs = maker.make(rows, seeded(99), t=[40] * len(rows), corrupt=False)
        step = list(diffusion.reverse(network, pairs.fixed, pairs.moving, schedule, steps=8))[-1]
        half = losses.half_edges(cache.shape, cache.spacing, pairs.fixed)
        before = losses.displacement(
            torch.eye(3, 4).expand(len(rows), 3, 4), pairs.target, pairs.mean, pairs.covariance, half
        )
        after = losses.displacement(step.theta, pairs.target, pairs.mean, pairs.covariance, half)
    print(f"median error {before.median():.1f} mm before, {after.median():.2f} mm after")
    assert before.median() > 5 and after.median() < 2.0
