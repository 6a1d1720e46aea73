"""Nothing lost: refused and failed resumes, damaged checkpoints, full disks, signals, and options that make no
sense."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("ema_pytorch")
pytest.importorskip("lightning_fabric")
from SpatialDiffusionCore.errors import InputError  # noqa: E402
from SpatialDiffusionCore.modelfile import card as card_module  # noqa: E402
from SpatialDiffusionCore.modelfile import catalog  # noqa: E402
from SpatialDiffusionCore.modelfile.checkpoint_import import import_checkpoint  # noqa: E402
from SpatialDiffusionCore.modelfile.model import load_model  # noqa: E402
from SpatialDiffusionCore.networks.build import build  # noqa: E402
from SpatialDiffusionTraining import (  # noqa: E402
    ahead,
    checkpoint,
    export,
    optimization,
    reports,
    retina,
    train,
    trainer,
    validation,
)
from SpatialDiffusionTraining import run as runs  # noqa: E402
from SpatialDiffusionTraining.checks import check  # noqa: E402
from SpatialDiffusionTraining.pairs import seeded  # noqa: E402
from SpatialDiffusionTraining.settings import Settings  # noqa: E402
from training_fixtures import TINY, write_phantoms  # noqa: E402


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    return write_phantoms(tmp_path_factory.mktemp("scans"), 6)


def run(scans, output, *more, steps=2):
    return train.main(["--train", str(scans), *TINY, "--validate-every", "1000000", "--steps", str(steps), "-o",
                       str(output), *more])  # fmt: skip


@pytest.fixture(scope="module")
def finished(scans, tmp_path_factory):
    """A run of four steps with checkpoints after two and four."""
    output = tmp_path_factory.mktemp("finished") / "run"
    assert run(scans, output, "--validate-every", "4", steps=4) == 0
    return output


def copy_of(run_folder, place):
    """The run at another place, and what every file in it holds."""
    shutil.copytree(run_folder, place)
    settings = json.loads((place / "settings.json").read_text())
    settings["run"]["output"] = str(place)
    (place / "settings.json").write_text(json.dumps(settings))
    return place, contents(place)


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# ------------------------------------------------------------------------------------------------- resuming
@pytest.mark.parametrize("options", [
    ("--size", "24"), ("--spacing", "10"), ("--channels", "8", "8", "8", "16"), ("--timesteps", "30"),
    ("--dataset", "t2-head-neck"), ("--loader", "published"), ("--batch", "0"), ("--head", "matrix"),
    ("--set", "augmentation.artifacts.nois.sigma=1")])  # fmt: skip
def test_a_refused_resume_leaves_the_run_as_it_was(options, finished, tmp_path, capsys):
    place, before = copy_of(finished, tmp_path / "run")
    assert train.main(["--resume", str(place), *options]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "Traceback" not in error
    assert contents(place) == before
    assert train.main(["--resume", str(place), "--steps", "5"]) == 0


def test_a_resume_without_its_scans_goes_on_with_the_cache(tmp_path, capsys):
    folder = write_phantoms(tmp_path / "scans", 4)
    assert run(folder, tmp_path / "run") == 0
    folder.rename(tmp_path / "elsewhere")
    assert train.main(["--resume", str(tmp_path / "run"), "--steps", "3"]) == 0
    assert "4 scans are no longer where they were" in capsys.readouterr().out


def test_a_truncated_newest_checkpoint_costs_the_steps_since_the_one_before(finished, tmp_path, capsys):
    place, _ = copy_of(finished, tmp_path / "run")
    files = checkpoint.checkpoints(place)
    assert [p.name for p in files] == ["step-00000002.pt", "step-00000004.pt"]
    files[1].write_bytes(files[1].read_bytes()[:1000])
    assert train.main(["--resume", str(place), "--steps", "5"]) == 0
    said = capsys.readouterr().out
    assert "step-00000004.pt cannot be read" in said and "after step 2" in said
    assert checkpoint.load_checkpoint(checkpoint.checkpoints(place)[-1])["step"] == 5
    for file in checkpoint.checkpoints(place):
        file.write_bytes(b"nothing")
    with pytest.raises(InputError, match="cannot be read"):
        checkpoint.newest(place)


def test_a_disk_that_fills_within_a_checkpoint_is_named_and_costs_only_that_one(tmp_path):
    """A real limit on the size of files: PyTorch's own error says nothing of it."""
    whole = tmp_path / "step-1.pt"
    checkpoint.save_whole({"step": 1}, whole)
    before, old = whole.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20000, old[1]))
    try:
        with pytest.raises((OSError, InputError)) as caught:
            checkpoint.save_whole({"step": 2, "weights": torch.rand(100000)}, whole)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert "large" in str(caught.value).lower()
    assert whole.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["step-1.pt"]


