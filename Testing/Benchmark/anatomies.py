"""Task ``anatomies``: other organs, animals and sizes; copies of known truth, pairs of individuals, hopeless pairs.

A case's name says all: "K/mouse-brain/mouse_brain_01/0" is kind, collection, volume (or moving and fixed volume) and
draw; its random numbers belong to the name and the seed. Kinds A, K, R, C, I are copies (copies.py), P pairs, X
pairs in which nothing is right. *Size* is twice the root mean square radius of the fixed tissue.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Callable

import numpy as np

from SpatialDiffusionCore.errors import InputError
from SpatialDiffusionCore.spatial import geometry, volume_file
from SpatialDiffusionCore.spatial.sampling import Prepared, prepare
from SpatialDiffusionCore.spatial.volume import Volume

from . import anatomy_report, contrast, copies, measures, people, subjects
from .cases import Arguments, Case, Task, Todo, data_root, rng
from .subjects import Subject

KINDS = {**copies.KINDS, "P": "two individuals, visits or contrasts", "X": "nothing is right"}

#: Turns of each volume and kind, and of each pair, unless the command line says otherwise.
DRAWS = 4

#: Right and wrong of a copy, as shares of the size; half the coarsest voxel is right, too.
COPY_LIMITS = (0.01, 0.03)

#: The same of pairs whose truth is known within a few millimeters only: peers' consensus, or templates' common space.
CONTRAST_LIMITS = (0.025, 0.05)

#: The same of heads or necks of two people, whose truth is the median of two peers that end within 6 mm.
PEOPLE_LIMITS = (0.04, 0.07)

#: Landmarks of two skulls: the best affine fit of the landmarks themselves leaves 2 to 4 % of the size.
SKULL_LIMITS = (0.06, 0.10)

#: Centers of seven lumbar vertebrae: the best similarity leaves 0.6 to 2.5 %; half the way to the next one is 8 %.
SPINE_LIMITS = (0.04, 0.08)

#: Mean Dice of a mouse brain's structures from which it is right and below which it is wrong: affines fitted to the
#: structures' centers reach 0.67 to 0.81, one good registration in the mean 0.76.
MOUSE_DICE = (0.65, 0.55)

#: Labels of the mouse brains are their own structures.
MOUSE_LABELS = {number: f"{number:02}" for number in range(1, 41)}

#: This skull's landmarks lie beside its bone, whether they are read as LPS, as the file says, or as RAS.
WITHOUT_LANDMARKS = ("mouse_skull_KKHlJ",)

#: The moving and the fixed collection of hopeless pairs.
HOPELESS = (
    ("mouse-brain", "spine"),
    ("spine", "mouse-skull"),
    ("t1", "torso-ct"),
    ("neck-ct", "t1"),
    ("mouse-skull", "mouse-brain"),
    ("t2-neck", "neck-ct"),
    ("torso-ct", "t2"),
    ("chest-ct", "spine"),
    ("t2", "mouse-skull"),
)

#: Turns of the copies on which networks are measured alone, degrees.
NEAR = 0.0, 45.0


@dataclass(frozen=True)
class AnatomyCase(Case):
    """A case with its volumes at hand.

    volumes: (moving under its own header, fixed). size: mm. limits: errors up to which an answer is right and beyond
    which it is wrong, mm; for ``labels`` the mean Dice. points: (moving, fixed) landmarks, N×3 RAS mm each, under the
    volumes' own headers. coarsest: the larger of both volumes' largest spacings, mm.
    """

    volumes: tuple = ()
    size: float = 0.0
    limits: tuple = ()
    points: tuple | None = None
    coarsest: float = 0.0
    hopeless: bool = False
    fixed_tissue: tuple = field(default=(), repr=False)


@lru_cache(maxsize=6)
def _read(path: str) -> tuple[Volume, Prepared]:
    volume = volume_file.load(path)
    return volume, prepare(volume)


_overlap = measures.Overlap(MOUSE_LABELS, MOUSE_DICE[0])


# --- cases -------------------------------------------------------------------------------------------------


def _base(
    name: str,
    seed: int,
    root: Path,
    moving: Subject,
    fixed: Subject,
    kind: str,
    turns: tuple[float, float] = copies.TURNS,
) -> AnatomyCase:
    """What all kinds share: a fixed volume, and the moving one (for copies made of the fixed one) under a turn."""
    generator = rng("anatomies", name, seed)
    fixed_volume, fixed_tissue = _read(str(root / fixed.path))
    source, tissue = _read(str(root / moving.path))
    degrees, moved = copies.any_turn(generator, tissue, turns)
    made = copies.make_copy(kind, source, tissue, generator)
    size = copies.size_of(fixed_tissue)
    coarsest = float(max(made.spacing.max(), fixed_volume.spacing.max()))
    paths = root / moving.path, root / fixed.path
    return AnatomyCase(
        "anatomies",
        name,
        round(degrees, 1),
        seed,
        *paths,
        moved,
        modality=("any", "any"),
        volumes=(made, fixed_volume),
        size=size,
        limits=_within(COPY_LIMITS, size, coarsest),
        coarsest=coarsest,
        fixed_tissue=(fixed_tissue.tissue_center, fixed_tissue.tissue_covariance),
    )


def _within(limits: tuple, size: float, coarsest: float) -> tuple[float, float]:
    right = max(limits[0] * size, coarsest / 2)
    return right, max(limits[1] * size, right)


def _copy(
    name: str, seed: int, root: Path, subject: Subject, kind: str, turns: tuple[float, float] = copies.TURNS
) -> AnatomyCase:
    case = _base(name, seed, root, subject, subject, kind, turns)
    if kind == "S":
        stretch = copies.any_stretch(rng("anatomies", name, seed, "stretch"), _read(str(root / subject.path))[1])
        case = replace(case, moved=case.moved @ stretch)
    return replace(case, truth=np.linalg.inv(case.moved))


def _pair(name: str, seed: int, root: Path, moving: Subject, fixed: Subject, known: np.ndarray | None):
    """Two volumes; known: 4×4 moving → fixed under the files' own headers, where it is known."""
    case = _base(name, seed, root, moving, fixed, "P")
    if known is not None:
        limits = COPY_LIMITS if moving.collection == "chest-ct" else CONTRAST_LIMITS
        limits = limits if moving.person == fixed.person else PEOPLE_LIMITS
        limits = _within(limits, case.size, case.coarsest)
        return replace(case, truth=known @ np.linalg.inv(case.moved), limits=limits)
    if moving.collection == "mouse-brain":
        labels = tuple(str(root / s.path).replace(".nii.gz", "_labels.nii.gz") for s in (moving, fixed))
        return replace(case, labels=labels, limits=MOUSE_DICE)
    read, limits = (_vertebrae, SPINE_LIMITS) if moving.collection == "spine" else (_landmarks, SKULL_LIMITS)
    points = tuple(read(str(root / s.path)) for s in (moving, fixed))
    return replace(case, points=points, limits=tuple(limit * case.size for limit in limits))


