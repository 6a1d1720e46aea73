"""Scans on disk → uint8 cubes in one memory-mapped file → an endless, resumable stream of batches.

Every scan is read once, put on the model's grid and kept as 8 bits (`build`). Training then reads cubes by row
number, whatever the size of the collection: the operating system keeps in memory what fits and nothing else.
"""
from __future__ import annotations

import hashlib
import json
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from SpatialDiffusionCore.errors import InputError
from SpatialDiffusionCore.modality import MODALITIES
from SpatialDiffusionCore.spatial import geometry

from . import loaders

SUFFIXES = (".nii", ".nii.gz")
CACHE_VERSION = 3

#: A file of this name beside scans says how some of them lie to each other: one pair a line, separated by tabs: two
#: files (relative to the list's folder) and the 3×4 matrix (12 numbers, row by row) that takes points of the first to
#: the second, RAS mm.
PARTNERS = "partners.tsv"


# ------------------------------------------------------------------------------------------------ finding
def find_scans(source):
    """The scans of a folder (NIfTI files, recursively), a list file or one scan, as sorted absolute paths.

    A list file is text: one path a line, relative to the list's folder; empty lines and lines that begin with
    # do not count. Raises InputError where nothing is found.
    """
    source = Path(source)
    if source.is_dir():
        found = [p for p in source.rglob("*") if p.name.lower().endswith(SUFFIXES) and not p.name.startswith(".")]
        if not found:
            raise InputError(f"{source} holds no NIfTI files (*.nii, *.nii.gz).")
        return sorted(p.resolve() for p in found)
    if source.is_file() and source.name.lower().endswith(SUFFIXES):
        return [source.resolve()]
    if source.is_file():
        try:
            lines = source.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            raise InputError(f"{source} is neither a NIfTI file nor a text list of them.") from None
        names = [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]
        if not names:
            raise InputError(f"The list {source} names no files.")
        return [(source.parent / name).resolve() for name in names]
    raise InputError(f"{source} does not exist; give a folder of NIfTI files or a text list of them.")


def split(paths, held_out=0.1):
    """(training, validation): the same split on every machine, and nearly the same when scans are added.

    Scans are ranked by a hash of their last two path parts; the lowest share is held out, at least one scan if
    there are two or more. A file's further volumes or visits (same name up to the first "_T", "_t" or "_ses")
    stay together with it.
    """
    def rank(path):
        name = Path(path).name
        for mark in ("_T", "_t", "_ses", "."):
            name = name.split(mark)[0]
        return hashlib.sha256(f"{Path(path).parent.name}/{name}".encode()).hexdigest()

    order = sorted(paths, key=lambda p: (rank(p), str(p)))
    count = max(1, round(held_out * len(paths))) if held_out > 0 and len(paths) > 1 else 0
    while 0 < count < len(order) - 1 and rank(order[count]) == rank(order[count - 1]):
        count += 1
    return sorted(order[count:]), sorted(order[:count])


def write_list(paths, file):
    """Write a split list that `find_scans` reads."""
    Path(file).write_text("".join(f"{p}\n" for p in paths), encoding="utf-8")


# -------------------------------------------------------------------------------------------------- cache
@dataclass
class Source:
    """One data set of the command line: its modality, class id (from 1), scans and how they are loaded."""

    modality: str
    class_id: int
    train: list
    validation: list
    weight: float = 1.0
    loader: str = "canonical"
    masks: str = ""  # folder of brain masks, each named like its scan; "" for none
    partners: str = ""  # a list of pairs (see PARTNERS) that lies elsewhere; "" for none

    @property
    def lists(self):
        """The lists of pairs that are about its scans."""
        beside = sorted({Path(p).parent / PARTNERS for p in [*self.train, *self.validation]})
        return [p for p in beside if p.is_file()] + ([Path(self.partners)] if self.partners else [])


