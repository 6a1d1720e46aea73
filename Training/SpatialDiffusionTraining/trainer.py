"""The training loop: steps, checkpoints, validation, and how a run ends.

Nothing random carries state from step to step: every number is drawn from (seed, step). A checkpoint therefore
holds weights, EMA, optimizer and counters, and a resumed run goes on exactly as if it had never stopped.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ema_pytorch import EMA
from lightning_fabric import Fabric

from SpatialDiffusionCore.errors import InputError
from SpatialDiffusionCore.method import diffusion

from . import losses, validation
from .ahead import Ahead
from .architecture import architecture, build_network, complete
from .checkpoint import CHECKPOINT, checkpoints, save_whole
from .datasets import Collection, Report
from .meter import Meter
from .optimization import learning_rate, make_optimizer
from .pairs import PairMaker, Pairs, make_schedule, seeded
from .reports import Reports
from .sampler import Sampler
from .settings import Settings
from .sheets import COLUMNS, captioned, sheet, stacked
from .validation import BANDS, band

#: Seconds after which a run speaks for the first time, so that nobody wonders whether it works.
FIRST_WORDS = 8.0


class TrainingStopped(RuntimeError):
    """The run cannot go on; the message says why and at which step."""


class Trainer:
    """One run. `fit` trains until the steps, the time or a signal end it; see Settings for everything else."""

    def __init__(
        self,
        settings: Settings,
        collections: Sequence[Collection],
        classes: int,
        fabric: Fabric,
        report: Report = print,
    ) -> None:
        self.settings, self.collections, self.fabric, self.report = settings, list(collections), fabric, report
        self.run = Path(settings.run.output)
        self.schedule = make_schedule(settings)
        self.makers = [PairMaker(c.cache, settings, fabric.device) for c in self.collections]
        # A batch holds scans of one grid; which one's turn it is, is drawn like the rows of a data set.
        weights = [c.weight for c in self.collections]
        self.turns = Sampler([[i] for i in range(len(self.collections))], weights, settings.run.seed)
        self.architecture = architecture(settings, classes)
        # How the network is to see the volumes of a collection (the rest of preprocessing is the PairMaker's).
        self.seen = [
            ("front", "front") if self.architecture.get("front") and c.cache.from_the_front() else ("none", "none")
            for c in self.collections
        ]
        torch.manual_seed(settings.run.seed)
        model = build_network(self.architecture)
        self.conditional = classes > 1
        o = settings.optimization
        self.network, self.optimizer = fabric.setup(model, make_optimizer(settings, model))
        self.plain: Any = model
        self.ema = EMA(model, beta=o.ema_decay, power=o.ema_power, update_after_step=o.ema_start,
                       update_every=o.ema_every, include_online_model=False)  # fmt: skip
        self.step, self.minutes, self.since_best = 0, 0.0, 0
        self.best: dict[str, Any] | None = None
        self.stop_signal: int | None = None
        self.validation_minutes = 0.0
        self.ahead = Ahead(self.batch, fabric.device)
        self.reports = Reports(self.run, fabric.global_rank == 0, report, settings.run.logger)

    # ------------------------------------------------------------------------------------- one step
    def denoiser(self, network: torch.nn.Module, index: int, class_id: torch.Tensor) -> Callable[..., Any]:
        """(fixed, moving, t) → θ of volumes of collection number ``index``."""
        classes, seen = class_id if self.conditional else None, self.seen[index]
        return lambda fixed, moving, t, **more: network(fixed, moving, t, classes, seen, **more)

    def loss(self, pairs: Pairs, index: int = 0, classes: torch.Tensor | None = None) -> torch.Tensor:
        """Loss per sample of a batch of collection number ``index``, B, and beside it that of the affine alone.

        classes: class ids (B, or B × blocks of the network) instead of those of the pairs. 2×B.
        """
        predict = self.denoiser(self.network, index, pairs.class_id if classes is None else classes)
        if self.architecture["head"] == "matches":
            looks, entropy = predict(pairs.fixed, pairs.moving, pairs.t, target=pairs.target)
            affine = torch.stack([self._affine_loss(predicted, pairs, index) for predicted in looks]).mean(0)
            return torch.stack([affine + self.settings.optimization.matching * entropy, affine])
        affine = self._affine_loss(predict(pairs.fixed, pairs.moving, pairs.t), pairs, index)
        return torch.stack([affine, affine])

    def _affine_loss(self, predicted: torch.Tensor, pairs: Pairs, index: int) -> torch.Tensor:
        if self.settings.optimization.loss == "frobenius":
            return losses.frobenius(predicted, pairs.target)
        maker = self.makers[index]
        spacing, floor = maker.cache.spacing, self.settings.optimization.loss_floor_voxels
        return losses.physical(predicted, pairs.target, pairs.t, maker.schedule, pairs.mean, pairs.covariance,
                               maker.half.to(predicted.device), spacing, floor * float(np.mean(spacing)))  # fmt: skip

    def rows(self, micro: int) -> tuple[int, list[int]]:
        """(number of the collection, rows) of global batch number `micro`, all processes."""
        index = self.turns.draw(micro, 1)[0]
        size = self.settings.optimization.batch * self.fabric.world_size
        return index, self.collections[index].sampler.batch(micro, size)

    @property
    def own(self) -> slice:
        """This process's part of a global batch."""
        size, rank = self.settings.optimization.batch, self.fabric.global_rank
        return slice(rank * size, (rank + 1) * size)

    def batch(self, micro: int) -> tuple[int, Pairs]:
        """(number of the collection, this process's pairs) of global batch number `micro`."""
        index, rows = self.rows(micro)
        return index, self.makers[index].make(rows, seeded(self.settings.run.seed, 1, micro), self.own)

    def classes(self, pairs: Pairs, micro: int) -> torch.Tensor | None:
        """B × blocks class ids of a batch, hidden at random in each block of the network; None without classes.

        Drawn for the global batch, so that any number of processes hides the same.
        """
        if not self.conditional:
            return None
        dropout = self.settings.network.class_dropout
        size = self.settings.optimization.batch * self.fabric.world_size
        drawn = torch.rand(size, self.plain.class_blocks, generator=seeded(self.settings.run.seed, 2, micro))
        return pairs.class_id[:, None] * (drawn[self.own] >= dropout).to(pairs.class_id.device)

    def train_step(self, meter: Meter) -> None:
        """One optimizer step over `accumulate` batches; raises TrainingStopped if the loss is no number."""
        o, fabric = self.settings.optimization, self.fabric
        rate = learning_rate(self.settings, self.step, self.minutes)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.network.train()
        for part in range(o.accumulate):
            micro = self.step * o.accumulate + part
            start = time.perf_counter()
            index, pairs = self.ahead.take(micro)
            made = time.perf_counter()
            with fabric.no_backward_sync(self.network, enabled=part + 1 < o.accumulate):
                each = self.loss(pairs, index, self.classes(pairs, micro))
                fabric.backward(each[0].mean() / o.accumulate)
            launched = time.perf_counter()
            self.ahead.begin(micro + 1)
            meter.data_seconds += made - start + time.perf_counter() - launched
            self._take_in(meter, each.detach(), pairs, index)
        if o.clip > 0:
            norm = fabric.clip_gradients(self.network, self.optimizer, max_norm=o.clip, error_if_nonfinite=False)
            if norm is not None and not torch.isfinite(norm):
                files = ", ".join(self.collections[index].cache.files(pairs.rows))
                raise TrainingStopped(f"the gradient is not finite at step {self.step}, last batch of {files}")
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.update()
        self.step += 1

    @torch.no_grad()
    def _take_in(self, meter: Meter, each: torch.Tensor, pairs: Pairs, index: int) -> None:
        """Count the losses of a batch (2×B, see `loss`); raises TrainingStopped where they are no numbers."""
        nothing = self._affine_loss(diffusion.identity(len(pairs.rows), pairs.target), pairs, index)
        values = torch.cat([each.float(), nothing.float()[None]]).cpu()  # one wait for the device
        if not torch.isfinite(values[:2]).all():
            files = ", ".join(self.collections[index].cache.files(pairs.rows))
            raise TrainingStopped(f"the loss is {values[0].tolist()} at step {self.step}, batch of {files}")
        meter.add(values[0].tolist(), [band(t, self.schedule.timesteps) for t in pairs.t.tolist()])
        meter.affine += float(values[1].sum())
        meter.nothing += float(values[2].sum())
        meter.samples += len(pairs.rows) * self.fabric.world_size

    # ------------------------------------------------------------------------------------- validation
    def tasks(self, network: torch.nn.Module | None = None) -> list[validation.Task]:
        """What is validated: held-out scans by grid and modality."""
        network = (network or self.ema.ema_model).eval()
        run = self.settings.run
        out = []
        for index, (collection, maker) in enumerate(zip(self.collections, self.makers)):
            by_modality: dict[str, list[int]] = {}
            for row in collection.held_out:
                by_modality.setdefault(collection.cache.entries[row]["modality"], []).append(row)
            for modality, rows in by_modality.items():
                steps = None if maker.published else run.validate_steps
                denoise = partial(self.denoiser, network, index)
                enhanced = maker.preprocessing(modality)
                out.append(validation.Task(modality, maker, rows, run.validate_draws, steps, denoise, enhanced))
        for task in out:
            task.count = max(1, run.validate_draws // len(out))
        return out

    # ------------------------------------------------------------------------------------- checkpoints
    def state(self) -> dict[str, Any]:
        """All that a run needs to go on."""
        return {
            "format": 1,
            "model": self.plain.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "minutes": self.minutes,
            "best": self.best,
            "since_best": self.since_best,
            "architecture": self.architecture,
            "settings": self.settings.to_dict(),
        }

    def save(self) -> bool:
        """Write a checkpoint and drop the oldest beyond `keep`; a full disk costs this checkpoint only."""
        if self.fabric.global_rank != 0:
            return True
        folder = self.run / "checkpoints"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            save_whole(self.state(), folder / CHECKPOINT.format(self.step))
        except (OSError, InputError) as error:
            kept = checkpoints(self.run)
            last = kept[-1].name if kept else "none"
            self.reports.say(f"step {self.step}: the checkpoint cannot be written ({_reason(error)}); kept: {last}")
            return False
        for old in checkpoints(self.run)[: -max(1, self.settings.run.keep)]:
            old.unlink(missing_ok=True)
        return True

    def save_best(self, figures: dict[str, Any]) -> None:
        """Keep the EMA weights of the best validation so far."""
        if self.fabric.global_rank != 0:
            return
        state = {"format": 1, "weights": self.ema.ema_model.state_dict(), "architecture": self.architecture,
                 "settings": self.settings.to_dict(), "step": self.step, "validation": figures}  # fmt: skip
        try:
            save_whole(state, self.run / "best.pt")
        except (OSError, InputError) as error:
            self.reports.say(f"step {self.step}: best.pt cannot be written ({_reason(error)})")

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint's state."""
        if complete(state["architecture"]) != self.architecture:
            raise InputError(
                f"The checkpoint holds the network {state['architecture']}, but the settings ask for "
                f"{self.architecture}."
            )
        self.plain.load_state_dict(state["model"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.minutes, self.best = state["step"], state["minutes"], state["best"]
        self.since_best = state.get("since_best", 0)

    # ------------------------------------------------------------------------------------- the loop
    def _finished(self) -> bool:
        o = self.settings.optimization
        by_steps = o.steps > 0 and self.step >= o.steps
        # The last validation belongs to the time that was given.
        by_clock = o.max_minutes > 0 and self.minutes + self.validation_minutes >= o.max_minutes and self.step > 0
        return by_steps or by_clock or 0 < o.patience <= self.since_best

    def _early(self) -> bool:
        """Whether a run that ends by the clock has yet to find out how long a validation takes."""
        limit = self.settings.optimization.max_minutes
        return limit > 0 and self.validation_minutes == 0 and self.minutes > 0.1 * limit

    def _agree(self, elapsed: float) -> tuple[float, int]:
        """The same time and signal on all processes: (minutes, signal or 0)."""
        wanted = self.stop_signal or 0
        if self.fabric.world_size == 1:
            return elapsed, wanted
        own = [elapsed if self.fabric.global_rank == 0 else 0.0]
        own += [float(wanted == number) for number in (signal.SIGTERM, signal.SIGINT)]
        sums = torch.tensor(own, dtype=torch.float64, device=self.fabric.device)
        together: Any = self.fabric.all_reduce(sums, reduce_op="sum")
        minutes, terminate, interrupt = together.tolist()
        return minutes, int(signal.SIGTERM if terminate else signal.SIGINT if interrupt else 0)

    def _catch(self) -> dict[int, Any]:
        """Let signals end the run after a step; {signal: what it did before}."""
        previous: dict[int, Any] = {}
        for number in (signal.SIGTERM, signal.SIGINT):
            with contextlib.suppress(ValueError):  # not the main thread: whoever owns that one stops the run
                previous[number] = signal.signal(number, lambda n, _: setattr(self, "stop_signal", n))
        return previous

    def fit(self) -> int:
        """Train; returns the number of the signal that ended it, or 0."""
        previous = self._catch()
        self.reports.start(self.step, self.settings.optimization.steps, self.settings.optimization.max_minutes)
        try:
            ended, saved_at = self._loop()
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
            self.reports.curve()
            self.reports.close()
        if ended:
            name = signal.Signals(ended).name
            kept = "saved" if saved_at == self.step else f"last checkpoint at step {saved_at}"
            self.reports.say(f"stopped by {name} after step {self.step}, {kept}; go on with: spatial-diffusion-train "
                             f"--resume {self.run}")  # fmt: skip
        elif saved_at != self.step:
            raise TrainingStopped(f"the last checkpoint could not be written; the newest is of step {saved_at}")
        else:
            self.reports.say(self._farewell())
        return ended

    def _loop(self) -> tuple[int, int]:
        """Steps until an end; (signal that ended it or 0, step of the last checkpoint)."""
        run = self.settings.run
        meter, ended, saved_at = Meter(), 0, self.step
        begin, before, drawn, spoken = time.perf_counter(), self.minutes, -1.0, self.step > 0

        def clock() -> float:
            return before + (time.perf_counter() - begin) / 60

        while not self._finished() and not ended:
            start = time.perf_counter()
            self.train_step(meter)
            meter.seconds += time.perf_counter() - start
            self.minutes, ended = self._agree(clock())
            self.reports.advance(meter.last, meter.samples / meter.seconds)
            first_words = not spoken and (time.perf_counter() - begin > FIRST_WORDS or self._finished())
            if self.step % run.log_every == 0:
                self._log(self._together(meter))
                meter = Meter()
                spoken = True
            elif first_words and self.fabric.world_size == 1:
                self._log(meter)
                spoken = True
            if (self.step % run.validate_every == 0 or self._finished() or self._early()) and not ended:
                self._validate()
                self.minutes, ended = self._agree(clock())
            last = self._finished() or bool(ended)
            due = bool(run.picture_every) and (
                self.step % run.picture_every == 0 or self.minutes - drawn >= run.minutes_between or drawn < 0
            )
            if due:
                self._pictures()
                drawn = self.minutes
            if self.step % run.checkpoint_every == 0 or last:
                saved_at = self.step if self.save() else saved_at
        return ended, saved_at

    def _validate(self) -> None:
        """Validate on the first process and keep the best; the others wait."""
        started = time.perf_counter()
        if self.fabric.global_rank == 0:
            tasks = self.tasks()
            try:
                by_name = {task.name: validation.validate(task, lambda: self.stop_signal is not None) for task in tasks}
            except validation.Interrupted:
                by_name = {}
            if by_name:
                self._take_best(by_name)
                for name, found in by_name.items():
                    c, k = found["clean"], found["corrupted"]
                    self.reports.say(
                        f"step {self.step}: held-out scans of {name} end {validation.text(c['registration'])} mm off, "
                        f"corrupted ones {validation.text(k['registration'])}; they began "
                        f"{validation.text(k['start'])} mm off (median, 95 % in brackets); single pass "
                        f"corrupted by band "
                        + ", ".join(validation.text(b) for b in k["single_by_band"])
                        + f"; self-test {found['self_test']:.4f}; {time.perf_counter() - started:.0f} s"
                    )
        self.validation_minutes = (time.perf_counter() - started) / 60
        if self.fabric.world_size > 1:  # all end at the same step
            self.validation_minutes = self.fabric.broadcast(self.validation_minutes, 0)
            self.since_best = self.fabric.broadcast(self.since_best, 0)

    def _take_best(self, by_name: dict[str, dict[str, Any]]) -> None:
        """Record a validation, and keep the weights where it is the best."""
        # Grids differ in size, so their errors are averaged as ratios.
        medians = [found["corrupted"]["registration"]["median"] for found in by_name.values()]
        value = float(np.exp(np.mean(np.log(np.maximum(medians, 1e-9)))))
        figures = by_name if len(by_name) > 1 else next(iter(by_name.values()))
        self.since_best += 1
        if self.best is None or value < self.best["median_mm"]:
            self.best, self.since_best = {"step": self.step, "median_mm": value}, 0
            self.save_best(figures)
        self.reports.record("validation", self.step, self.minutes, figures)

    def _together(self, meter: Meter) -> Meter:
        """The losses of all processes in one meter; the times stay this process's own."""
        if self.fabric.world_size > 1:
            sums = torch.tensor([*meter.loss, *(float(n) for n in meter.count), meter.affine, meter.nothing],
                                dtype=torch.float64, device=self.fabric.device)  # fmt: skip
            together: Any = self.fabric.all_reduce(sums, reduce_op="sum")
            found = together.tolist()
            meter.loss, meter.count = found[:BANDS], [round(n) for n in found[BANDS : 2 * BANDS]]
            meter.affine, meter.nothing = found[-2:]
        return meter

    def _log(self, meter: Meter) -> None:
        summary = meter.summary()
        rate = learning_rate(self.settings, self.step, self.minutes)
        self.reports.record("training", self.step, self.minutes, {**summary, "lr": rate})
        bands = " ".join("-" if b is None else f"{b:.3f}" for b in summary["loss_by_band"])
        o = self.settings.optimization
        done = max(self.minutes / o.max_minutes if o.max_minutes else 0, self.step / o.steps if o.steps else 0)
        left = self.minutes * (1 - done) / done if done else 0.0
        self.reports.say(
            f"step {self.step} loss {summary['loss']:.4f}, {summary['relative']:.2f} of that of a "
            f"network that does nothing "
            f"(1 = nothing learned, 0 = perfect); by band {bands}; {summary['samples_per_second']:.2f} samples/s, data "
            f"{summary['data_share']:.0%}; {self.minutes:.1f} min, {left:.0f} min left"
        )

    def _farewell(self) -> str:
        """What came out, and what to do with it."""
        best = ""
        if self.best is not None:
            best = (
                f" Best on held-out scans: {self.best['median_mm']:.2f} mm (median, corrupted), step "
                f"{self.best['step']}."
            )
        return (
            f"done after step {self.step}.{best} Look at {self.run / 'loss.png'} and "
            f"{self.run / 'pictures'}; make the model: "
            f"spatial-diffusion-train export {self.run} -o MODEL.safetensors --half"
        )

    @torch.no_grad()
    def _pictures(self) -> None:
        """Sheets of training pairs and of the EMA's answers to held-out ones; loss.png."""
        if self.fabric.global_rank != 0:
            return
        count = 6
        sheets: dict[str, list[np.ndarray]] = {"pairs": [], "predictions": []}
        for index, (collection, maker) in enumerate(zip(self.collections, self.makers)):
            made = maker.make(collection.sampler.draw(0, count), seeded(7, 5, self.step))
            words = f"training pairs of {collection.name}, step {self.step}"
            sheets["pairs"].append(captioned(sheet(made), words, COLUMNS[:4]))
            if not collection.held_out:
                continue
            rows = [collection.held_out[i % len(collection.held_out)] for i in range(count)]
            t = torch.linspace(1, self.schedule.timesteps, count).round().long()
            pairs = maker.make(rows, seeded(7, 6), t=t)
            predict = self.denoiser(self.ema.ema_model.eval(), index, pairs.class_id)
            predicted = predict(pairs.fixed, pairs.moving, pairs.t)
            words = f"held-out scans of {collection.name}, one pass of the network, step {self.step}"
            sheets["predictions"].append(captioned(sheet(pairs, predicted), words, COLUMNS))
        self.reports.pictures(self.step, {name: stacked(parts) for name, parts in sheets.items() if parts})


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
