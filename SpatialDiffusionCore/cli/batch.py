"""The moving volumes of one command, registered one after the other: progress, outputs, words, the table at the end."""

from __future__ import annotations

import argparse
import csv
import os
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import InputError
from ..failure import sentence
from ..files import written_whole
from ..machine import threads
from ..report import COLUMNS, failed_row, row
from ..spatial import geometry
from .commands import commands_for
from .outputs import described, is_folder, write_outputs
from .parser import PROGRAM
from .progress import Progress

#: Written beside the outputs of several volumes.
TABLE = "registrations.csv"

#: Exit status where an answer is no better than --fail-on says.
NOT_GOOD_ENOUGH = 3


class Loader:
    """Reads the moving volumes when their turn comes, and keeps the last one."""

    def __init__(self, paths: Sequence[str]):
        self.paths = paths
        self._last: tuple[int, Any] | None = None

    def __call__(self, index: int) -> Any:
        """Moving volume ``index`` (from 0)."""
        from ..inputs import as_volume

        if self._last is None or self._last[0] != index:
            self._last = index, as_volume(self.paths[index], "moving")
        return self._last[1]


class Batch:
    """One run of ``register``."""

    def __init__(
        self, arguments: argparse.Namespace, movings: Sequence[str], plans: list[dict], loader: Loader, fixed: Any
    ):
        self.arguments, self.movings, self.plans = arguments, movings, plans
        self.loader, self.fixed = loader, fixed
        self.quiet = bool(arguments.quiet)
        self.progress = Progress(self.quiet or not sys.stderr.isatty())
        self.rows: list[dict] = []
        self.words: Counter = Counter()
        self.done = self.count = 0

    def run(self, options: dict[str, Any]) -> int:
        """Register all; returns the exit status."""
        import torch

        from ..registration import register_many, share_of_rank

        chosen = self.arguments.threads or threads()
        if chosen:
            torch.set_num_threads(chosen)
        self.count = len(share_of_rank(range(len(self.movings))))
        self._announce_next()
        loaders = [lambda index=index: self.loader(index) for index in range(len(self.movings))]
        register_many(loaders, self.fixed, on_step=self.progress, on_result=self._take, **options)
        if len(self.movings) > 1:
            self._finish()
        return self._status()

    def _take(self, index: int, result: Any) -> None:
        """Write what was asked for of one result, and say what it is."""
        self.progress.close()
        self.done += 1
        self._announce_next()
        if isinstance(result, Exception):
            if len(self.movings) == 1:
                raise result
            self._failed(index, sentence(result, f"registering {self.movings[index]}"))
            return
        plan = self.plans[index]
        failures = write_outputs(result, plan, self.loader(index), self.fixed, self.arguments.format)
        if failures and len(self.movings) == 1 and len(failures) == 1 and not plan:
            raise InputError(failures[0])
        for words in failures:
            _complain(words)
        self.words[result.quality.confidence] += 1
        self.words["not written"] += bool(failures)
        self.rows.append(row(result.report(), plan.get("output", "")))
        for warning in result.quality.warnings:
            _complain(f"warning: {self.movings[index]}: {warning}")
        if not self.quiet:
            self._summarize(index, result, plan)

    def _announce_next(self) -> None:
        self.progress.place = f"{self.done + 1} of {self.count}: " if self.count > 1 else ""

    def _failed(self, index: int, words: str) -> None:
        _complain(words)
        self.words["failed"] += 1
        self.rows.append(failed_row(os.path.basename(self.movings[index]), self.fixed.name, words))

    def _summarize(self, index: int, result: Any, plan: dict) -> None:
        place = f"[{self.done} of {self.count}] " if self.count > 1 else ""
        quality = result.quality
        print(f"{place}{result.moving} → {result.fixed}: {result.decomposition.text()}")
        print(f"  confidence {quality.confidence}: {quality.why()}")
        print(
            f"  similarity {quality.similarity_before:.2f} → {quality.similarity_after:.2f}; taken for "
            f"{result.kinds()}; {result.seconds:.1f} s, model {result.model}"
        )
        for option, path in plan.items():
            print(f"  wrote {described(path, self.arguments.format if option in ('output', 'inverse') else None)}")
        if self.arguments.show_commands and "output" in plan:
            for line in commands_for(plan["output"], self.movings[index], self.arguments.fixed, self.arguments.format):
                print(f"  {line}")

    def _finish(self) -> None:
        """The table of all, the contact sheet, and the count of each word."""
        folder = next(
            (path for name in ("output", "report", "moved", "picture", "inverse") if (path := self._folder(name))), None
        )
        written = []
        if folder:
            written.append(_write_table(self.rows, os.path.join(folder, _of_this_rank(TABLE))))
        pictures = [plan["picture"] for plan in self.plans if os.path.isfile(plan.get("picture", ""))]
        if self._folder("picture") and pictures:
            from ..picture import contact_sheets

            target = os.path.join(self.arguments.picture, _of_this_rank("contact_sheet.png"))
            written += contact_sheets(pictures, target)
        tally = ", ".join(f"{count} {word}" for word, count in self._in_order() if count)
        if not self.quiet:
            print(f"{self.count} volumes: {tally}")
            for path in written:
                print(f"  wrote {path}")

    def _folder(self, option: str) -> str | None:
        path = getattr(self.arguments, option)
        return path if path and is_folder(path) else None

    def _in_order(self) -> list[tuple[str, int]]:
        return [(word, self.words[word]) for word in ("good", "fair", "poor", "failed", "not written")]

    def _status(self) -> int:
        if self.words["failed"] or self.words["not written"]:
            return 1
        limit = self.arguments.fail_on
        refused = {"poor": ("poor",), "fair": ("poor", "fair")}.get(limit, ())
        return NOT_GOOD_ENOUGH if any(self.words[word] for word in refused) else 0


