"""Groups: one unbiased space for many volumes, from registrations of pairs that check each other.

All pairs of few volumes, or a connected choice of many, are registered; the transforms that they agree on are found
robustly (averaging.py), wrong pairs by their cycle error. Volumes are put in the order of their content first, so the
answer does not depend on the order in which they are named.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..failure import sentence
from ..inputs import as_volume
from ..modality import AUTO
from ..modelfile import catalog
from ..options import RegistrationOptions
from ..pipeline.prepared_input import PreparedInput
from ..pipeline.step import Step
from ..registration import OnStep, register, run_steps
from ..spatial import geometry
from ..spatial.file_names import numbered, unique_names
from ..spatial.sampling import prepare
from ..spatial.volume import Grid, Volume, resample, validate
from ..spatial.volume_file import load, stem
from . import averaging
from .executor import WorkerLost, executor

#: How far a pair is believed before it is compared with others, by its word, where it has no probability. Chosen.
TRUST = {"good": 1.0, "fair": 0.5, "poor": 0.1}

#: Tissue of one kind differs in size by less than this factor: a child's brain and a head with its neck by 1.8. Chosen.
SIZES = 3.0

#: Around the tissue of all volumes the mean image shows this much more, as a part of its extent.
MARGIN = 0.1

#: A Volume, or what as_volume makes one of; files are read when they are needed.
Source = Any


@dataclass(frozen=True)
class PairAnswer:
    """What the registration of a pair found: 4×4 moving → fixed (RAS mm), the word, and P(right) where it is known."""

    matrix: np.ndarray
    confidence: str
    probability: float | None = None

    def to_dict(self) -> dict:
        """JSON-ready."""
        return {"matrix": self.matrix.tolist(), "confidence": self.confidence, "probability": self.probability}

    @classmethod
    def from_dict(cls, row: dict) -> PairAnswer:
        """The opposite; raises an error where something is missing."""
        return cls(geometry.as_affine(row["matrix"]), row["confidence"], row["probability"])


@dataclass
class GroupRegistration:
    """Many volumes in one space.

    names: of the volumes, no two alike; stems: the same for names of files. matrices: N×4×4 float64, volume → common
    space, RAS mm, the mean of whose logarithms is 0. cycle_error: N, mm, by how much going around three volumes misses
    the start (median over the triangles that a volume is in; NaN of two volumes). pairs: {(i, j): PairAnswer}, i → j;
    disagreement: {pair: mm by which it misses the common answer}; dropped: pairs that contradict the others; failed:
    {pair: why it was not registered}. doubts: {volume: why}. warnings: sentences about headers.
    """

    names: list
    transform: str
    matrices: np.ndarray
    cycle_error: np.ndarray
    pairs: dict
    disagreement: dict
    dropped: tuple
    grid: Grid
    doubts: dict = field(default_factory=dict)
    sources: list = field(default_factory=list, repr=False)
    stems: list = field(default_factory=list)
    warnings: tuple[str, ...] = ()
    failed: dict = field(default_factory=dict)

    def between(self, i: int, j: int) -> np.ndarray:
        """4×4, volume i's points → volume j's, by way of the common space."""
        return geometry.inverse(self.matrices[j]) @ self.matrices[i]

    def volume(self, index: int) -> Volume:
        """Volume ``index`` as it was given."""
        return _volume(self.sources[index])

    def moved(self, index: int, interpolation: str = "linear") -> Volume:
        """Volume ``index`` on the grid of the common space."""
        return resample(self.volume(index), self.grid, self.matrices[index], interpolation)

    def mean(self, aligned: bool = True) -> Volume:
        """The mean image in 0…1 on the common grid; not ``aligned``: as the headers lie, for comparison."""
        total, weight = np.zeros(self.grid.shape), np.zeros(self.grid.shape)
        for source, matrix in zip(self.sources, self.matrices):
            volume = _volume(source)
            low, high = prepare(volume).window
            scaled = Volume((np.clip(volume.data, low, high) - low) / (high - low), volume.voxel_to_ras, volume.name)
            where = matrix if aligned else None
            total += resample(scaled, self.grid, where).data
            inside = Volume(np.broadcast_to(np.ones(1, np.float32), volume.shape), volume.voxel_to_ras)
            weight += resample(inside, self.grid, where).data
        return Volume((total / np.maximum(weight, 1.0)).astype(np.float32), self.grid.voxel_to_ras, "mean")


def _volume(source: Source) -> Volume:
    return as_volume(source, "group's")


@lru_cache(maxsize=6)
def _read(path: str, changed: int) -> Volume:
    """A volume of a file; the last few are kept, since each is in several pairs."""
    return load(path)


@dataclass(frozen=True)
class _PairTask:
    moving: Any
    fixed: Any
    options: dict


def _register_pair(task: _PairTask) -> PairAnswer:
    volumes = [
        one if isinstance(one, Volume) else _read(os.fspath(one), _changed(one)) for one in (task.moving, task.fixed)
    ]
    found = register(*volumes, **task.options)
    probability = getattr(found.quality, "probability", None)
    return PairAnswer(found.matrix, found.quality.confidence, probability)


def _changed(path) -> int:
    path = os.fspath(path)
    return os.stat(path if os.path.exists(path) else path.rpartition("@")[0]).st_mtime_ns


@dataclass(frozen=True)
class _Member:
    """What the group keeps of a volume, so that none has to stay in memory."""

    source: Any
    name: str
    digest: str
    cloud: averaging.Cloud
    spacing: float
    corners: np.ndarray
    kind: str
    stem: str
    warnings: tuple[str, ...]


def _names(sources: Sequence[Source]) -> list[tuple[str, str]]:
    """(name, name of files without ending) of each; no two names are alike, nor two stems."""
    if all(isinstance(one, str) for one in sources):
        stems = unique_names(sources)
        names = [os.path.basename(one) for one in sources]
    else:
        names = [os.path.basename(one) if isinstance(one, str) else one.name for one in sources]
        stems = numbered([stem(name) for name in names])
    alike = Counter(name.lower() for name in names)
    return [(name if alike[name.lower()] == 1 else own, own) for name, own in zip(names, stems)]


def _member(source: Source, index: int, modality: str, called: tuple[str, str]) -> _Member:
    """modality: what all show; where it is "auto", what this one shows is recognized."""
    volume = _volume(source)
    validate(volume, f"{index + 1}.")
    ready = PreparedInput(volume, None, "cpu")
    known, kind = ready.prepared, ready.modality if modality == AUTO.key else modality
    content = hashlib.blake2b(np.ascontiguousarray(volume.data).tobytes(), digest_size=16)
    content.update(np.round(volume.voxel_to_ras, 6).tobytes())
    cloud = averaging.Cloud(known.tissue_center, known.tissue_covariance)
    spacing = float(np.prod(volume.spacing) ** (1 / 3))
    corners = _tissue_corners(volume, known.threshold)
    return _Member(source, called[0], content.hexdigest(), cloud, spacing, corners, kind, called[1], volume.warnings)


def _check_alike(members: list) -> None:
    """Raise InputError where a mean of the volumes would mean nothing: two kinds, or sizes that no two bodies have."""
    kinds: dict = {}
    for member in members:
        if member.kind != "any":
            kinds.setdefault(member.kind, member.name)
    if len(kinds) > 1:
        seen = " and ".join(f"{name} shows {catalog.get(kind).label}" for kind, name in sorted(kinds.items()))
        raise InputError(
            f"The group mixes modalities: {seen}; group each kind by itself, or say what all are (modality any)."
        )
    small, large = (choose(members, key=lambda one: one.cloud.size) for choose in (min, max))
    if large.cloud.size > SIZES * small.cloud.size:
        raise InputError(
            f"{large.name} measures {large.cloud.size:.3g} mm and {small.name} {small.cloud.size:.3g}; "
            "volumes of one kind belong in a group."
        )


def _in_order(members: list) -> list[int]:
    """The volumes' numbers by their content. Raises InputError where they do not belong together, or two are one."""
    _check_alike(members)
    order = sorted(range(len(members)), key=lambda index: (members[index].digest, members[index].name))
    for one, other in zip(order, order[1:]):
        if members[one].digest == members[other].digest:
            raise InputError(f"{members[one].name} and {members[other].name} are the same volume; name it once.")
    return order