def test_what_a_killed_process_left_half_written_is_removed(finished, tmp_path):
    place, _ = copy_of(finished, tmp_path / "run")
    left = place / "checkpoints" / ".0123456789ab.part.pt"
    left.write_bytes(b"half")
    assert train.main(["--resume", str(place), "--steps", "5"]) == 0
    assert not left.exists()


def test_a_signal_ends_a_validation_and_saves(scans, tmp_path, monkeypatch, capsys):
    output, real = tmp_path / "run", validation.error

    def interrupted(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments)

    monkeypatch.setattr(validation, "error", interrupted)
    assert run(scans, output, "--validate-every", "2", steps=50) == 128 + signal.SIGTERM
    said = capsys.readouterr().out
    assert "after step 2, saved" in said and "--resume" in said and "held-out scans of" not in said
    lines = [json.loads(text) for text in (output / "log.jsonl").read_text().splitlines()]
    assert {line["kind"] for line in lines} == {"training"}


# ---------------------------------------------------------------------------------------------- bad options
@pytest.mark.parametrize("assignment, words", [
    ("optimization.batch=0", "--batch expects 1 or more"), ("optimization.lr=-1", "--lr expects 0 or more"),
    ("run.log_every=0", "--log-every"), ("run.device=\"cuda0\"", "--device expects one of"),
    ("network.options.point=3", "did you mean points"), ("augmentation.artifacts.noize.sigma=1", "did you mean noise"),
    ("augmentation.artifacts.noise.sigm=1", "did you mean sigma"), ("augmentation.pose.shft=1", "did you mean shift"),
    ("augmentation.by_modality.oct.pose.shft=1", "did you mean shift"), ("augmentation.strength=-0.5", "--strength"),
    ("augmentation.artifacts.noise.probability=2", "0..1"), ("diffusion.timesteps=0", "--timesteps"),
    ("diffusion.transform_range=[0.07, 0.01]", "ascending"), ("optimization.steps=0", "--max-minutes"),
    ("network.class_dropout=1.5", "--class-dropout"), ("augmentation.artifacts=3", "JSON object"),
    ("optimization=3", "SECTION.NAME=VALUE"), ("data.held_out=1.5", "--held-out"), ("run.seed=-1", "--seed"),
    ("optimization.lr=NaN", "--lr"), ("network.channels=[8]", "network cannot be built"),
    ("diffusion.by_modality.oct.range=1", "transform_range"), ("data.weights=[0]", "--weights expects"),
    ("run.logger=\"nolog.Nothing\"", "no logger")])  # fmt: skip
def test_bad_options_are_one_sentence_before_anything_is_written(assignment, words, scans, tmp_path, capsys):
    code = run(scans, tmp_path / "run", "--set", assignment)
    captured = capsys.readouterr()
    if "logger" in assignment:  # a report only: the run goes on without
        assert code == 0 and words in captured.out
        return
    assert code == 2 and words in captured.err and captured.err.count("\n") == 1
    assert not (tmp_path / "run" / "settings.json").exists()


def test_cuda_where_there_is_none_and_folders_that_refuse_files_are_named(scans, tmp_path, capsys):
    if not torch.cuda.is_available():
        assert run(scans, tmp_path / "run", "--device", "cuda") == 2
        assert "no CUDA device" in capsys.readouterr().err
    (tmp_path / "file").write_text("in the way")
    assert run(scans, tmp_path / "file" / "run") == 2
    assert "cannot be written to" in capsys.readouterr().err


# -------------------------------------------------------------------------------------------- in every form
def states(*places):
    return [checkpoint.load_checkpoint(checkpoint.checkpoints(place)[-1]) for place in places]


def conditional(tmp_path):
    """Command line of a run with two data sets."""
    first, second = write_phantoms(tmp_path / "t1", 3), write_phantoms(tmp_path / "t2", 3)
    options = [o for o in TINY if o not in ("--dataset", "t1-brain")]
    return ["--train", str(first), str(second), "--dataset", "t1-brain", "t2-head-neck", *options,
            "--validate-every", "1000000", "--log-every", "1"]  # fmt: skip