def _complain(words: str) -> None:
    print(f"{PROGRAM}: {words}", file=sys.stderr)


def _of_this_rank(name: str) -> str:
    """The name with the process's number in it under torchrun, so that processes do not overwrite each other's."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return name
    base, ending = os.path.splitext(name)
    return f"{base}_{os.environ.get('RANK', 0)}{ending}"


def _write_table(rows: list[dict], path: str) -> str:
    with written_whole(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, COLUMNS)
        table.writeheader()
        table.writerows(rows)
    return path


def warn_if_inverted(init: np.ndarray, moving: Any, fixed: Any, path: str) -> None:
    """Say so where an initial transform takes the tissue away from the fixed one, and its inverse takes it there.

    Centers of the brighter half of the voxels are compared; the transform is taken as it is.
    """
    centers = [_center(volume) for volume in (moving, fixed)]
    size = float(np.linalg.norm(np.array(fixed.shape) * fixed.spacing))
    away, back = (
        float(np.linalg.norm(geometry.transform_points(matrix, centers[0][None])[0] - centers[1]))
        for matrix in (init, np.linalg.inv(init))
    )
    if away > size / 8 and back < away / 3:
        _complain(
            f"warning: {path} looks inverted: it leaves the volumes' centers {away:.0f} mm apart, its inverse "
            f"{back:.0f} mm; if it is, invert it with: {PROGRAM} convert {path} inverse.tfm --invert"
        )


def _center(volume: Any) -> np.ndarray:
    """Center (RAS, mm) of the voxels above the middle of the range of what is not extreme."""
    step = [max(1, n // 48) for n in volume.shape]
    data = np.nan_to_num(np.asarray(volume.data[:: step[0], :: step[1], :: step[2]], float))
    low, high = np.percentile(data, [2, 98])
    inside = np.argwhere(data > (low + high) / 2) * step
    points = inside if len(inside) else np.array([np.array(volume.shape) / 2])
    return geometry.transform_points(volume.voxel_to_ras, points).mean(0)
