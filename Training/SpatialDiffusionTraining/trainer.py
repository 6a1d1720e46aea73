"""The training loop: steps, checkpoints, validation, and how a run ends.

Nothing random carries state from step to step: every number is drawn from (seed, step). A checkpoint therefore
holds weights, EMA, optimizer and counters, and a resumed run goes on exactly as if it had never stopped.
"""
from __future__ import annotations

import inspect
import math
import os
import signal
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch

from SpatialDiffusionCore.errors import InputError
from SpatialDiffusionCore.method import diffusion
from SpatialDiffusionCore.networks.build import NETWORKS, build

from . import losses
from .datasets import Sampler
from .pairs import PairMaker, make_schedule, seeded
from .preview import sheet, stacked
from .reports import Reports

BANDS = 4
CHECKPOINT = "step-{:08d}.pt"


class TrainingStopped(RuntimeError):
    """The run cannot go on; the message says why and at which step."""


def architecture(settings, classes):
    """What `SpatialDiffusionCore.networks.build.build` needs for the run's network with so many modality classes."""
    n = settings.network
    out = {"head": n.head, "volume_size": list(settings.grid()["size"]), "n_classes": classes,
           "class_dropout": n.class_dropout}
    if n.channels:
        out["channels"] = list(n.channels)
    return complete({**out, **n.options})


def complete(described):
    """An architecture with its constructor's defaults written out, so that later defaults cannot change it."""
    parameters = inspect.signature(NETWORKS[described["head"]]).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    return {**{k: list(v) if isinstance(v, tuple) else v for k, v in defaults.items()}, **described}


def band(t, timesteps):
    """Index 0..BANDS-1 of the equal part of 1..T in which t lies."""
    return (t - 1) * BANDS // timesteps


