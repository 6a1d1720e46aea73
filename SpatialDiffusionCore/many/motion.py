"""Motion of a series: the rigid transform that lays each frame on a reference frame, found in two passes.

First pass: each frame to the reference frame. Second: to the mean of the frames that the first one laid well on each
other, which has less noise than any of them. The space is that of the reference frame, which itself stays where it is.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from ..errors import InputError
from ..options import RegistrationOptions
from ..pipeline.step import Step
from ..registration import OnStep, run_steps
from ..spatial import geometry
from ..spatial.volume import Volume, resample
from .executor import Outcome, WorkerLost, executor, in_order
from .frames import Series, open_series

#: Frames of a task. Fixed, so that sums are the same however many processes there are.
CHUNK = 16

#: Frames that the reference frame is chosen from, and those averaged for the second pass, spread over the series.
#: The mean of 12 has less than a third of a frame's noise; more would cost more than they bring.
CANDIDATES, AVERAGED = 15, 12

#: Below this similarity of intensities frames are compared by self-similarity instead: frames of a BOLD series have
#: 0.97 and more, T1, T2 and FLAIR of one head 0.1 to 0.6.
SAME_CONTRAST = 0.8

#: A frame is doubtful where its estimated error is beyond this part of the coarsest voxel, …
IMPRECISE = 0.5
#: … where less of the tissue than this meets, …
OVERLAP = 0.6
#: … where its unlikeness to the mean is so many times that of the median frame (chosen), …
UNLIKE = 4.0
#: … or, of another contrast, where it is less like the mean in self-similarity: T1 and T2 of one head on its FLAIR have
#: 0.66 to 0.74, the FLAIR of another person 0.49, noise 0.00.
UNLIKE_AT_ALL = 0.55

#: Turns (degrees) that a doubtful frame is begun from anew, about each axis. Chosen.
TURNS = (-20.0, -8.0, 8.0, 20.0)

#: Framewise displacement takes rotations as arcs on a sphere of this radius (mm), about a head's
#: (Power et al., NeuroImage 59:2142, 2012); of other sizes than these (twice the RMS radius, mm) on their own.
HEAD_RADIUS, HEADS = 50.0, (80.0, 220.0)


@dataclass
class SeriesRegistration:
    """The motion of a series.

    matrices: N×4×4 float64, each **frame → reference** points in RAS mm; the reference frame's is the identity.
    similarity, overlap (N): correlation with the mean over the tissue, and the share of tissue that meets, 0…1.
    precision (N): random error, mm RMS over the tissue, estimated. doubts: {frame: why it should be looked at}. center:
    RAS mm, what rotations are about; radius: mm, of the sphere for framewise displacement.
    """

    series: Series
    reference: int
    transform: str
    matrices: np.ndarray
    similarity: np.ndarray
    overlap: np.ndarray
    precision: np.ndarray
    center: np.ndarray
    radius: float
    doubts: dict = field(default_factory=dict)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences about what the files' headers leave open or contradict."""
        return self.series.warnings

    @property
    def parameters(self) -> np.ndarray:
        """N×6: translation of the center (mm, RAS) and rotations about x, y and z (radians, applied in that order)."""
        rows = []
        for matrix in self.matrices:
            parts = geometry.decompose(matrix, self.center)
            rows.append([*parts.translation_mm, *np.radians(parts.rotations_deg)])
        return np.array(rows)

    @property
    def framewise_displacement(self) -> np.ndarray:
        """N: |changes of translation| + radius · |changes of rotation| from the frame before, mm; NaN for the first."""
        change = np.abs(np.diff(self.parameters, axis=0))
        return np.concatenate([[np.nan], change[:, :3].sum(1) + self.radius * change[:, 3:].sum(1)])

    def corrected(self, index: int, interpolation: str = "cubic") -> np.ndarray:
        """Frame ``index`` on the reference frame's voxels (float32), interpolated once; the reference as it is."""
        return corrected(self.series, index, self.matrices[index], interpolation)