@dataclass
class Cache:
    """Cubes in row order with what is known about each; open it with `open_cache`."""

    folder: Path
    cubes: np.ndarray
    entries: list
    skipped: list
    grid: dict
    means: torch.Tensor = field(repr=False, default=None)
    covariances: torch.Tensor = field(repr=False, default=None)
    masks: np.ndarray = field(repr=False, default=None)
    resident: dict = field(repr=False, default_factory=dict, compare=False)  # device: see _resident

    @cached_property
    def partners(self):
        """{row: [(row of a partner, normalized 3×4 affine from its cube to the partner's), …]}."""
        return {entry["row"]: [(row, torch.tensor(theta)) for row, theta in entry["partners"]]
                for entry in self.entries if "partners" in entry}

    @property
    def shape(self):
        """(D, H, W) of every cube."""
        return tuple(self.cubes.shape[1:])

    @property
    def spacing(self):
        """mm between voxels along (D, H, W) (as set where a loader ignores it)."""
        return tuple(float(n) for n in np.broadcast_to(self.grid["spacing"], 3))

    def from_the_front(self):
        """Whether all scans are of a modality that is seen from the front, as eyes are."""
        names = {entry["modality"] for entry in self.entries}
        return all(name in MODALITIES and not MODALITIES[name].oriented for name in names)

    def rows(self, part, class_id=None):
        """Row numbers of the "train" or "validation" part, of one data set if its class id is given."""
        return [e["row"] for e in self.entries if e["part"] == part and class_id in (None, e["class_id"])]

    def read(self, rows, device="cpu"):
        """B×1×D×H×W float volumes in 0..1 on the device; they travel as bytes, to a GPU with room for all of them once."""
        resident = self._resident(torch.device(device))
        if resident is not None:
            block = resident[torch.as_tensor(rows, device=device)]
        else:
            block = torch.from_numpy(np.stack([self.cubes[r] for r in rows])).to(device)
        return block[:, None].float().div_(255)

    def _resident(self, device):
        """All cubes on a GPU, if they filled less than an eighth of what was free when they were first read, or None."""
        if device.type != "cuda":
            return None
        if device not in self.resident:
            fits = self.cubes.nbytes <= torch.cuda.mem_get_info(device)[0] / 8
            self.resident[device] = torch.from_numpy(np.array(self.cubes)).to(device) if fits else None
        return self.resident[device]

    def read_masks(self, rows, device="cpu"):
        """(places in `rows` that have a mask, their masks as M×1×D×H×W floats 0 or 1)."""
        places = [i for i, row in enumerate(rows) if self.masks is not None and row in self._masked]
        if not places:
            return torch.zeros(0, dtype=torch.long), torch.zeros(0, 1, *self.shape, device=device)
        block = np.stack([self.masks[rows[i]] for i in places])
        return torch.tensor(places), torch.from_numpy(block).to(device)[:, None].float()

    @cached_property
    def _masked(self):
        return {e["row"] for e in self.entries if e.get("masked")}

    def files(self, rows):
        """The files behind rows, for messages."""
        by_row = {e["row"]: e["file"] for e in self.entries}
        return [by_row[int(r)] for r in rows]


def _fingerprint(sources, grid):
    what = [CACHE_VERSION, grid]
    for source in sources:
        for part, paths in (("train", source.train), ("validation", source.validation)):
            for path in paths:
                try:
                    state = os.stat(path)
                    what.append([source.class_id, source.modality, source.loader, part, str(path), state.st_size,
                                 int(state.st_mtime)])
                except OSError:
                    what.append([source.class_id, part, str(path), None])
                mask = mask_of(path, source.masks)
                if mask is not None:
                    what.append([str(mask), mask.stat().st_size, int(mask.stat().st_mtime)])
        for path in source.lists:
            what.append([str(path), hashlib.sha256(path.read_bytes()).hexdigest()])
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()


def mask_of(path, folder):
    """The mask of a scan in a folder of masks named like their scans, or None."""
    mask = Path(folder) / Path(path).name if folder else None
    return mask if mask is not None and mask.is_file() else None


def _prepare(task):
    """(bytes, what load says beside them, None) of one scan, or two None and the reason; runs in a worker process."""
    path, loader, modality, grid, mask = task
    try:
        cube, *rest = loaders.load(path, loader, modality, grid, mask)
        return np.round(cube * 255).astype(np.uint8), rest, None
    except Exception as error:  # any broken file must only cost itself
        return None, None, " ".join(str(error).split()) or type(error).__name__