def _hopeless(name: str, seed: int, root: Path, moving: Subject, fixed: Subject) -> AnatomyCase:
    return replace(_base(name, seed, root, moving, fixed, "X"), hopeless=True)


@lru_cache(maxsize=32)
def _landmarks(path: str) -> np.ndarray:
    """The landmarks of a Slicer markups file beside a volume, N×3 RAS mm, in the order of their labels."""
    file = path.replace(".nii.gz", ".mrk.json")
    markups = json.loads(Path(file).read_text(encoding="utf-8"))["markups"][0]
    by_label = {int(point["label"]): point["position"] for point in markups["controlPoints"]}
    points = np.array([by_label[label] for label in sorted(by_label)], float)
    # Slicer writes the name, older versions its number.
    system = {"LPS": True, "0": False, "RAS": False, "1": True}[str(markups["coordinateSystem"])]
    return points * ([-1, -1, 1] if system else [1, 1, 1])


@lru_cache(maxsize=32)
def _vertebrae(path: str) -> np.ndarray:
    """Centers of the labelled vertebral bodies, N×3 RAS mm, from one end of the stored first axis to the other."""
    labels = volume_file.load(path.replace(".nii.gz", "_labels.nii.gz"), keep_type=True)
    numbers = np.asarray(labels.data).astype(int)
    centers = np.array([np.argwhere(numbers == n).mean(axis=0) for n in np.unique(numbers[numbers > 0])])
    return geometry.transform_points(labels.voxel_to_ras, centers[np.argsort(centers[:, 0])])


