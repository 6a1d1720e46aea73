"""The moving volumes of one command, registered one after the other: progress, outputs, words, the table at the end."""

from __future__ import annotations

import argparse
import csv
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ..errors import InputError
from ..failure import sentence
from ..files import written_whole
from ..machine import threads
from ..many.executor import Executor, Outcome, WorkerLost
from ..report import COLUMNS, failed_row
from ..spatial import geometry
from .commands import commands_for
from .jobs import Done, Job, done_before, work
from .outputs import described, is_folder
from .parser import PROGRAM
from .progress import Progress

#: Written beside the outputs of several volumes.
TABLE = "registrations.csv"

#: Exit status where an answer is no better than --fail-on says.
NOT_GOOD_ENOUGH = 3


class Batch:
    """One run of ``register``: its jobs, and what they are handed to (None: this process)."""

    def __init__(self, arguments: argparse.Namespace, jobs: Sequence[Job], spread: Executor | None = None):
        self.arguments, self.jobs, self.spread = arguments, list(jobs), spread
        self.quiet = bool(arguments.quiet)
        self.progress = Progress(self.quiet or not sys.stderr.isatty())
        self.rows: dict[int, dict] = {}
        self.words: Counter = Counter()
        self.done = self.count = self.before = 0
        self.started = time.monotonic()

    def run(self) -> int:
        """Register all; returns the exit status."""
        import torch

        from ..registration import share_of_rank

        chosen = self.arguments.threads or threads()
        if chosen:
            torch.set_num_threads(chosen)
        mine = share_of_rank(range(len(self.jobs)))
        self.count = len(mine)
        todo = [index for index in mine if not self._take_up(index)]
        self._announce_next()
        for outcome in self._outcomes([self.jobs[index] for index in todo]):
            self._take(todo[outcome.index], outcome)
        if self.arguments.review and (self.rows or len(self.jobs) > 1):
            self._write_page()
        if len(self.jobs) > 1:
            self._finish()
        return self._status()

    def _outcomes(self, jobs: list[Job]) -> Iterator[Outcome]:
        """The outcome of each job: by other processes, or here with each step shown."""
        if self.spread is not None:
            yield from self.spread.run(work, [job.absolute() for job in jobs])
            return
        for index, job in enumerate(jobs):
            try:
                yield Outcome(index, work(job, self.progress))
            except Exception as error:
                if len(self.jobs) == 1:
                    raise
                yield Outcome(index, error=error)

    def _take_up(self, index: int) -> bool:
        """Whether a volume was done before; it is counted then."""
        known = done_before(self.jobs[index])
        if known is None:
            return False
        self.done, self.before = self.done + 1, self.before + 1
        self._count(index, known)
        return True

    def _take(self, index: int, outcome: Outcome) -> None:
        """Say what became of one volume."""
        self.progress.close()
        self.done += 1
        self._announce_next()
        if outcome.error is not None:
            if len(self.jobs) == 1:
                raise outcome.error
            self._failed(index, _sentence(outcome.error, self.jobs[index]))
            return
        done: Done = self.jobs[index].taken(outcome.value)
        if done.failures and len(self.jobs) == 1 and len(done.failures) == 1 and not done.plan:
            raise InputError(done.failures[0])
        for words in done.failures:
            _complain(words)
        self.words["not written"] += bool(done.failures)
        self._count(index, done)
        if not self.quiet:
            self._summarize(index, done)

    def _count(self, index: int, done: Done) -> None:
        self.words[done.word] += 1
        self.rows[index] = done.row
        for warning in done.warnings:
            _complain(f"warning: {self.jobs[index].moving}: {warning}")

    def _announce_next(self) -> None:
        self.progress.place = f"{min(self.done + 1, self.count)} of {self.count}: " if self.count > 1 else ""

    def _failed(self, index: int, words: str) -> None:
        _complain(words)
        self.words["failed"] += 1
        job = self.jobs[index]
        fixed = os.path.basename(job.common.fixed)
        self.rows[index] = failed_row(os.path.basename(job.moving), fixed, words)
        if self.arguments.review:
            from ..review.pages import add_failure

            add_failure(self.arguments.review, job.name, os.path.basename(job.moving), fixed, words)

    def _summarize(self, index: int, done: Done) -> None:
        place = f"[{self.done} of {self.count}{self._time_left()}] " if self.count > 1 else ""
        result, job = done.result, self.jobs[index]
        quality = result.quality
        print(f"{place}{result.moving} → {result.fixed}: {result.decomposition.text()}")
        print(f"  confidence {quality.confidence}: {quality.why()}")
        print(
            f"  similarity {quality.similarity_before:.2f} → {quality.similarity_after:.2f}; taken for "
            f"{result.kinds()}; {result.seconds:.1f} s, model {result.model}"
        )
        for option, path in done.plan.items():
            print(f"  wrote {described(path, self.arguments.format if option in ('output', 'inverse') else None)}")
        if self.arguments.show_commands and "output" in done.plan:
            for line in commands_for(done.plan["output"], job.moving, self.arguments.fixed, self.arguments.format):
                print(f"  {line}")

    def _time_left(self) -> str:
        new, left = self.done - self.before, self.count - self.done
        seconds = (time.monotonic() - self.started) / max(new, 1) * left
        if new < 2 or left < 2:
            return ""
        return f", about {seconds / 60:.0f} min left" if seconds > 90 else f", about {seconds:.0f} s left"

    def _write_page(self) -> None:
        from ..review.pages import finish

        page = finish(self.arguments.review, f"Registrations to {os.path.basename(self.arguments.fixed)}")
        if not self.quiet:
            print(f"  wrote {page}")

    def _finish(self) -> None:
        """The table of all, the contact sheet, and the count of each word."""
        folder = next(
            (path for name in ("output", "report", "moved", "picture", "inverse") if (path := self._folder(name))), None
        )
        written = []
        if folder:
            written.append(
                _write_table(
                    [self.rows[index] for index in sorted(self.rows)], os.path.join(folder, _of_this_rank(TABLE))
                )
            )
        drawn = [job.plan.get("picture", "") for job in self.jobs]
        pictures = [path for path in drawn if os.path.isfile(path)]
        if self._folder("picture") and pictures:
            from ..picture import contact_sheets

            target = os.path.join(self.arguments.picture, _of_this_rank("contact_sheet.png"))
            written += contact_sheets(pictures, target)
        tally = ", ".join(f"{count} {word}" for word, count in self._in_order() if count)
        if not self.quiet:
            again = f"; {self.before} of them were done before" if self.before else ""
            print(f"{self.count} volumes: {tally}{again}")
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


def _sentence(error: Exception, job: Job) -> str:
    """What a person is told of a volume that failed."""
    return f"{job.moving}: {error}" if isinstance(error, WorkerLost) else sentence(error, f"registering {job.moving}")


def _complain(words: str) -> None:
    print(f"{PROGRAM}: {words}", file=sys.stderr)


def _of_this_rank(name: str) -> str:
    """The name with the process's number in it under torchrun, so that processes do not overwrite each other's."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return name
    base, ending = os.path.splitext(name)
    return f"{base}_{os.environ.get('RANK', 0)}{ending}"


def _write_table(rows: list[dict], path: str) -> str:
    kept = "backslashreplace"  # bytes of a name that are no Unicode
    with written_whole(path) as temporary, open(temporary, "w", newline="", encoding="utf-8", errors=kept) as file:
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