def build(folder, sources, grid, workers=1, report=print):
    """Make (or find unchanged) the cache of all scans of `sources` in `folder` and open it.

    grid: {"size": (D, H, W), "spacing": mm, one number or three} of the model. Scans that cannot be used are skipped,
    counted and listed in skipped.txt. Raises InputError where no training scan is left.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    grid = {"size": [int(n) for n in grid["size"]], "spacing": grid["spacing"]}
    fingerprint = _fingerprint(sources, grid)
    index_file = folder / "index.json"
    if index_file.exists() and json.loads(index_file.read_text(encoding="utf-8"))["fingerprint"] == fingerprint:
        return open_cache(folder)
    tasks, about = [], []
    for source in sources:
        for part, paths in (("train", source.train), ("validation", source.validation)):
            for path in paths:
                tasks.append((str(path), source.loader, source.modality, grid, mask_of(path, source.masks)))
                about.append({"file": str(path), "part": part, "modality": source.modality,
                              "class_id": source.class_id})
    temporary = folder / f"cubes.{os.getpid()}.part"
    index_file.unlink(missing_ok=True)  # from here on an old index would not fit the cubes
    entries, skipped = [], []
    shape = (len(tasks), *grid["size"])
    masks, temporary_masks = None, folder / f"masks.{os.getpid()}.part"
    try:
        cubes = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape)
        if any(task[-1] is not None for task in tasks):
            masks = np.lib.format.open_memmap(temporary_masks, mode="w+", dtype=np.uint8, shape=shape)
        for number, (what, result) in enumerate(zip(about, _map(tasks, workers)), start=1):
            cube, rest, reason = result
            if reason is None:
                mean, covariance, inside, to_ras = rest
                cubes[len(entries)] = cube
                if inside is not None:
                    masks[len(entries)] = inside
                entries.append({"row": len(entries), **what, "mean": mean, "covariance": covariance,
                                "masked": inside is not None, "to_ras": to_ras})
            else:
                skipped.append({"file": what["file"], "reason": reason})
            if number % 50 == 0 or number == len(tasks):
                report(f"prepared {number} of {len(tasks)} scans, {len(skipped)} skipped")
        cubes.flush()
        del cubes
        os.replace(temporary, folder / "cubes.npy")
        if masks is not None:
            masks.flush()
            del masks
            os.replace(temporary_masks, folder / "masks.npy")
    finally:
        temporary.unlink(missing_ok=True)
        temporary_masks.unlink(missing_ok=True)
    find_partners(entries, [path for source in sources for path in source.lists])
    lines = "".join(f"{s['file']}\t{s['reason']}\n" for s in skipped)
    (folder / "skipped.txt").write_text(lines, encoding="utf-8")
    if skipped:
        report(f"{len(skipped)} of {len(tasks)} files cannot be used, see {folder / 'skipped.txt'}; the first: "
               f"{skipped[0]['file']}: {skipped[0]['reason']}")
    if not any(e["part"] == "train" for e in entries):
        raise InputError(f"None of the {len(tasks)} files can be used for training; the reasons are in "
                         f"{folder / 'skipped.txt'}.")
    index = {"fingerprint": fingerprint, "grid": grid, "entries": entries, "skipped": skipped}
    part = index_file.with_suffix(".part")
    part.write_text(json.dumps(index), encoding="utf-8")
    os.replace(part, index_file)
    return open_cache(folder)


def find_partners(entries, lists):
    """Give the entries that the lists (see PARTNERS) pair their "partners": [[row, normalized affine "theta" that takes
    their cube to the partner's], …]. Raises InputError for a line that is none."""
    by_file = {entry["file"]: entry for entry in entries}
    for path in dict.fromkeys(Path(p).resolve() for p in lists):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            try:
                first, second, *numbers = line.split("\t")
                matrix = geometry.as_affine(np.array(numbers, float).reshape(3, 4))
            except ValueError:
                raise InputError(f"{path}, line {number}: expected two files and 12 numbers.") from None
            pair = [by_file.get(str((path.parent / name).resolve())) for name in (first, second)]
            if None in pair or pair[0]["part"] != pair[1]["part"]:
                continue
            for (a, b), forward in ((pair, matrix), (pair[::-1], np.linalg.inv(matrix))):
                theta = geometry.world_to_theta(forward, np.array(a["to_ras"]), np.array(b["to_ras"]))
                a.setdefault("partners", []).append([b["row"], theta.tolist()])


def partners_line(first, second, matrix):
    """A line of a list of pairs (see PARTNERS) from two names and a 3×4 or 4×4 matrix."""
    return "\t".join([first, second, *(f"{value:.12g}" for value in np.asarray(matrix)[:3].ravel())]) + "\n"


def _map(tasks, workers):
    if workers <= 1:
        yield from map(_prepare, tasks)
    else:
        with ProcessPoolExecutor(workers) as pool:
            yield from pool.map(_prepare, tasks, chunksize=4)


def open_cache(folder):
    """Open a finished cache read-only."""
    folder = Path(folder)
    try:
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        cubes = np.load(folder / "cubes.npy", mmap_mode="r")
        masked = any(e.get("masked") for e in index["entries"])
        masks = np.load(folder / "masks.npy", mmap_mode="r") if masked else None
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} holds no usable cache ({error}).") from None
    entries = index["entries"]
    means = torch.tensor([e["mean"] for e in entries], dtype=torch.float32)
    covariances = torch.tensor([e["covariance"] for e in entries], dtype=torch.float32)
    return Cache(folder, cubes, entries, index["skipped"], index["grid"], means, covariances, masks)


@dataclass
class Collection:
    """The scans of one grid: their cache, the stream of training rows, the rows held out, the share of the batches."""

    cache: Cache
    sampler: "Sampler"
    held_out: list
    weight: float = 1.0

    @property
    def name(self):
        """The modalities it holds."""
        return "+".join(dict.fromkeys(entry["modality"] for entry in self.cache.entries))


# ------------------------------------------------------------------------------------------------ sampling
class Sampler:
    """An endless stream of rows: the n-th draw is a pure function of (seed, n), so a position is one number.

    groups: lists of rows (one per data set) with one weight each; a group gets its weight's share of the draws
    whatever its size. A group is gone through again and again in ever new orders, so every row comes equally
    often and nothing needs an epoch; blocks of draws mix the groups. Processes take their own parts of every
    global batch: see `batch`.
    """

    def __init__(self, groups, weights=None, seed=0):
        groups = [list(g) for g in groups]
        if not groups or any(not g for g in groups):
            raise ValueError("expected at least one row in every group")
        weights = np.asarray(weights if weights is not None else [1.0] * len(groups), float)
        if len(weights) != len(groups) or (weights <= 0).any():
            raise ValueError(f"expected {len(groups)} positive weights, got {weights.tolist()}")
        self.groups, self.seed = groups, int(seed)
        self.length = max(64, sum(len(g) for g in groups))
        exact = weights / weights.sum() * self.length
        counts = np.maximum(1, np.floor(exact).astype(int))
        self.length = int(counts.sum())
        self.counts = counts
        self._block = (None, None)

    def _rows_of_block(self, number):
        if self._block[0] != number:
            rows = []
            for index, (group, count) in enumerate(zip(self.groups, self.counts)):
                place = number * int(count)
                while place < (number + 1) * int(count):
                    turn, offset = divmod(place, len(group))
                    order = np.random.default_rng([self.seed, index, turn]).permutation(group)
                    rows.extend(order[offset : offset + (number + 1) * int(count) - place])
                    place += len(order) - offset
            self._block = (number, np.random.default_rng([self.seed, number]).permutation(np.array(rows)))
        return self._block[1]

    def draw(self, position, count):
        """Rows of the draws position … position + count - 1."""
        out = []
        while len(out) < count:
            block, offset = divmod(position + len(out), self.length)
            out += self._rows_of_block(block)[offset : offset + count - len(out)].tolist()
        return out

    def batch(self, step, size, rank=0, world=1):
        """The rows of this process in global batch `step` of world · size draws."""
        rows = self.draw(step * size * world, size * world)
        return rows[rank * size : (rank + 1) * size]