def corrected(
    series: Series, index: int, matrix: np.ndarray, interpolation: str = "cubic", whole_voxels: bool = True
) -> np.ndarray:
    """A frame laid on the reference by ``matrix`` (4×4, frame → reference, RAS mm), float32; see ``resample``."""
    volume = series.volume(index)
    if np.array_equal(matrix, np.eye(4)):
        return volume.data
    if not np.isfinite(volume.data).all():
        volume = type(volume)(np.nan_to_num(volume.data, posinf=0.0, neginf=0.0), volume.voxel_to_ras, volume.name)
    return resample(volume, volume, matrix, interpolation, whole_voxels=whole_voxels).data


@dataclass(frozen=True)
class _Task:
    """Frames to lay on a reference array, from starts (N×4×4, reference → frame, series frame)."""

    series: Series
    frames: tuple
    reference: np.ndarray
    mask: np.ndarray | None
    size: float
    kind: str
    seed: int
    starts: np.ndarray | None = None
    neighbors: np.ndarray | None = None


@lru_cache(maxsize=2)
def _reference_frame(content: bytes, shape: tuple, mask: bytes | None, spacing: tuple, size: float, seed: int):
    from ..alignment.series_frames import Frame, layout

    values = np.frombuffer(content, np.float32).reshape(shape)
    tissue = None if mask is None else np.frombuffer(mask, np.uint8).reshape(shape)
    return Frame(values, layout(shape, spacing, size), seed=seed, tissue=tissue)