def _check_connected(answers: dict, problems: dict, count: int) -> None:
    """Raise where so many pairs were lost that the others do not connect all volumes."""
    if not problems or len(averaging.connected(answers, count)) == 1:
        return
    first = next(iter(problems.values()))
    if not isinstance(first, WorkerLost):
        raise first
    total = len(problems) + len(answers)
    raise InputError(f"{len(problems)} of {total} pairs were lost, and the others do not connect all volumes. {first}")


def _tissue_corners(volume: Volume, threshold: float) -> np.ndarray:
    """8×3, RAS mm: corners of the box (along the volume's axes) around what is above a threshold."""
    inside = np.asarray(volume.data) > threshold
    places = [np.flatnonzero(inside.any(axis=tuple(a for a in range(3) if a != axis))) for axis in range(3)]
    ends = np.array([[p[0], p[-1]] if len(p) else [0, n - 1] for p, n in zip(places, volume.shape)])
    corners = np.array([[ends[a, corner[a]] for a in range(3)] for corner in np.ndindex(2, 2, 2)])
    return geometry.transform_points(volume.voxel_to_ras, corners)


def group_steps(
    volumes: Sequence[Source],
    *,
    jobs: None | int | str = None,
    known: Callable[[int, int], PairAnswer | None] | None = None,
    on_pair: Callable[[int, int, PairAnswer], None] | None = None,
    **options: Any,
) -> Generator[Step, None, GroupRegistration]:
    """A group step by step: yields a Step after each pair, returns the GroupRegistration. See ``register_group``.

    known(i, j): an answer that is there already, or None; on_pair(i, j, answer): called for each new one. Both number
    the volumes as they are given.
    """
    checked = RegistrationOptions(**options)
    if checked.init is not None:
        raise InputError("A group has no initial transform; register the pairs one by one where you know it.")
    spread = executor(jobs)
    if len(volumes) < 2:
        raise InputError(f"A group has two volumes at least, got {len(volumes)}.")
    # Files are read when they are needed, maybe by processes that work in another folder.
    sources = [
        os.path.abspath(os.fspath(one)) if isinstance(one, (str, os.PathLike)) else _volume(one) for one in volumes
    ]
    modality, names = str(checked.moving_modality), _names(sources)
    members = [_member(one, index, modality, names[index]) for index, one in enumerate(sources)]
    order = _in_order(members)
    wanted = [(order[i], order[j]) for i, j in averaging.pairs_to_register(len(order))]
    answers = {pair: answer for pair in wanted if known is not None and (answer := known(*pair)) is not None}
    todo = [pair for pair in wanted if pair not in answers]
    tasks = (
        _PairTask(
            members[i].source,
            members[j].source,
            {**options, "moving_modality": members[i].kind, "fixed_modality": members[j].kind},
        )
        for i, j in todo
    )
    outcomes, problems = spread.run(_register_pair, tasks), {}
    try:
        for done, outcome in enumerate(outcomes, start=len(answers) + 1):
            pair = todo[outcome.index]
            if outcome.error is None:
                answers[pair] = outcome.value
                if on_pair is not None:
                    on_pair(pair[0], pair[1], outcome.value)
            elif isinstance(outcome.error, InputError):
                raise outcome.error
            else:
                problems[pair] = outcome.error
            yield Step(done, len(wanted), "Pairs", outcome.value.matrix if outcome.error is None else np.eye(4))
    finally:
        outcomes.close()
    _check_connected(answers, problems, len(members))
    result = _together(members, order, answers, checked.transform)
    result.failed = {pair: _why(error, *(members[index].name for index in pair)) for pair, error in problems.items()}
    return result