def learning_rate(settings, step, minutes):
    """The rate of a step (from 0): linear warm-up, then a cosine over the larger fraction of steps and time."""
    o = settings.optimization
    if step < o.warmup:
        return o.lr * (step + 1) / o.warmup
    done = minutes / o.max_minutes if o.max_minutes > 0 else 0.0
    if o.steps > 0:
        done = max(done, (step - o.warmup) / max(1, o.steps - o.warmup))
    return o.lr * (o.final_lr + (1 - o.final_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


def save_whole(state, path):
    """Write a checkpoint beside its place and rename it, so that a checkpoint is whole or absent."""
    path = Path(path)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def load_checkpoint(path):
    """The state in a checkpoint file; only plain tensors and values are ever unpickled."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(f"The checkpoint {path} cannot be read ({type(error).__name__}).") from None


def checkpoints(run):
    """Checkpoint files of a run, oldest first."""
    return sorted((Path(run) / "checkpoints").glob("step-*.pt"))


@dataclass
class Meter:
    """Sums since the last log line."""

    loss: list = field(default_factory=lambda: [0.0] * BANDS)
    count: list = field(default_factory=lambda: [0] * BANDS)
    seconds: float = 0.0
    data_seconds: float = 0.0
    samples: int = 0
    last: float = 0.0

    def add(self, losses_, bands):
        self.last = sum(losses_) / len(losses_)
        for value, index in zip(losses_, bands):
            self.loss[index] += value
            self.count[index] += 1

    def summary(self):
        per_band = [s / n if n else None for s, n in zip(self.loss, self.count)]
        return {"loss": sum(self.loss) / max(1, sum(self.count)), "loss_by_band": per_band,
                "samples_per_second": self.samples / max(1e-9, self.seconds),
                "data_share": self.data_seconds / max(1e-9, self.seconds)}


class Trainer:
    """One run. `fit` trains until the steps, the time or a signal end it; see Settings for everything else."""

    def __init__(self, settings, collections, classes, fabric, report=print):
        self.settings, self.collections, self.fabric, self.report = settings, list(collections), fabric, report
        self.validated = [i for i, c in enumerate(self.collections) if c.held_out]
        self.run = Path(settings.run.output)
        self.schedule = make_schedule(settings)
        self.makers = [PairMaker(c.cache, settings, fabric.device) for c in self.collections]
        # A batch holds scans of one grid; which one's turn it is, is drawn like the rows of a data set.
        self.turns = Sampler([[i] for i in range(len(self.collections))], [c.weight for c in self.collections],
                             settings.run.seed)
        self.architecture = architecture(settings, classes)
        # How the network is to see the volumes of a collection (the rest of preprocessing is the PairMaker's).
        self.seen = [("front", "front") if self.architecture.get("front") and c.cache.from_the_front()
                     else ("none", "none") for c in self.collections]
        torch.manual_seed(settings.run.seed)
        model = build(self.architecture)
        self.conditional = classes > 1
        o = settings.optimization
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[o.optimizer]
        options = {"weight_decay": o.weight_decay} if o.optimizer == "adamw" else {}
        optimizer = kind(model.parameters(), lr=o.lr, **options)
        self.network, self.optimizer = fabric.setup(model, optimizer)
        self.plain = model
        from ema_pytorch import EMA

        self.ema = EMA(model, beta=o.ema_decay, power=o.ema_power, update_after_step=o.ema_start,
                       update_every=o.ema_every, include_online_model=False)
        self.step, self.minutes, self.best = 0, 0.0, None
        self.stop_signal = None
        self.reports = Reports(self.run, fabric.global_rank == 0, report)

    # ------------------------------------------------------------------------------------- one step
    def denoiser(self, network, index, class_id):
        """(fixed, moving, t) → θ of volumes of collection number ``index``."""
        classes, seen = class_id if self.conditional else None, self.seen[index]
        return lambda fixed, moving, t, **more: network(fixed, moving, t, classes, seen, **more)

    def loss(self, pairs, index=0):
        """Loss per sample of a batch of collection number ``index``, B."""
        predict = self.denoiser(self.network, index, pairs.class_id)
        if self.architecture["head"] == "matches":
            looks, entropy = predict(pairs.fixed, pairs.moving, pairs.t, target=pairs.target)
            affine = sum(self._affine_loss(predicted, pairs, index) for predicted in looks) / len(looks)
            return affine + self.settings.optimization.matching * entropy
        return self._affine_loss(predict(pairs.fixed, pairs.moving, pairs.t), pairs, index)

    def _affine_loss(self, predicted, pairs, index):
        if self.settings.optimization.loss == "frobenius":
            return losses.frobenius(predicted, pairs.target)
        maker = self.makers[index]
        spacing, floor = maker.cache.spacing, self.settings.optimization.loss_floor_voxels
        return losses.physical(predicted, pairs.target, pairs.t, maker.schedule, pairs.mean, pairs.covariance,
                               maker.half.to(predicted.device), spacing, floor * float(np.mean(spacing)))

    def rows(self, micro):
        """(number of the collection, rows) of global batch number `micro`, all processes."""
        index = self.turns.draw(micro, 1)[0]
        size = self.settings.optimization.batch * self.fabric.world_size
        return index, self.collections[index].sampler.batch(micro, size)

    def train_step(self, meter):
        """One optimizer step over `accumulate` batches; raises TrainingStopped if the loss is no number."""
        o, fabric = self.settings.optimization, self.fabric
        rate = learning_rate(self.settings, self.step, self.minutes)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.network.train()
        # Class dropout draws from PyTorch's own generator.
        torch.manual_seed(seeded(self.settings.run.seed, 2, self.step, fabric.global_rank).initial_seed())
        for part in range(o.accumulate):
            micro = self.step * o.accumulate + part
            start = time.perf_counter()
            own = slice(fabric.global_rank * o.batch, (fabric.global_rank + 1) * o.batch)
            index, rows = self.rows(micro)
            pairs = self.makers[index].make(rows, seeded(self.settings.run.seed, 1, micro), own)
            if fabric.device.type == "cuda":
                torch.cuda.synchronize()
            meter.data_seconds += time.perf_counter() - start
            with fabric.no_backward_sync(self.network, enabled=part + 1 < o.accumulate):
                each = self.loss(pairs, index)
                fabric.backward(each.mean() / o.accumulate)
            values = each.detach().float().cpu()
            if not torch.isfinite(values).all():
                files = ", ".join(self.collections[index].cache.files(pairs.rows))
                raise TrainingStopped(f"the loss is {values.tolist()} at step {self.step}, batch of {files}")
            meter.add(values.tolist(), [band(t, self.schedule.timesteps) for t in pairs.t.tolist()])
            meter.samples += o.batch * fabric.world_size
        if o.clip > 0:
            norm = fabric.clip_gradients(self.network, self.optimizer, max_norm=o.clip, error_if_nonfinite=False)
            if not torch.isfinite(norm):
                files = ", ".join(self.collections[index].cache.files(pairs.rows))
                raise TrainingStopped(f"the gradient is not finite at step {self.step}, last batch of {files}")
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.update()
        self.step += 1

    # ------------------------------------------------------------------------------------- validation
    @torch.no_grad()
    def validate(self, index=0, network=None):
        """Errors in mm over the tissue on the same draws of held-out scans of a collection at every call.

        "single": one pass at the drawn timestep, by band; "registration": `validate_steps` diffusion steps from
        timestep T; each with (corrupted) and without (clean) artifacts: {"median", "p95"}. "self_test": mean
        absolute intensity error after volumes under 1.2 times the largest transforms were registered to themselves.
        """
        network = (network or self.ema.ema_model).eval()
        run, timesteps = self.settings.run, self.schedule.timesteps
        maker, count = self.makers[index], max(1, run.validate_draws // len(self.validated))
        held_out = self.collections[index].held_out
        rows = [held_out[i % len(held_out)] for i in range(count)]
        spread_t = [1 + (i * timesteps) // count for i in range(count)]
        result = {}

        denoise = partial(self.denoiser, network, index)
        for name, corrupt in (("clean", False), ("corrupted", True)):
            single, final = [], []
            for first in range(0, count, 4):
                part = slice(first, min(first + 4, count))
                generator = seeded(7, 3, first, int(corrupt))
                pairs = maker.make(rows[part], generator, t=spread_t[part], corrupt=corrupt)
                predict = denoise(pairs.class_id)
                single += _error(predict(pairs.fixed, pairs.moving, pairs.t), pairs, maker)
                full = [timesteps] * len(pairs.rows)
                pairs = maker.make(rows[part], seeded(7, 4, first, int(corrupt)), t=full, corrupt=corrupt)
                for step in diffusion.reverse(predict, pairs.fixed, pairs.moving, maker.schedule,
                                              steps=run.validate_steps):
                    pass
                final += _error(step.theta, pairs, maker)
            bands = [[e for e, t in zip(single, spread_t) if band(t, timesteps) == b] for b in range(BANDS)]
            result[name] = {"single": _spread(single), "single_by_band": [_spread(b) for b in bands],
                            "registration": _spread(final)}
        few = rows[: min(4, count)]
        classes = maker.classes[torch.tensor(few)].to(self.fabric.device)
        volumes = maker.cache.read(few, self.fabric.device)
        # The test draws on the volumes' device; seeded there, it is the same at every validation.
        generator = torch.Generator(self.fabric.device).manual_seed(8)
        result["self_test"] = diffusion.self_test(denoise(classes), volumes, maker.schedule, generator=generator,
                                                  steps=run.validate_steps)
        return result

    # ------------------------------------------------------------------------------------- checkpoints
    def state(self):
        return {"format": 1, "model": self.plain.state_dict(), "ema": self.ema.state_dict(),
                "optimizer": self.optimizer.state_dict(), "step": self.step, "minutes": self.minutes,
                "best": self.best, "architecture": self.architecture, "settings": self.settings.to_dict()}

    def save(self):
        """Write a checkpoint and drop the oldest beyond `keep`; a full disk costs this checkpoint only."""
        if self.fabric.global_rank != 0:
            return True
        folder = self.run / "checkpoints"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            save_whole(self.state(), folder / CHECKPOINT.format(self.step))
        except OSError as error:
            kept = checkpoints(self.run)
            last = kept[-1].name if kept else "none"
            self.reports.say(f"step {self.step}: the checkpoint cannot be written ({error.strerror}); kept: {last}")
            return False
        for old in checkpoints(self.run)[: -max(1, self.settings.run.keep)]:
            old.unlink(missing_ok=True)
        return True

    def save_best(self, figures):
        """Keep the EMA weights of the best validation so far."""
        if self.fabric.global_rank != 0:
            return
        state = {"format": 1, "weights": self.ema.ema_model.state_dict(), "architecture": self.architecture,
                 "settings": self.settings.to_dict(), "step": self.step, "validation": figures}
        try:
            save_whole(state, self.run / "best.pt")
        except OSError as error:
            self.reports.say(f"step {self.step}: best.pt cannot be written ({error.strerror})")

    def restore(self, state):
        """Continue from a checkpoint's state."""
        if complete(state["architecture"]) != self.architecture:
            raise InputError(f"The checkpoint holds the network {state['architecture']}, but the settings ask for "
                             f"{self.architecture}.")
        self.plain.load_state_dict(state["model"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.minutes, self.best = state["step"], state["minutes"], state["best"]

    # ------------------------------------------------------------------------------------- the loop
    def _finished(self):
        o = self.settings.optimization
        return (o.steps > 0 and self.step >= o.steps) or (o.max_minutes > 0 and self.minutes >= o.max_minutes)

    def _agree(self, elapsed):
        """The same time and signal on all processes: (minutes, signal or 0)."""
        wanted = self.stop_signal or 0
        if self.fabric.world_size == 1:
            return elapsed, wanted
        own = [elapsed if self.fabric.global_rank == 0 else 0.0]
        own += [float(wanted == number) for number in (signal.SIGTERM, signal.SIGINT)]
        sums = torch.tensor(own, dtype=torch.float64, device=self.fabric.device)
        minutes, terminate, interrupt = self.fabric.all_reduce(sums, reduce_op="sum").tolist()
        return minutes, signal.SIGTERM if terminate else signal.SIGINT if interrupt else 0

    def fit(self):
        """Train; returns the number of the signal that ended it, or 0."""
        run = self.settings.run
        previous = {}
        for number in (signal.SIGTERM, signal.SIGINT):
            try:
                previous[number] = signal.signal(number, lambda n, _: setattr(self, "stop_signal", n))
            except ValueError:  # not the main thread: whoever owns that one stops the run
                pass
        self.reports.start(self.step, self.settings.optimization.steps, self.settings.optimization.max_minutes)
        meter, ended = Meter(), 0
        begin, before = time.perf_counter(), self.minutes
        saved_at = self.step
        try:
            while not self._finished() and not ended:
                start = time.perf_counter()
                self.train_step(meter)
                meter.seconds += time.perf_counter() - start
                self.minutes, ended = self._agree(before + (time.perf_counter() - begin) / 60)
                self.reports.advance(meter.last, meter.samples / meter.seconds)
                if self.step % run.log_every == 0:
                    self._log(self._together(meter))
                    meter = Meter()
                last = self._finished() or bool(ended)
                if (self.step % run.validate_every == 0 or self._finished()) and self.validated and not ended:
                    self._validate()
                if run.picture_every and self.step % run.picture_every == 0:
                    self._pictures()
                if self.step % run.checkpoint_every == 0 or last:
                    saved_at = self.step if self.save() else saved_at
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
            self.reports.curve()
            self.reports.close()
        if ended:
            name = signal.Signals(ended).name
            self.reports.say(f"stopped by {name} after step {self.step}, "
                        + ("saved" if saved_at == self.step else f"last checkpoint at step {saved_at}"))
        elif saved_at != self.step:
            raise TrainingStopped(f"the last checkpoint could not be written; the newest is of step {saved_at}")
        return ended

    def _validate(self):
        """Validate on the first process and keep the best; the others wait."""
        if self.fabric.global_rank == 0:
            started = time.perf_counter()
            by_name = {self.collections[i].name: self.validate(i) for i in self.validated}
            # Grids differ in size, so their errors are averaged as ratios.
            medians = [found["corrupted"]["registration"]["median"] for found in by_name.values()]
            value = float(np.exp(np.mean(np.log(np.maximum(medians, 1e-9)))))
            figures = by_name if len(self.collections) > 1 else next(iter(by_name.values()))
            if self.best is None or value < self.best["median_mm"]:
                self.best = {"step": self.step, "median_mm": value}
                self.save_best(figures)
            self.reports.record("validation", self.step, self.minutes, figures)
            for name, found in by_name.items():
                c, k = found["clean"], found["corrupted"]
                self.reports.say(
                    f"step {self.step}: validation of {name} in mm, median (95 %): registration clean "
                    f"{_text(c['registration'])}, corrupted {_text(k['registration'])}; single pass corrupted by band "
                    + ", ".join(_text(b) for b in k["single_by_band"])
                    + f"; self-test {found['self_test']:.4f}; {time.perf_counter() - started:.0f} s")
        self.fabric.barrier()

    def _together(self, meter):
        """The losses of all processes in one meter; the times stay this process's own."""
        if self.fabric.world_size > 1:
            sums = torch.tensor([meter.loss, [float(n) for n in meter.count]], dtype=torch.float64,
                                device=self.fabric.device)
            loss, count = self.fabric.all_reduce(sums, reduce_op="sum").tolist()
            meter.loss, meter.count = loss, [round(n) for n in count]
        return meter

    def _log(self, meter):
        summary = meter.summary()
        rate = learning_rate(self.settings, self.step, self.minutes)
        self.reports.record("training", self.step, self.minutes, {**summary, "lr": rate})
        bands = " ".join("-" if b is None else f"{b:.3f}" for b in summary["loss_by_band"])
        o = self.settings.optimization
        done = max(self.minutes / o.max_minutes if o.max_minutes else 0, self.step / o.steps if o.steps else 0)
        left = self.minutes * (1 - done) / done if done else 0.0
        self.reports.say(f"step {self.step} loss {summary['loss']:.4f} bands {bands} "
                    f"{summary['samples_per_second']:.2f} samples/s data {summary['data_share']:.0%} "
                    f"{self.minutes:.1f} min, {left:.0f} min left")

    @torch.no_grad()
    def _pictures(self):
        """Sheets of training pairs and of the EMA's answers to held-out ones; loss.png."""
        if self.fabric.global_rank != 0:
            return
        count = 6
        sheets = {"pairs": [], "predictions": []}
        for index, (collection, maker) in enumerate(zip(self.collections, self.makers)):
            sheets["pairs"].append(sheet(maker.make(collection.sampler.draw(0, count), seeded(7, 5, self.step))))
            if not collection.held_out:
                continue
            rows = [collection.held_out[i % len(collection.held_out)] for i in range(count)]
            t = torch.linspace(1, self.schedule.timesteps, count).round().long()
            pairs = maker.make(rows, seeded(7, 6), t=t)
            predict = self.denoiser(self.ema.ema_model.eval(), index, pairs.class_id)
            predicted = predict(pairs.fixed, pairs.moving, pairs.t)
            sheets["predictions"].append(sheet(pairs, predicted))
        self.reports.pictures(self.step, {name: stacked(parts) for name, parts in sheets.items() if parts})


def _error(theta, pairs, maker):
    half = maker.half.to(theta.device)
    return losses.displacement(theta, pairs.target, pairs.mean, pairs.covariance, half).tolist()


def _spread(values):
    """Median and 95th percentile, or None twice for no values."""
    if not values:
        return {"median": None, "p95": None}
    return {"median": float(np.median(values)), "p95": float(np.percentile(values, 95))}


def _text(spread):
    return "-" if spread["median"] is None else f"{spread['median']:.2f} ({spread['p95']:.2f})"