def _align_chunk(task: _Task) -> list:
    """[(transform, similarity, overlap, precision, alike)] of a task's frames; one thread, so sums are the same."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [_align_frame(task, place) for place in range(len(task.frames))]
    finally:
        torch.set_num_threads(threads)


def _align_frame(task: _Task, place: int) -> tuple:
    from ..alignment import series_frames

    spacing = tuple(float(v) for v in geometry.spacing(task.series.voxel_to_ras))
    mask = None if task.mask is None else task.mask.tobytes()
    reference = _reference_frame(
        task.reference.tobytes(), task.series.shape, mask, spacing, float(task.size), task.seed
    )
    frame = series_frames.Frame(
        task.series.frame(task.frames[place]), reference.layout, seed=task.seed, tissue=task.mask
    )
    if frame.empty:
        return np.eye(4), 0.0, 0.0, np.inf, True
    last = len(reference.layout.levels) - 1
    known = task.starts is not None
    start = np.eye(4)[None] if task.starts is None else task.starts[place : place + 1]
    levels = range(last + 1) if task.neighbors is not None else (last,) if known else range(last)
    if task.neighbors is not None:
        start = np.concatenate([start, task.neighbors[place], _turned(reference)])
    answers = []
    for alike in (True, False):
        found = series_frames.align(reference, frame, start, kind=task.kind, alike=alike, levels=levels)
        answers.append((*found, alike))
        if found[1] >= SAME_CONTRAST:
            break
    # Where intensities tell little, self-similarity is the better judge.
    matrix, similarity, overlap, alike = answers[-1]
    error = series_frames.precision(reference, frame, matrix, kind=task.kind, alike=alike) if known else np.nan
    return matrix, similarity, overlap, error, alike


def _turned(reference) -> np.ndarray:
    """Starts turned about the middle of the tissue."""
    center = reference.side(0).points.cpu().double().numpy().mean(0)
    turns = [
        geometry.about(geometry.rotation_about(axis, np.radians(angle)), center)
        for axis in np.eye(3)
        for angle in TURNS
    ]
    return np.array(turns)


def series_steps(
    series,
    *,
    reference: int | None = None,
    mask: Volume | None = None,
    jobs: None | int | str = None,
    scratch=None,
    **options: Any,
) -> Generator[Step, None, SeriesRegistration]:
    """The motion of a series step by step: yields a Step after each chunk of frames, returns the SeriesRegistration.

    Arguments as in ``register_series``. All input is checked before the first step.
    """
    checked = _options(options)
    series = open_series(series, scratch)
    tissue = check(series, reference, mask)
    if jobs is not None:
        series = series.on_disk(scratch)
    found = _Motion(series, executor(jobs), checked.transform, checked.seed, tissue)
    if reference is None:
        reference = found.best_reference()
    values = np.ascontiguousarray(np.nan_to_num(series.frame(reference), posinf=0.0, neginf=0.0))
    found.measure(values)
    total = 2 * series.count + 1
    first = yield from found.passed(values, None, total, 0)
    mean = found.mean(values, first)
    yield Step(series.count + 1, total, "Averaging", np.eye(4))
    second = yield from found.passed(mean, np.array([one[0] for one in first]), total, series.count + 1)
    doubts = found.doubts(second)
    if doubts:
        second = found.again(mean, second, sorted(doubts))
        doubts = found.doubts(second)
    return found.result(reference, second, doubts)


def register_series(
    series,
    *,
    on_step: OnStep = None,
    reference: int | None = None,
    mask: Volume | None = None,
    jobs: None | int | str = None,
    scratch=None,
    **options: Any,
) -> SeriesRegistration:
    """Find the motion of a series: the transform that lays each frame on the reference frame.

    - series: a path (4D NIfTI, NRRD, MetaImage; a folder of volumes or DICOM files), a list of Volumes, or a Series.
    - reference: the frame (from 0) in whose space all is laid; default: of 15 frames over the series the one most like
      the others.
    - mask: Volume on the series' voxels, not 0 where the motion matters (default: the tissue).
    - jobs: processes of one thread each, or the address of a Dask scheduler; default: this process.
    - scratch: folder where a compressed series is unpacked (default: the system's).
    - on_step: called with a Step after every few frames; it may raise, or return False, to stop.
    - transform ("rigid", the default here, "similarity", or "affine" for eddy currents) and seed, as in
      RegistrationOptions; its other fields mean nothing for frames that lie nearly on each other, and are refused.

    The answer does not depend on ``jobs``. Raises InputError (one sentence) before any work where the input cannot be
    used, and Cancelled where ``on_step`` asked to stop.
    """
    steps = series_steps(series, reference=reference, mask=mask, jobs=jobs, scratch=scratch, **options)
    return run_steps(steps, on_step)


def _options(options: dict) -> RegistrationOptions:
    """Checked options; raises InputError for those that a series has no use for."""
    unknown = sorted(set(options) - {"transform", "seed"})
    if unknown:
        raise InputError(
            f"A series takes the options transform and seed, but not {', '.join(unknown)}; leave that out."
        )
    return RegistrationOptions(**{"transform": "rigid", **options})


def check(series: Series, reference: int | None, mask: Volume | None) -> np.ndarray | None:
    """The mask as an array, or None; raises InputError where it, or the reference, does not belong to the series."""
    if reference is not None and not 0 <= reference < series.count:
        raise InputError(f"There is no frame {reference}; {series.name} holds frames 0 to {series.count - 1}.")
    if mask is None:
        return None
    if tuple(mask.shape) != tuple(series.shape):
        raise InputError(
            f"The mask {mask.name} has {'×'.join(map(str, mask.shape))} voxels and the frames "
            f"{'×'.join(map(str, series.shape))}; give a mask on the voxels of the series."
        )
    inside = np.ascontiguousarray(np.nan_to_num(mask.data) != 0, np.uint8)
    if not inside.any():
        raise InputError(f"The mask {mask.name} is empty; it must not be 0 where the motion matters.")
    return inside


def _doubt(answer: tuple, usual: float, voxel: float) -> str:
    """Why a frame's (transform, similarity, overlap, precision, alike) is doubtful; empty where it is not.

    usual: the median similarity of frames with the reference's contrast; voxel: the coarsest spacing, mm.
    """
    _, score, overlap, error, alike = answer
    if overlap == 0.0:
        return "it is empty"
    if alike and 1 - score > UNLIKE * max(1 - usual, 0.01) or not alike and score < UNLIKE_AT_ALL:
        return f"it is unlike the others (similarity {score:.2f}, usual {usual:.2f})"
    if overlap < OVERLAP:
        return f"only {100 * overlap:.0f} % of the tissue is in view"
    return f"its position is uncertain (±{error:.2g} mm)" if error > IMPRECISE * voxel else ""


class _Motion:
    """One series under way."""

    def __init__(self, series: Series, spread, kind: str, seed: int, mask):
        self.series, self.spread, self.kind, self.seed, self.mask = series, spread, kind, seed, mask
        self.size, self.center = 0.0, np.zeros(3)

    def best_reference(self) -> int:
        """Of some frames over the series the one that is most like the others (median correlation, as they lie)."""
        from ..alignment.series_frames import Frame, layout, similarity_at_rest

        count = self.series.count
        chosen = np.unique(np.linspace(0, count - 1, min(CANDIDATES, count)).round().astype(int))
        spacing = geometry.spacing(self.series.voxel_to_ras)
        common = layout(self.series.shape, spacing, float((spacing * self.series.shape).max()) / 2)
        frames = [Frame(self.series.frame(int(index)), common) for index in chosen]
        if all(frame.empty for frame in frames):
            raise InputError(f"The frames of {self.series.name} are constant; there is nothing to align.")
        chosen = chosen[[not frame.empty for frame in frames]]
        median = np.median(similarity_at_rest([frame for frame in frames if not frame.empty]), axis=1)
        # Of frames that are as good the middle one: in a series that drifts it is nearest to all.
        good = chosen[median >= median.max() - 0.01]
        return int(good[np.argmin(np.abs(good - (count - 1) / 2))])

    def measure(self, values: np.ndarray) -> None:
        """Size and middle of the tissue, from the reference frame."""
        from ..alignment.series_frames import tissue_of

        if values.max() == values.min():
            raise InputError(f"The reference frame of {self.series.name} is constant; choose another one.")
        center, covariance = tissue_of(values, geometry.spacing(self.series.voxel_to_ras), self.mask)
        self.size = 2 * float(np.sqrt(np.trace(covariance)))
        self.center = geometry.transform_points(self.to_ras, center[None])[0]

    @property
    def to_ras(self) -> np.ndarray:
        """Series frame (mm along the axes from the middle of the grid) → RAS, 4×4."""
        spacing = geometry.spacing(self.series.voxel_to_ras)
        middle = (np.array(self.series.shape) - 1) / 2
        return self.series.voxel_to_ras @ geometry.from_parts(np.diag(1 / spacing), middle)

    def _task(self, frames, reference, **more) -> _Task:
        values = np.ascontiguousarray(reference, np.float32)
        return _Task(self.series, tuple(frames), values, self.mask, self.size, self.kind, self.seed, **more)

    def passed(self, reference: np.ndarray, starts, total: int, done: int):
        """One pass over all frames: yields Steps, returns [(transform, similarity, overlap, precision, alike)]."""
        count = self.series.count
        chunks = [range(i, min(i + CHUNK, count)) for i in range(0, count, CHUNK)]

        def task(chunk: range) -> _Task:
            return self._task(chunk, reference, starts=None if starts is None else starts[chunk.start : chunk.stop])

        answers: list[tuple] = []
        outcomes = self.spread.run(_align_chunk, (task(chunk) for chunk in chunks))
        try:
            for outcome in in_order(outcomes):
                answers += self._value(outcome, lambda index: task(chunks[index]))
                stage = "Frames, first pass" if starts is None else "Frames, second pass"
                yield Step(done + len(answers), total, stage, self.in_ras(answers[-1][0]))
        finally:
            outcomes.close()
        return answers

    def _value(self, outcome: Outcome, task: Callable[[int], _Task]) -> list:
        """What became of a task; one whose process was killed is done once more, by another."""
        if isinstance(outcome.error, WorkerLost):
            (outcome,) = self.spread.run(_align_chunk, [task(outcome.index)])
        if isinstance(outcome.error, WorkerLost):
            raise InputError(f"Frames of {self.series.name} were lost twice: {outcome.error}")
        if outcome.error is not None:
            raise outcome.error
        return outcome.value

    def mean(self, values: np.ndarray, answers: list) -> np.ndarray:
        """The mean of some frames as the first pass lays them, without those that are unlike; else the reference."""
        alike = np.array([one[1] if one[4] else 0.0 for one in answers])
        good = np.flatnonzero((alike >= SAME_CONTRAST) & (1 - alike <= UNLIKE * max(1 - np.median(alike), 0.01)))
        if len(good) < 2:
            return values
        total = np.zeros(values.shape)
        chosen = good[np.unique(np.linspace(0, len(good) - 1, min(AVERAGED, len(good))).round().astype(int))]
        for index in chosen:
            # Cubic: a linear mean is smoother than the frames, and the reference frame ends 0.05 mm beside it.
            total += corrected(self.series, int(index), self.in_ras(answers[index][0]), whole_voxels=False)
        return (total / len(chosen)).astype(np.float32)

    def in_ras(self, found: np.ndarray) -> np.ndarray:
        """Frame → reference in RAS of a transform reference → frame in the series frame."""
        return self.to_ras @ geometry.inverse(found) @ geometry.inverse(self.to_ras)

    def doubts(self, answers: list) -> dict:
        """{frame: why} of those whose answer should be looked at."""
        scores = [one[1] for one in answers if one[4] and one[2] > 0]
        usual = float(np.median(scores)) if scores else 1.0
        voxel = float(geometry.spacing(self.series.voxel_to_ras).max())
        found = ((index, _doubt(answer, usual, voxel)) for index, answer in enumerate(answers))
        return {index: why for index, why in found if why}

    def again(self, mean: np.ndarray, answers: list, doubtful: list) -> list:
        """The same, with doubtful frames begun anew from their neighbors' answers and from turned starts."""
        answers = list(answers)
        good = [index for index in range(len(answers)) if index not in set(doubtful)]
        neighbors = []
        for index in doubtful:
            near = sorted(good, key=lambda one: abs(one - index))[:2]
            near = (near + [index, index])[:2]
            neighbors.append([answers[one][0] for one in near])
        task = self._task(
            doubtful,
            mean,
            starts=np.array([answers[index][0] for index in doubtful]),
            neighbors=np.array(neighbors),
        )
        for outcome in self.spread.run(_align_chunk, [task]):
            for index, new in zip(doubtful, self._value(outcome, lambda _: task)):
                if (new[4], new[1]) >= (answers[index][4], answers[index][1]):
                    answers[index] = new
        return answers

    def result(self, reference: int, answers: list, doubts: dict) -> SeriesRegistration:
        """Everything in RAS, relative to the reference frame."""
        # What the reference frame itself seems to be off the mean is off for all.
        own = answers[reference][0] if answers[reference][1] > 0 else np.eye(4)
        frame_to_ras, back = self.to_ras, geometry.inverse(self.to_ras)
        matrices = np.array([frame_to_ras @ own @ geometry.inverse(one[0]) @ back for one in answers])
        matrices[reference] = np.eye(4)
        if self.kind == "rigid":
            matrices = np.array([geometry.project(one, "rigid", self.center, np.eye(3)) for one in matrices])
        heads = HEADS[0] <= self.size <= HEADS[1]
        return SeriesRegistration(
            self.series,
            int(reference),
            self.kind,
            matrices,
            similarity=np.array([one[1] for one in answers], float),
            overlap=np.array([one[2] for one in answers], float),
            precision=np.array([one[3] for one in answers], float),
            center=self.center,
            radius=HEAD_RADIUS if heads else self.size / 2,
            doubts=doubts,
        )


def processes_for(series: Series, seconds_a_frame: float = 0.05) -> int | None:
    """How many processes are worth their start: None for short series."""
    voxels = float(np.prod(series.shape)) / (80 * 80 * 35)
    wanted = int(series.count * seconds_a_frame * max(1.0, voxels) / 15)
    most = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    jobs = min(wanted, most)
    return jobs if jobs > 1 else None