def _why(error: Exception, moving: str, fixed: str) -> str:
    """What a person is told of a pair that failed."""
    if isinstance(error, WorkerLost):
        return f"{moving} to {fixed}: {error}"
    return sentence(error, f"registering {moving} to {fixed}")


def register_group(
    volumes: Sequence[Source], *, on_step: OnStep = None, jobs: None | int | str = None, **options: Any
) -> GroupRegistration:
    """Lay many volumes in one unbiased space, from registrations of their pairs.

    volumes: Volumes or files (which are read when they are needed, so that many need not be in memory). jobs: processes
    of one thread each, or the address of a Dask scheduler; default: this process. on_step: called with a Step after
    each pair; it may raise, or return False, to stop. All other keywords are the fields of RegistrationOptions (without
    init): the transform of pairs is that of the group.

    The answer is the same in whatever order the volumes are named. Of two volumes the space is halfway between them.
    Raises InputError (one sentence) before any work where a volume cannot be used, and Cancelled where ``on_step``
    asked to stop.
    """
    return run_steps(group_steps(volumes, jobs=jobs, **options), on_step)


def _together(members: list, order: list, answers: dict, kind: str) -> GroupRegistration:
    """The common space, computed in the order of the volumes' content."""
    place = {index: number for number, index in enumerate(order)}
    pairs, trust = {}, {}
    for (i, j), answer in answers.items():
        pairs[place[i], place[j]] = answer.matrix
        sure = answer.probability
        trust[place[i], place[j]] = TRUST.get(answer.confidence, 0.5) if sure is None else float(sure)
    clouds = [members[index].cloud for index in order]
    found = averaging.consensus({pair: pairs[pair] for pair in sorted(pairs)}, clouds, trust)
    matrices = found.matrices
    if kind != "affine":
        matrices = np.array([geometry.project(m, kind, c.mean, c.covariance) for m, c in zip(matrices, clouds)])
    kept = {pair: pairs[pair] for pair in pairs if pair not in found.dropped}
    cycles = averaging.by_volume(averaging.cycle_errors(kept, clouds), len(order))
    back = [place[index] for index in range(len(order))]
    numbered = {pair: (order[pair[0]], order[pair[1]]) for pair in pairs}
    result = GroupRegistration(
        [member.name for member in members],
        kind,
        matrices[back],
        cycles[back],
        answers,
        {numbered[pair]: mm for pair, mm in found.disagreement.items()},
        tuple(sorted(numbered[pair] for pair in found.dropped)),
        _grid([members[index] for index in order], matrices),
        sources=[member.source for member in members],
        stems=[member.stem for member in members],
        warnings=tuple(dict.fromkeys(words for member in members for words in member.warnings)),
    )
    result.doubts = _doubts(result, members)
    return result


