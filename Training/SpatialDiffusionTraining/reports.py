"""What a person watches while a run trains: progress bar, TensorBoard, loss.png and sheets of pictures.

None of it may end a run: what cannot be written is reported and left out.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from SpatialDiffusionCore.errors import InputError
from SpatialDiffusionCore.files import written_whole

from .datasets import Report
from .sheets import save_png


def read_log(path: str | Path, last_step: int | None = None) -> list[dict[str, Any]]:
    """Lines of log.jsonl up to a step; a line that was cut off by a crash is left out."""
    lines = []
    if Path(path).exists():
        for text in Path(path).read_text(encoding="utf-8").splitlines():
            try:
                line = json.loads(text)
            except ValueError:
                continue
            if last_step is None or line["step"] <= last_step:
                lines.append(line)
    return lines


def loss_curve(history: list[dict[str, Any]], path: str | Path, title: str = "") -> None:
    """Draw loss.png: the training loss by timestep band and the validation errors in mm."""
    from matplotlib.figure import Figure  # only this draws with it, and it takes half a second to import

    training = [h for h in history if h["kind"] == "training"]
    validation = [h for h in history if h["kind"] == "validation"]
    figure = Figure(figsize=(11, 4.2))
    left, right = figure.subplots(1, 2)
    _draw_training(left, training)
    _draw_validation(right, validation)
    figure.suptitle(title)
    figure.tight_layout()
    with written_whole(path) as temporary:
        figure.savefig(temporary, format="png", dpi=90)


def _draw_training(axes: Any, training: list[dict[str, Any]]) -> None:
    """The loss beside that of a network that has learned nothing."""
    steps = [h["step"] for h in training]
    if all("relative" in h for h in training):
        axes.axhline(1.0, color="gray", linewidth=1, linestyle="--", label="nothing learned")
        axes.plot(steps, [h["relative"] for h in training], color="black", marker=".", linewidth=2,
                  label="relative to that")  # fmt: skip
    axes.plot(steps, [h["loss"] for h in training], color="tab:gray", marker=".", linewidth=1, label="loss")
    for index in range(len(training[0]["loss_by_band"]) if training else 0):
        values = [h["loss_by_band"][index] for h in training]
        axes.plot(steps, [float("nan") if v is None else v for v in values], linewidth=0.7,
                  label=f"loss, timesteps {index + 1}/4")  # fmt: skip
    axes.set(xlabel="step", ylabel="training loss (lower is better)", yscale="log")
    if training:
        axes.legend(fontsize=7, framealpha=0.5)


def _draw_validation(axes: Any, validation: list[dict[str, Any]]) -> None:
    """Errors of registrations of held-out scans; runs on several modalities have figures of each."""
    axes.set(xlabel="step", ylabel="error on held-out scans, mm (lower is better)")
    if not validation:
        axes.text(0.5, 0.5, "no validation yet", ha="center", transform=axes.transAxes)
        return
    steps = [h["step"] for h in validation]
    single = "clean" in validation[0]
    names = [None] if single else [name for name, value in validation[0].items() if isinstance(value, dict)]
    for name, marker in zip(names, "os^vD*"):
        for kind, color in (("clean", "tab:blue"), ("corrupted", "tab:red")):
            for key, style in (("median", "-"), ("p95", ":")):
                values = [(h[name] if name else h)[kind]["registration"][key] for h in validation]
                axes.plot(steps, values, style, color=color, marker=marker, ms=3,
                          label=f"{f'{name}, ' if name else ''}{kind}, {key}")  # fmt: skip
    axes.set(yscale="log")
    axes.legend(fontsize=7, framealpha=0.5)


def make_logger(name: str, folder: Path, step: int) -> Any:
    """The logger of Lightning by the name that --logger gives it; None for "none". Raises InputError for no logger."""
    if name in ("", "none"):
        return None
    known = {"tensorboard": "lightning_fabric.loggers.TensorBoardLogger", "csv": "lightning_fabric.loggers.CSVLogger"}
    module, _, kind = known.get(name, name).rpartition(".")
    try:
        made = getattr(import_module(module), kind)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(
            f"--logger {name}: expected tensorboard, csv, none, or package.module.Class of a logger of "
            f"Lightning ({error})."
        ) from None
    if name == "tensorboard":
        more = {"purge_step": step + 1} if step else {}
        return made(root_dir=str(folder), name="tensorboard", version="", **more)
    if name == "csv":
        return made(root_dir=str(folder), name="csv", version="")
    return made(save_dir=str(folder))


class Reports:
    """The reports of one run (of its first process; on the others every method does nothing)."""

    def __init__(self, run: str | Path, active: bool, report: Report, logger: str = "tensorboard") -> None:
        self.run, self.active, self.report, self.logger = Path(run), active, report, logger
        self._writer: Any = None
        self._bar: Any = None
        self.history: list[dict[str, Any]] = []

    def start(self, step: int, steps: int, minutes_limit: float) -> None:
        """Take up the log at a step (what a crashed run logged beyond it is dropped) and show the bar."""
        if not self.active:
            return
        log = self.run / "log.jsonl"
        self.history = read_log(log, step)
        kept = "".join(json.dumps(h) + "\n" for h in self.history)
        self._attempt("log.jsonl", lambda: log.write_text(kept, encoding="utf-8"))
        try:
            self._writer = make_logger(self.logger, self.run, step)
        except Exception as error:
            self.report(f"no logger ({error})")
        if sys.stderr.isatty():
            from tqdm import tqdm

            words = f"at most {minutes_limit:g} min" if minutes_limit else None
            self._bar = tqdm(total=steps or None, initial=step, unit="step", dynamic_ncols=True, smoothing=0.05,
                             desc=words)  # fmt: skip

    def advance(self, loss: float, samples_per_second: float) -> None:
        """One step more on the bar."""
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {loss:.3f}, {samples_per_second:.1f} samples/s", refresh=False)
            self._bar.update()

    def say(self, text: str) -> None:
        """A line for people, above the bar where there is one."""
        if not self.active:
            return
        if self._bar is not None:
            self._bar.write(text)
        else:
            self.report(text)

    def record(self, kind: str, step: int, minutes: float, values: dict[str, Any]) -> None:
        """One line of log.jsonl and its numbers in the logger."""
        if not self.active:
            return
        line = {"kind": kind, "step": step, "minutes": round(minutes, 3), **values}
        self.history.append(line)

        def append() -> None:
            with open(self.run / "log.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

        self._attempt("log.jsonl", append)
        if self._writer is not None:
            numbers = {f"{kind}/{name}": value for name, value in _flat(values)}
            if not self._attempt("the logger", lambda: self._writer.log_metrics(numbers, step=step)):
                self._writer = None

    def pictures(self, step: int, sheets: dict[str, np.ndarray]) -> None:
        """PNG sheets ({name: H×W×3 uint8}) into pictures/ and TensorBoard, and loss.png."""
        if not self.active:
            return
        folder = self.run / "pictures"

        def write() -> None:
            folder.mkdir(exist_ok=True)
            for name, picture in sheets.items():
                save_png(picture, folder / f"{name}-{step:08d}.png")
                experiment = getattr(self._writer, "experiment", None)
                if experiment is not None and hasattr(experiment, "add_image"):
                    experiment.add_image(name, picture, step, dataformats="HWC")

        self._attempt("pictures", write)
        self.curve()

    def curve(self) -> None:
        """Write loss.png, once there is something to draw."""
        if self.active and self.history:
            self._attempt("loss.png", lambda: loss_curve(self.history, self.run / "loss.png", self.run.name))

    def close(self) -> None:
        """End the bar and flush the logger."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        if self._writer is not None:
            self._attempt("the logger", lambda: self._writer.finalize("success"))

    def _attempt(self, what: str, action: Callable[[], Any]) -> bool:
        try:
            action()
            return True
        except Exception as error:
            reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
            self.say(f"{what} cannot be written ({reason})")
            return False


def _flat(values: Any, prefix: str = "") -> Iterator[tuple[str, float]]:
    """(name/name, number) of nested dictionaries and lists, without what is no number."""
    items = values.items() if isinstance(values, dict) else enumerate(values)
    for name, value in items:
        if isinstance(value, (dict, list)):
            yield from _flat(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield f"{prefix}{name}", value