def _ring(group: list[Subject]) -> Iterator[tuple[Subject, Subject]]:
    """Each with the next, then each with the next but one; no pair twice, none with itself."""
    done = set()
    for step in range(1, len(group)):
        for index in range(len(group)):
            pair = index, (index + step) % len(group)
            if pair not in done and pair[::-1] not in done:
                done.add(pair)
                yield group[pair[0]], group[pair[1]]


def _known_pairs(mine: list[Subject]) -> Iterator[tuple[Subject, Subject, np.ndarray]]:
    """Pairs with a known transform: a chest and its follow-up, contrasts and visits of one person, templates."""
    by_path = {subject.path.split(".")[0]: subject for subject in mine}
    table = json.loads(contrast.CONSENSUS.read_text(encoding="utf-8"))
    groups = {**contrast.TEMPLATES, **contrast.RAW}
    chest = ("breadth/lung_ct", "breadth/lung_ct_small")
    pairs = [pair for group in groups if group != "T1-CT" for pair in groups[group]]
    for first, second in (*pairs, chest):
        if first not in by_path or second not in by_path:
            continue
        known = np.eye(4) if (first, second) == chest else contrast.known(first, second, table)
        if known is not None:
            yield by_path[first], by_path[second], known
    yield from people.known(mine)


def _individuals(mine: list[Subject]) -> Iterator[tuple[Subject, Subject]]:
    for collection in ("mouse-brain", "mouse-skull", "spine"):
        group = [s for s in mine if s.collection == collection and s.name not in WITHOUT_LANDMARKS]
        yield from _ring(group)


def todos(
    root: Path,
    half: str,
    kinds: tuple = tuple(KINDS),
    draws: int = DRAWS,
    seed: int = 0,
    calibration: bool = False,
) -> list[Todo]:
    """The cases of a half, kinds and collections in turn, so that any first part of the list has some of each.

    calibration: only of volumes that may calibrate.
    """
    mine = [subject for subject in subjects.read() if subject.half == subjects.check_half(half)]
    mine = [subject for subject in mine if subject.calibrates or not calibration]
    unknown = sorted(set(kinds) - set(KINDS))
    if unknown:
        raise InputError(f"Unknown kinds: {', '.join(unknown)}; choose among: {', '.join(KINDS)}.")
    queues: dict[tuple, list[Todo]] = {}
    for kind, collection, what, make in _families(mine, seed, root):
        if kind in kinds:
            names = [f"{kind}/{collection}/{what}/{draw}" for draw in range(draws)]
            made = [Todo(n, _turn_of(n, seed), partial(make, n, draw)) for draw, n in enumerate(names)]
            queues.setdefault((kind, collection), []).extend(made)
    return _in_turn(queues)


def _turn_of(name: str, seed: int) -> float:
    """The turn of a case's header, degrees: the first random number that copies.any_turn draws."""
    return round(float(rng("anatomies", name, seed).uniform(*copies.TURNS)), 1)


def _families(mine: list[Subject], seed: int, root: Path) -> Iterator[tuple[str, str, str, Callable]]:
    """(kind, collection, volumes, function of a case's name and draw that makes it) of what every draw repeats."""
    for subject in mine:
        for kind in copies.KINDS:
            yield kind, subject.collection, subject.name, _ignoring(_copy, seed, root, subject, kind)
    individuals = [(*pair, None) for pair in _individuals(mine)]
    for moving, fixed, known in (*individuals, *_known_pairs(mine)):
        make = _turning(_pair, seed, root, moving, fixed, known)
        yield "P", fixed.collection, f"{moving.name}-{fixed.name}", make
    for first, second in HOPELESS:
        movings, fixeds = ([s for s in mine if s.collection == c] for c in (first, second))
        for moving, fixed in zip(movings, fixeds):
            make = _ignoring(_hopeless, seed, root, moving, fixed)
            yield "X", f"{first}-{second}", f"{moving.name}-{fixed.name}", make


def _ignoring(make: Callable, seed: int, root: Path, *rest) -> Callable:
    return lambda name, draw: make(name, seed, root, *rest)