def _doubts(result: GroupRegistration, members: list) -> dict:
    """{volume: why} of those that should be looked at."""
    told = {}
    for index, member in enumerate(members):
        mine = [pair for pair in result.pairs if index in pair]
        good = [pair for pair in mine if pair not in result.dropped]
        limit = averaging.WRONG * member.cloud.size
        if not good:
            told[index] = "all its pairs contradict the others"
        elif len(mine) > 2 and len(good) <= len(mine) / 2:
            told[index] = f"{len(mine) - len(good)} of its {len(mine)} pairs contradict the others"
        elif result.cycle_error[index] > limit:
            told[index] = f"its cycle error is {result.cycle_error[index]:.2g} mm"
        elif all(result.pairs[pair].confidence == "poor" for pair in good):
            told[index] = "all its registrations are poor"
    return told


def _grid(members: list, matrices: np.ndarray) -> Grid:
    """Axis-aligned voxels of the median size around the tissue of all volumes in the common space."""
    corners = np.concatenate([geometry.transform_points(m, one.corners) for one, m in zip(members, matrices)])
    low, high = corners.min(axis=0), corners.max(axis=0)
    low, high = low - MARGIN * (high - low), high + MARGIN * (high - low)
    spacing = float(np.median([member.spacing for member in members]))
    shape = np.maximum(np.ceil((high - low) / spacing), 1).astype(int)
    first = (low + high) / 2 - spacing * (shape - 1) / 2
    return Grid(tuple(int(n) for n in shape), geometry.from_parts(np.eye(3) * spacing, first))


def write_group(result: GroupRegistration, folder) -> dict:
    """Write the mean image, a transform for each volume, and a table of cycle errors; returns the paths."""
    from ..files import written_whole
    from ..spatial.transform_file import write_transform
    from ..spatial.volume_file import save

    folder = Path(folder)
    paths = {"mean": folder / "group_mean.nii.gz", "table": folder / "group.tsv", "pairs": folder / "pairs.tsv"}
    mean = result.mean()
    save(mean, paths["mean"])
    for index, name in enumerate(result.stems):
        paths[f"transform {index}"] = folder / f"{name}_to_group.tfm"
        volume = _volume(result.sources[index])
        write_transform(result.matrices[index], paths[f"transform {index}"], moving=volume, fixed=mean)
    lines = ["volume\tcycle_error_mm\tpairs\tdropped\tdoubt"]
    for index, name in enumerate(result.names):
        mine = [pair for pair in result.pairs if index in pair]
        dropped = sum(pair in result.dropped for pair in mine)
        error = result.cycle_error[index]
        cycle = f"{error:.4f}" if np.isfinite(error) else "n/a"
        lines.append(f"{name}\t{cycle}\t{len(mine)}\t{dropped}\t{result.doubts.get(index, '')}")
    rows = ["moving\tfixed\tconfidence\tprobability\tdisagreement_mm\tdropped"]
    for (i, j), answer in sorted(result.pairs.items()):
        sure = "n/a" if answer.probability is None else f"{answer.probability:.4f}"
        row = (result.names[i], result.names[j], answer.confidence, sure, f"{result.disagreement[i, j]:.4f}")
        rows.append("\t".join((*row, str(int((i, j) in result.dropped)))))
    for key, text in (("table", lines), ("pairs", rows)):
        with written_whole(paths[key]) as temporary:
            Path(temporary).write_text("\n".join(text) + "\n", encoding="utf-8")
    return paths