def test_what_class_dropout_hides_does_not_depend_on_the_number_of_processes(tmp_path):
    base = conditional(tmp_path)
    assert train.main([*base, "--batch", "4", "--steps", "1", "-o", str(tmp_path / "run")]) == 0
    settings = Settings.from_dict(json.loads((tmp_path / "run" / "settings.json").read_text()))
    settings.network.class_dropout = 0.5
    collections = runs.prepare(settings, lambda text: None)
    drawn = {}
    for world in (1, 2):
        for rank in range(world):
            work = trainer.Trainer(settings, collections, 2, runs.make_fabric(settings), lambda text: None)
            work.fabric = FabricOf(rank, world)
            settings.optimization.batch = 4 // world
            _, pairs = work.batch(0)
            drawn.setdefault(world, []).append(work.classes(pairs, 0))
    one, two = torch.cat(drawn[1]), torch.cat(drawn[2])
    assert torch.equal(one, two) and one.shape == (4, 4) and 0 < (one == 0).sum() < 16


class FabricOf:
    """What Trainer asks of Fabric about the number of processes."""

    def __init__(self, rank, world):
        self.global_rank, self.world_size = rank, world


def test_batches_that_were_begun_ahead_are_the_same(scans, tmp_path, monkeypatch):
    assert run(scans, tmp_path / "one", steps=4) == 0
    asked = []

    class Eager(ahead.Ahead):
        def __init__(self, make, device):
            super().__init__(make, device, enabled=True)

        def take(self, number):
            asked.append((number, self.begun is not None))
            return super().take(number)

    monkeypatch.setattr(trainer, "Ahead", Eager)
    assert run(scans, tmp_path / "two", steps=4) == 0
    assert asked == [(0, False), (1, True), (2, True), (3, True)]
    first, second = states(tmp_path / "one", tmp_path / "two")
    assert all(torch.equal(first["model"][k], second["model"][k]) for k in first["model"])


def test_without_class_dropout_classes_count_from_zero(tmp_path):
    base = conditional(tmp_path)
    assert train.main([*base, "--class-dropout", "0", "--steps", "2", "-o", str(tmp_path / "run")]) == 0
    path = export.export(tmp_path / "run", which="last")
    assert card_module.read_card(path).modalities == {"t1-brain": 0, "t2-head-neck": 1}
    loaded = load_model(path, "t2-head-neck", "t2-head-neck")
    volume = torch.rand(1, 1, 16, 16, 16)
    found = loaded.denoiser("t2-head-neck", "t2-head-neck")(volume, volume, torch.tensor([3]))
    assert torch.isfinite(found).all()


def test_ids_for_each_block_equal_the_same_id_for_all():
    network = build({"head": "points", "volume_size": [16] * 3, "channels": [8, 8, 8, 8], "points": 4, "groups": 2,
                     "n_classes": 2}).train()  # fmt: skip
    volumes = torch.rand(3, 1, 16, 16, 16)
    ids = torch.tensor([1, 2, 0])
    with torch.no_grad():
        told = network(volumes, volumes, torch.ones(3), ids[:, None].expand(3, network.class_blocks))
        network.eval()
        assert torch.allclose(told, network(volumes, volumes, torch.ones(3), ids), atol=1e-6)


@pytest.mark.parametrize("kind", ["oct", "octa"])
def test_validation_of_the_published_form_enhances_what_it_has_warped(kind, tmp_path):
    """Training and registration threshold the warped volume; thresholded volumes must not be warped."""
    retina.main(["--out", str(tmp_path / "eyes"), "--kind", kind, "--count", "2"])
    options = [o if o != "t1-brain" else kind for o in TINY] + ["--loader", "published", "--held-out", "0.5"]
    assert train.main(["--train", str(tmp_path / "eyes"), *options, "--steps", "1", "--validate-every", "100",
                       "-o", str(tmp_path / "run")]) == 0  # fmt: skip
    settings = Settings.from_dict(json.loads((tmp_path / "run" / "settings.json").read_text()))
    work = trainer.Trainer(settings, runs.prepare(settings, lambda text: None), 1, runs.make_fabric(settings))
    [task] = work.tasks()
    assert task.steps is None  # all 65 shares, as published
    seen = []

    def network(class_id):
        def predict(fixed, moving, t):
            seen.extend([fixed, moving])
            return torch.eye(3, 4).repeat(len(t), 1, 1)

        return predict

    task.denoise, task.count, task.steps = network, 2, 3
    validation.validate(task)
    assert len(seen) > 6 and all(set(volume.unique().tolist()) <= {0.0, 1.0} for volume in seen)


