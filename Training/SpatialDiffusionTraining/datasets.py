"""Scans on disk → cubes of 8 bits, one file each → what training reads by row number.

Every scan is read once, put on the model's grid and kept (`build`). A cube's file is named by all that it depends on,
so that an interrupted call goes on where it stopped, a changed scan alone is made anew, and runs may share a cache.
Nothing is kept in memory but what the operating system keeps.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from SpatialDiffusionCore.errors import InputError
from SpatialDiffusionCore.files import written_whole
from SpatialDiffusionCore.modality import MODALITIES

from . import loaders
from .pair_lists import PARTNERS, find_partners
from .people import split as split  # the data sets' face: found, split, cached
from .sampler import Sampler
from .scans import find_scans as find_scans

CACHE_VERSION = 5

#: A process of its own pays for itself from so many scans on: starting it takes as long as preparing a few.
SCANS_PER_PROCESS = 8

#: Beyond so many processes a disk or the memory is the limit.
MOST_PROCESSES = 8

Report = Callable[[str], Any]


@dataclass
class Source:
    """One data set of the command line: its modality, class id, scans and how they are loaded."""

    modality: str
    class_id: int
    train: list[Path]
    validation: list[Path]
    weight: float = 1.0
    loader: str = "canonical"
    masks: str = ""  # folder of brain masks, each named like its scan; "" for none
    partners: str = ""  # a list of pairs (see pair_lists.PARTNERS) that lies elsewhere; "" for none

    @property
    def lists(self) -> list[Path]:
        """The lists of pairs that are about its scans."""
        beside = sorted({Path(p).parent / PARTNERS for p in [*self.train, *self.validation]})
        return [p for p in beside if p.is_file()] + ([Path(self.partners)] if self.partners else [])


class Cubes:
    """The cubes of a cache by row: ``cubes[row]`` is D×H×W uint8, read from its file."""

    def __init__(self, files: Sequence[Path], shape: Sequence[int]) -> None:
        self.files = list(files)
        self.shape = (len(self.files), *(int(n) for n in shape))
        self.dtype = np.dtype(np.uint8)

    @property
    def nbytes(self) -> int:
        """Bytes of all cubes together."""
        return int(np.prod(self.shape))

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int) -> np.ndarray:
        try:
            return np.load(self.files[row])
        except (OSError, ValueError) as error:
            raise InputError(
                f"The cube {self.files[row]} cannot be read ({error}); delete it, it is then made anew."
            ) from None

    def in_memory(self) -> np.ndarray:
        """All cubes as one array in memory, N×D×H×W."""
        return np.stack([self[row] for row in range(len(self))])


@dataclass
class Cache:
    """Cubes in row order with what is known about each; open it with `open_cache`."""

    folder: Path
    cubes: Cubes | np.ndarray
    entries: list[dict[str, Any]]
    skipped: list[dict[str, str]]
    grid: dict[str, Any]
    means: torch.Tensor = field(repr=False)
    covariances: torch.Tensor = field(repr=False)
    resident: dict[torch.device, torch.Tensor | None] = field(repr=False, default_factory=dict, compare=False)

    @cached_property
    def partners(self) -> dict[int, list[tuple[int, torch.Tensor]]]:
        """{row: [(row of a partner, normalized 3×4 affine from its cube to the partner's), …]}."""
        return {
            entry["row"]: [(row, torch.tensor(theta)) for row, theta in entry["partners"]]
            for entry in self.entries
            if "partners" in entry
        }

    @property
    def shape(self) -> tuple[int, ...]:
        """(D, H, W) of every cube."""
        return tuple(self.cubes.shape[1:])

    @property
    def spacing(self) -> tuple[float, ...]:
        """mm between voxels along (D, H, W) (as set where a loader ignores it)."""
        return tuple(float(n) for n in np.broadcast_to(self.grid["spacing"], 3))

    def from_the_front(self) -> bool:
        """Whether all scans are of a modality that is seen from the front, as eyes are."""
        names = {entry["modality"] for entry in self.entries}
        return all(name in MODALITIES and not MODALITIES[name].oriented for name in names)

    def rows(self, part: str, class_id: int | None = None) -> list[int]:
        """Row numbers of the "train" or "validation" part, of one data set if its class id is given."""
        return [e["row"] for e in self.entries if e["part"] == part and class_id in (None, e["class_id"])]

    def read(self, rows: Sequence[int], device: str | torch.device = "cpu") -> torch.Tensor:
        """B×1×D×H×W float volumes in 0..1 on the device; they travel as bytes, to a GPU with room for all of them
        once."""
        resident = self._resident(torch.device(device))
        if resident is not None:
            block = resident[torch.as_tensor(rows, device=device)]
        else:
            block = torch.from_numpy(np.stack([self.cubes[int(r)] for r in rows])).to(device)
        return block[:, None].float().div_(255)

    def _resident(self, device: torch.device) -> torch.Tensor | None:
        """All cubes on a GPU, if they filled less than an eighth of what was free when they were first read, or
        None."""
        if device.type != "cuda":
            return None
        if device not in self.resident:
            fits = self.cubes.nbytes <= torch.cuda.mem_get_info(device)[0] / 8
            array = self.cubes.in_memory() if isinstance(self.cubes, Cubes) else np.array(self.cubes)
            self.resident[device] = torch.from_numpy(array).to(device) if fits else None
        return self.resident[device]

    def read_masks(self, rows: Sequence[int], device: str | torch.device = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
        """(places in `rows` that have a mask, their masks as M×1×D×H×W floats 0 or 1)."""
        places = [i for i, row in enumerate(rows) if row in self._masked]
        if not places:
            return torch.zeros(0, dtype=torch.long), torch.zeros(0, 1, *self.shape, device=device)
        block = np.stack([np.load(self._masked[rows[i]]) for i in places])
        return torch.tensor(places), torch.from_numpy(block).to(device)[:, None].float()

    @cached_property
    def _masked(self) -> dict[int, Path]:
        """{row: file of its mask}."""
        return {e["row"]: _file(self.folder, e["key"], ".mask.npy") for e in self.entries if e.get("masked")}

    def files(self, rows: Sequence[int]) -> list[str]:
        """The files behind rows, for messages."""
        by_row = {e["row"]: e["file"] for e in self.entries}
        return [by_row[int(r)] for r in rows]


# ---------------------------------------------------------------------------------------------- building
@dataclass
class _Task:
    """One scan to prepare: what a process needs to know about it."""

    file: str
    key: str
    loader: str
    modality: str
    grid: dict[str, Any]
    mask: str | None
    folder: str


def mask_of(path: str | Path, folder: str | Path) -> Path | None:
    """The mask of a scan in a folder of masks named like their scans, or None."""
    mask = Path(folder) / Path(path).name if folder else None
    return mask if mask is not None and mask.is_file() else None


def _file(folder: str | Path, key: str, ending: str) -> Path:
    return Path(folder) / "cubes" / key[:2] / f"{key}{ending}"


def _key(path: str, mask: Path | None, loader: str, modality: str, grid: dict[str, Any]) -> str | None:
    """The name of a scan's cube: a hash of all that it depends on; None where the scan is gone."""
    what: list[Any] = [CACHE_VERSION, loader, modality, grid]
    try:
        for file in [path] if mask is None else [path, str(mask)]:
            state = os.stat(file)
            what.append([file, state.st_size, int(state.st_mtime)])
    except OSError:
        return None
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:32]


def _start_process() -> None:
    torch.set_num_threads(1)


def _prepare(task: _Task) -> str | None:
    """Make the files of one scan's cube; the reason where it cannot be used. Runs in a process of its own.

    The description is written last: where it is, the others are whole. What a scan cannot be used for is kept, too, so
    that nobody tries it again before the file changes. Raises InputError where the cache cannot be written.
    """
    inside = None
    try:
        loaded = loaders.load(task.file, task.loader, task.modality, task.grid, task.mask)
        about, inside = loaded.about, loaded.inside
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"  # perhaps it can the next time
    except Exception as error:  # any broken file must only cost itself
        about = {"reason": " ".join(str(error).split()) or type(error).__name__}
    cube = _file(task.folder, task.key, ".npy")
    try:
        cube.parent.mkdir(parents=True, exist_ok=True)
        if "reason" not in about:
            _write_array(cube, np.round(loaded.values * 255).astype(np.uint8))
        if inside is not None:
            _write_array(_file(task.folder, task.key, ".mask.npy"), inside)
        with written_whole(_file(task.folder, task.key, ".json")) as temporary:
            temporary.write_text(json.dumps({**about, "masked": inside is not None}), encoding="utf-8")
    except OSError as error:
        raise _full(task.folder, error) from None
    return about.get("reason")


def _write_array(path: Path, array: np.ndarray) -> None:
    with written_whole(path) as temporary, open(temporary, "wb") as file:
        np.save(file, array)


def _full(folder: str | Path, error: OSError) -> InputError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    reason = "the disk is full" if full else (error.strerror or type(error).__name__).lower()
    return InputError(
        f"The cache {folder} cannot be written: {reason}. What is prepared so far is kept; make room or choose another "
        "place with --cache, and give the same command again."
    )


def build(
    folder: str | Path, sources: Sequence[Source], grid: dict[str, Any], workers: int = 0, report: Report = print
) -> Cache:
    """Make what is missing of the cache of all scans of `sources` in `folder` and open it.

    grid: {"size": (D, H, W), "spacing": mm, one number or three} of the model. workers: processes (0: as many as the
    machine has processors, where there are enough scans). Scans that cannot be used are skipped, counted and listed in
    skipped.txt; those that are gone since they were prepared are taken from the cache. Raises InputError where no
    training scan is left or the cache cannot be written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _full(folder, error) from None
    grid = {"size": [int(n) for n in grid["size"]], "spacing": grid["spacing"]}
    known = _known(folder)
    tasks, about, gone = _tasks(folder, sources, grid, known)
    reasons = _prepare_all(folder, tasks, workers, report)
    entries, skipped = _collect(folder, about, reasons)
    if gone:
        report(f"{gone} scans are no longer where they were; their prepared cubes are used")
    find_partners(entries, [path for source in sources for path in source.lists])
    lines = "".join(f"{s['file']}\t{s['reason']}\n" for s in skipped)
    (folder / "skipped.txt").write_text(lines, encoding="utf-8")
    if skipped:
        report(
            f"{len(skipped)} of {len(about)} files cannot be used, see {folder / 'skipped.txt'}; the first: "
            f"{skipped[0]['file']}: {skipped[0]['reason']}"
        )
    if not any(e["part"] == "train" for e in entries):
        raise InputError(
            f"None of the {len(about)} files can be used for training; the reasons are in {folder / 'skipped.txt'}."
        )
    index = json.dumps({"version": CACHE_VERSION, "grid": grid, "entries": entries, "skipped": skipped})
    with written_whole(folder / "index.json") as temporary:
        temporary.write_text(index, encoding="utf-8")
    return open_cache(folder)


def _known(folder: Path) -> dict[tuple[str, str, str], dict[str, Any]]:
    """{(file, modality, loader): entry} of the cache's last index."""
    try:
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        return {(e["file"], e["modality"], e["loader"]): {**e, "grid": index["grid"]} for e in index["entries"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _tasks(
    folder: Path, sources: Sequence[Source], grid: dict[str, Any], known: dict[tuple[str, str, str], dict[str, Any]]
) -> tuple[list[_Task], list[dict[str, Any]], int]:
    """(what is to be prepared, what is known of every scan, how many are gone but were prepared)."""
    tasks, about, gone = [], [], 0
    for source in sources:
        for part, paths in (("train", source.train), ("validation", source.validation)):
            for path in map(str, paths):
                mask = mask_of(path, source.masks)
                key = _key(path, mask, source.loader, source.modality, grid)
                before = known.get((path, source.modality, source.loader))
                if key is None and before is not None and before["grid"] == grid:
                    key, gone = before["key"], gone + 1
                entry = {"file": path, "part": part, "modality": source.modality, "class_id": source.class_id}
                about.append({**entry, "loader": source.loader, "key": key})
                if key is not None and not _file(folder, key, ".json").exists():
                    tasks.append(
                        _Task(
                            path,
                            key,
                            source.loader,
                            source.modality,
                            grid,
                            None if mask is None else str(mask),
                            str(folder),
                        )
                    )
    return tasks, about, gone


def _prepare_all(folder: Path, tasks: list[_Task], workers: int, report: Report) -> dict[str, str]:
    """Prepare scans; {key: reason} of those that failed for now."""
    reasons = {}
    for number, (task, reason) in enumerate(zip(tasks, _map(tasks, workers)), start=1):
        if reason is not None:
            reasons[task.key] = reason
        if number % 50 == 0 or number == len(tasks):
            report(f"prepared {number} of {len(tasks)} scans, {len(reasons)} skipped")
    return reasons


def _map(tasks: list[_Task], workers: int) -> Iterator[str | None]:
    count = workers or min(os.cpu_count() or 1, MOST_PROCESSES, len(tasks) // SCANS_PER_PROCESS)
    if count <= 1:
        yield from map(_prepare, tasks)
        return
    pool = ProcessPoolExecutor(count, initializer=_start_process)
    try:
        yield from pool.map(_prepare, tasks)
    except BrokenProcessPool:
        raise InputError(
            "A process that prepared scans was ended by the system, perhaps for lack of memory; give the same command "
            "with --workers 1, it goes on where it stopped."
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _collect(
    folder: Path, about: list[dict[str, Any]], reasons: dict[str, str]
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """(entries in row order, what is skipped and why) from the descriptions beside the cubes."""
    entries: list[dict[str, Any]] = []
    skipped: list[dict[str, str]] = []
    for what in about:
        found: dict[str, Any] = {"reason": reasons.get(what["key"] or "", f"{what['file']} does not exist.")}
        if what["key"] is None and os.path.islink(what["file"]):
            found = {"reason": "its content is not here (an annexed file, say); fetch it first."}
        elif what["key"] is not None:
            with contextlib.suppress(OSError, ValueError):
                found = json.loads(_file(folder, what["key"], ".json").read_text(encoding="utf-8"))
        if "reason" in found:
            skipped.append({"file": what["file"], "reason": found["reason"]})
        else:
            entries.append({"row": len(entries), **what, **found})
    return entries, skipped


def open_cache(folder: str | Path) -> Cache:
    """Open a finished cache read-only. Raises InputError where there is none."""
    folder = Path(folder)
    try:
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        entries = index["entries"]
        files = [_file(folder, e["key"], ".npy") for e in entries]
        missing = next((file for file in files if not file.exists()), None)
        if missing is not None:
            raise ValueError(f"{missing.name} is missing")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder} holds no usable cache ({error}).") from None
    means = torch.tensor([e["mean"] for e in entries], dtype=torch.float32)
    covariances = torch.tensor([e["covariance"] for e in entries], dtype=torch.float32)
    cubes = Cubes(files, index["grid"]["size"])
    return Cache(folder, cubes, entries, index["skipped"], index["grid"], means, covariances)


@dataclass
class Collection:
    """The scans of one grid: their cache, the stream of training rows, the rows held out, the share of the batches."""

    cache: Cache
    sampler: Sampler
    held_out: list[int]
    weight: float = 1.0

    @property
    def name(self) -> str:
        """The modalities it holds."""
        return "+".join(dict.fromkeys(entry["modality"] for entry in self.cache.entries))