def _turning(make: Callable, seed: int, root: Path, moving: Subject, fixed: Subject, known) -> Callable:
    """The other way round in every second draw."""

    def made(name: str, draw: int) -> AnatomyCase:
        if draw % 2 == 0:
            return make(name, seed, root, moving, fixed, known)
        return make(name, seed, root, fixed, moving, None if known is None else np.linalg.inv(known))

    return made


def _in_turn(queues: dict[tuple, list[Todo]]) -> list[Todo]:
    """One of each kind and collection after another; within one, subjects and draws mixed by their names' hashes."""
    waiting = {key: sorted(queue, key=lambda todo: rng(todo.name).integers(2**62)) for key, queue in queues.items()}
    order = []
    while waiting:
        order += [queue.pop(0) for queue in waiting.values()]
        waiting = {key: queue for key, queue in waiting.items() if queue}
    return order


def near_copies(root: Path, seed: int) -> dict[str, Callable[[], AnatomyCase]]:
    """{"any/kind/collection/volume": its case} of copies of organs that no network knows, turned within 45°."""
    collections = ("mouse-brain", "mouse-skull", "spine", "chest-ct", "torso-ct")
    chosen = [s for s in subjects.read() if s.collection in collections]
    names = {
        f"any/{kind}/{s.collection}/{s.name}": (s, kind) for s in chosen for kind in copies.KINDS if kind not in "IS"
    }
    return {name: partial(_copy, name, seed, root, s, kind, NEAR) for name, (s, kind) in names.items()}


# --- measure -----------------------------------------------------------------------------------------------


def judge(case: AnatomyCase, matrix: np.ndarray | None) -> dict:
    """{"success" (right), "wrong", and "error_mm" and "error_share" of the size, or "dice"}; a missing answer is
    neither right nor wrong, and to a hopeless pair every answer is wrong."""
    if matrix is None:
        return {"success": False, "wrong": False}
    if case.hopeless:
        return {"success": False, "wrong": True}
    if case.labels is not None:
        dice = _overlap.dice(case.labels, case.moved, matrix)
        return {"dice": round(dice, 4), "success": dice >= case.limits[0], "wrong": dice < case.limits[1]}
    error = _error(case, matrix)
    figures = {"error_mm": round(error, 4), "error_share": round(error / case.size, 5), "size_mm": round(case.size, 2)}
    return {**figures, "success": error <= case.limits[0], "wrong": error > case.limits[1]}


def _error(case: AnatomyCase, matrix: np.ndarray) -> float:
    """RMS distance over the fixed tissue or of the landmarks, mm."""
    if case.points is None:
        # Where a point of the fixed tissue ends that went to the moving volume by the truth and came back.
        return geometry.displacement_rms(matrix @ np.linalg.inv(case.truth), np.eye(4), *case.fixed_tissue)
    moving, fixed = case.points
    apart = geometry.transform_points(matrix @ case.moved, moving) - fixed
    return float(np.sqrt((apart**2).sum(axis=1).mean()))


# --- the benchmark's task ----------------------------------------------------------------------------------

#: The fixed subset that peers do, drawn from the report's half.
SUBSET = 100


def written(make: Callable[[], AnatomyCase], scratch: Path) -> AnatomyCase:
    """A case with its volumes in files, which the child processes read."""
    case = make()
    paths = scratch / "moving.nii", scratch / "fixed.nii"
    for volume, path in zip(case.volumes, paths):
        volume_file.save(volume, path)
    return replace(case, moving=paths[0], fixed=paths[1], volumes=())


def _cases(arguments: Arguments) -> list[Todo]:
    """The first cases of the report's half, all kinds but the hopeless one."""
    kinds = tuple(arguments.conditions or [kind for kind in KINDS if kind not in "XIS"])
    chosen = todos(data_root(arguments.data), subjects.REPORT, kinds, arguments.draws or DRAWS, arguments.seed)
    return [
        Todo(t.name, t.rotation, partial(written, t.make, arguments.scratch))
        for t in chosen[: arguments.pairs or SUBSET]
    ]


def _measure(arguments: Arguments) -> Callable:
    return judge


TASKS = (
    Task(
        "anatomies",
        "other organs, animals and sizes from any pose",
        _cases,
        _measure,
        anatomy_report.section,
        methods=("untold",),
        summary=anatomy_report.summary,
        panels=anatomy_report.panels,
        interleave=True,
        choices=("pairs", "conditions", "draws"),
    ),
)