def test_the_clock_shapes_warm_up_and_cosine():
    settings = Settings()
    o = settings.optimization
    o.lr, o.warmup, o.steps, o.max_minutes = 1.0, 5000, 115000, 25.0
    # 25 minutes of a recipe made for days: 600 steps. The rate rises for a twentieth of the time, and comes down.
    rates = [optimization.learning_rate(settings, 24 * minute, float(minute)) for minute in range(26)]
    assert max(rates) > 0.95 and rates.index(max(rates)) <= 2 and rates[-1] == pytest.approx(0, abs=1e-9)
    assert all(a >= b for a, b in zip(rates[2:], rates[3:]))


def test_the_time_given_includes_the_last_validation(scans, tmp_path, monkeypatch):
    settings = Settings.from_dict({"optimization": {"max_minutes": 10.0, "steps": 0}})
    work = object.__new__(trainer.Trainer)
    work.settings, work.step, work.since_best = settings, 7, 0
    work.minutes, work.validation_minutes = 8.0, 1.9
    assert not work._finished()
    work.validation_minutes = 2.1
    assert work._finished()


# ----------------------------------------------------------------------------------- exporting, installing
def test_a_model_of_ones_own_takes_no_bundled_models_place_unasked(finished, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SPATIAL_DIFFUSION_MODELS", str(tmp_path / "models"))
    base = ["export", str(finished), "-o", str(tmp_path / "m.safetensors"), "--which", "last", "--measure", "0"]
    assert train.main([*base, "--name", "t1-brain", "--install"]) == 2
    assert "take its place" in capsys.readouterr().err and not (tmp_path / "models").exists()
    # By another name, too: among models that know as much one's own is chosen.
    assert train.main([*base, "--name", "mine", "--install"]) == 2
    assert "t1-brain is now registered with the bundled model t1-brain" in capsys.readouterr().err
    assert catalog.choose(None, "t1-brain", "t1-brain").card.name == "t1-brain"
    card = replace(card_module.read_card(tmp_path / "m.safetensors"), name="mine")
    for known, taken in (
        (["any", "t1-brain"], {"t1-brain": "t1-brain"}),
        (["t1-brain"], {"t1-brain": "t1-brain"}),
        (["any", "t1-brain", "knee-mri"], {}),
        (["any", "knee-mri"], {}),
        (["any"], {"any": "anatomy"}),
    ):
        assert export.displaced(replace(card, modalities=dict.fromkeys(known, 0))) == taken
    assert train.main([*base, "--name", "mine", "--install", "--replace"]) == 0
    assert catalog.choose(None, "t1-brain", "t1-brain").card.name == "mine"
    assert train.main([*base, "--name", "t1-brain", "--install", "--replace"]) == 0
    assert catalog.find("t1-brain")[0].parent == tmp_path / "models"


def test_raw_and_averaged_weights(finished):
    state = checkpoint.load_checkpoint(checkpoint.checkpoints(finished)[-1])
    raw, last = (checkpoint.weights_of_run(finished, which)["weights"] for which in ("raw", "last"))
    assert all(torch.equal(raw[k], v) for k, v in state["model"].items())
    both = [checkpoint.ema_weights(checkpoint.load_checkpoint(p)) for p in checkpoint.checkpoints(finished)]
    mean = checkpoint.weights_of_run(finished, "average")["weights"]
    key = "stem.weight"
    assert torch.allclose(mean[key], (both[0][key] + both[1][key]) / 2) and not torch.equal(mean[key], last[key])


def test_a_published_checkpoint_comes_back_as_the_same_network(scans, tmp_path, finished, capsys):
    options = ["--preset", "published", "--size", "48", "56", "52", "--channels", "2", "8", "8", "8", "8", "8", "8",
               "--set", "network.options.groups=4", "--dataset", "t1-brain", "--batch", "1", "--device", "cpu",
               "--threads", "1", "--val", "none", "--picture-every", "0"]  # fmt: skip
    assert train.main(["--train", str(scans), *options, "--steps", "1", "-o", str(tmp_path / "run")]) == 0
    arguments = ["export", str(tmp_path / "run"), "--published", str(tmp_path / "ckpt.pth"), "--measure", "0"]
    assert train.main([*arguments, "--which", "raw"]) == 0
    card = import_checkpoint(tmp_path / "ckpt.pth", tmp_path / "back.safetensors", volume_size=(48, 56, 52), groups=4,
                             modality="t1-brain")  # fmt: skip
    assert card.architecture["channels"] == [2, 8, 8, 8, 8, 8, 8]
    mine = load_model(tmp_path / "run" / "model.safetensors", "t1-brain", "t1-brain").network.state_dict()
    back = load_model(tmp_path / "back.safetensors", "t1-brain", "t1-brain").network.state_dict()
    assert all(torch.equal(mine[k], back[k]) for k in mine)
    capsys.readouterr()
    assert train.main(["export", str(finished), "--published", str(tmp_path / "no.pth"), "--measure", "0"]) == 2
    assert "--head matrix" in capsys.readouterr().err and not (tmp_path / "no.pth").exists()


def test_a_class_made_part_of_the_bias_gives_the_same_answers(tmp_path):
    described = {"head": "points", "volume_size": [16] * 3, "channels": [8, 8, 8, 8], "points": 4, "groups": 2}
    several = build({**described, "n_classes": 3}).eval()
    one = build({**described, "n_classes": 1}).eval()
    one.load_state_dict(runs.without_classes(several.state_dict(), 2))
    fixed, moving = torch.rand(2, 2, 1, 16, 16, 16)
    t = torch.tensor([3, 50])
    with torch.no_grad():
        assert torch.allclose(several(fixed, moving, t, torch.tensor([2, 2])), one(fixed, moving, t), atol=2e-3)


def test_patience_ends_a_run_that_no_longer_improves(scans, tmp_path):
    # Nothing is learned with a rate of zero: no validation after the first one is better.
    assert run(scans, tmp_path / "run", "--lr", "0", "--validate-every", "1", "--patience", "2", steps=50) == 0
    [*_, last] = checkpoint.checkpoints(tmp_path / "run")
    assert checkpoint.load_checkpoint(last)["step"] == 3


# -------------------------------------------------------------------------------------------- what people see
def test_what_a_run_shows_is_never_empty(scans, tmp_path, capsys):
    """One step, fewer than between two lines of the log: a line, curves and pictures all the same."""
    from PIL import Image

    assert run(scans, tmp_path / "run", "--log-every", "1000", "--picture-every", "1000", steps=1) == 0
    said = capsys.readouterr().out
    assert "1 = nothing learned" in said and "spatial-diffusion-train export" in said and "split by person" in said
    for name in ("loss.png", "data.png", "pictures/pairs-00000001.png", "pictures/predictions-00000001.png"):
        picture = np.asarray(Image.open(tmp_path / "run" / name).convert("L"))
        assert picture.std() > 5
    text = (tmp_path / "run" / "data.txt").read_text()
    assert "5 scans to train with, 1 held out" in text and "spacing, mm" in text and "40×48×44 (6)" in text


def test_a_network_that_learns_nothing_has_a_relative_loss_of_one(finished):
    line = next(h for h in reports.read_log(finished / "log.jsonl") if h["kind"] == "training")
    assert 0.3 < line["relative"] < 30
    settings = Settings.from_dict(json.loads((finished / "settings.json").read_text()))
    work = trainer.Trainer(settings, runs.prepare(settings, lambda text: None), 1, runs.make_fabric(settings))
    work.denoiser = lambda network, index, classes: lambda fixed, moving, t: torch.eye(3, 4).repeat(len(t), 1, 1)
    meter = trainer.Meter()
    pairs = work.makers[0].make(work.rows(0)[1], seeded(0))
    work._take_in(meter, work.loss(pairs), pairs, 0)
    assert meter.summary()["relative"] == pytest.approx(1.0)


def test_loggers_are_lightnings(tmp_path):
    logger = reports.make_logger("csv", tmp_path, 0)
    logger.log_metrics({"training/loss": 1.5}, step=2)
    logger.finalize("success")
    assert "1.5" in next(tmp_path.rglob("metrics.csv")).read_text()
    assert reports.make_logger("none", tmp_path, 0) is None
    with pytest.raises(InputError, match="--logger"):
        reports.make_logger("lightning_fabric.loggers.Nothing", tmp_path, 0)


def test_settings_without_an_end_or_with_unlike_grids_are_refused():
    settings = Settings.from_dict({"data": {"grids": {"oct": {"size": [8, 8, 8]}}, "dataset": ["oct", "t1-brain"]}})
    with pytest.raises(InputError, match="--head points"):
        check(settings)
