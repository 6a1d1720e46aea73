"""What a person watches while a run trains: progress bar, TensorBoard, loss.png and sheets of pictures.

None of it may end a run: what cannot be written is reported and left out.
"""
from __future__ import annotations

import json
import sys
from pathlib import Path

from . import preview


def read_log(path, last_step=None):
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


def loss_curve(history, path, title=""):
    """Draw loss.png: the training loss by timestep band and the validation errors in mm."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    from SpatialDiffusionCore.files import written_whole

    training = [h for h in history if h["kind"] == "training"]
    validation = [h for h in history if h["kind"] == "validation"]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4))
    steps = [h["step"] for h in training]
    left.plot(steps, [h["loss"] for h in training], color="black", linewidth=2, label="all")
    for index in range(len(training[0]["loss_by_band"]) if training else 0):
        values = [h["loss_by_band"][index] for h in training]
        left.plot(steps, [float("nan") if v is None else v for v in values], linewidth=1,
                  label=f"band {index + 1}")
    left.set(xlabel="step", ylabel="training loss", yscale="log")
    steps = [h["step"] for h in validation]
    # Runs on several grids have figures of each.
    grids = [None] if not validation or "clean" in validation[0] else [
        name for name, value in validation[0].items() if isinstance(value, dict)]
    for grid, marker in zip(grids, "os^vD*"):
        for name, color in (("clean", "tab:blue"), ("corrupted", "tab:red")):
            for key, style in (("median", "-"), ("p95", ":")):
                values = [(h[grid] if grid else h)[name]["registration"][key] for h in validation]
                right.plot(steps, values, style, color=color, marker=marker if grid else "", ms=3,
                           label=f"{f'{grid}, ' if grid else ''}{name}, {key}")
    right.set(xlabel="step", ylabel="registration error, mm", yscale="log")
    for axes, lines in ((left, training), (right, validation)):
        if lines:
            axes.legend(fontsize=8, framealpha=0.5)
    figure.suptitle(title)
    figure.tight_layout()
    with written_whole(path) as temporary:
        figure.savefig(temporary, format="png", dpi=90)
    pyplot.close(figure)


class Reports:
    """The reports of one run (of its first process; on the others every method does nothing)."""

    def __init__(self, run, active, report):
        self.run, self.active, self.report = Path(run), active, report
        self._writer, self._bar = None, None
        self.history = []

    def start(self, step, steps, minutes_limit):
        """Take up the log at a step (what a crashed run logged beyond it is dropped) and show the bar."""
        if not self.active:
            return
        log = self.run / "log.jsonl"
        self.history = read_log(log, step)
        self._attempt("log.jsonl", lambda: log.write_text("".join(json.dumps(h) + "\n" for h in self.history),
                                                          encoding="utf-8"))
        try:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self.run / "tensorboard"), purge_step=step + 1 if step else None)
        except Exception as error:
            self.report(f"no TensorBoard ({type(error).__name__})")
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=steps or None, initial=step, unit="step", dynamic_ncols=True, smoothing=0.05,
                             desc=f"at most {minutes_limit:g} min" if minutes_limit else None)

    def advance(self, loss, samples_per_second):
        """One step more on the bar."""
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {loss:.3f}, {samples_per_second:.1f} samples/s", refresh=False)
            self._bar.update()

    def say(self, text):
        """A line for people, above the bar where there is one."""
        if not self.active:
            return
        if self._bar is not None:
            self._bar.write(text)
        else:
            self.report(text)

    def record(self, kind, step, minutes, values):
        """One line of log.jsonl and its numbers in TensorBoard."""
        if not self.active:
            return
        line = {"kind": kind, "step": step, "minutes": round(minutes, 3), **values}
        self.history.append(line)

        def append():
            with open(self.run / "log.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

        self._attempt("log.jsonl", append)
        if self._writer is not None:
            def scalars():
                for name, value in _flat(values):
                    self._writer.add_scalar(f"{kind}/{name}", value, step)

            if not self._attempt("TensorBoard", scalars):
                self._writer = None

    def pictures(self, step, sheets):
        """PNG sheets ({name: H×W×3 uint8}) into pictures/ and TensorBoard, and loss.png."""
        if not self.active:
            return
        folder = self.run / "pictures"

        def write():
            folder.mkdir(exist_ok=True)
            for name, picture in sheets.items():
                preview.save_png(picture, folder / f"{name}-{step:08d}.png")
                if self._writer is not None:
                    self._writer.add_image(name, picture, step, dataformats="HWC")

        self._attempt("pictures", write)
        self.curve()

    def curve(self):
        """Write loss.png."""
        if self.active and self.history:
            self._attempt("loss.png", lambda: loss_curve(self.history, self.run / "loss.png", self.run.name))

    def close(self):
        """End the bar and flush TensorBoard."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        if self._writer is not None:
            self._attempt("TensorBoard", self._writer.close)

    def _attempt(self, what, action):
        try:
            action()
            return True
        except Exception as error:
            reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
            self.say(f"{what} cannot be written ({reason})")
            return False


def _flat(values, prefix=""):
    """(name/name, number) of nested dictionaries and lists, without what is no number."""
    items = values.items() if isinstance(values, dict) else enumerate(values)
    for name, value in items:
        if isinstance(value, (dict, list)):
            yield from _flat(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield f"{prefix}{name}", value
