"""Writing the review page: pictures of each pair, what is known of it, and the page around them.

The folder holds ``index.html`` with its style and script, ``data.js``, and in ``figures/`` three planes of each pair,
named as fMRIPrep names its figures: ``<pair>_view-axial_desc-moved.jpg``. Pairs are added one by one, by several
processes if need be, each with a small file in ``pairs/``; ``finish`` puts the page together from what is there.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..files import written_whole
from ..modelfile import catalog
from ..picture import planes
from ..spatial.sampling import prepare
from ..spatial.volume import Volume

#: Pixels of a picture and of a thumbnail; JPEG quality. 500 pairs take some 40 MB.
SIZE, THUMBNAIL, QUALITY = 360, 96, 82

VIEWS, VIEWS_OF_SCANS = ("axial", "coronal", "sagittal"), ("lateral", "lateral2", "front")

#: How likely an answer is wrong where it has no probability: by its word, for the order of the table only.
RISK = {"good": 0.05, "fair": 0.4, "poor": 0.9, "failed": 1.0}


def prepare_folder(folder: Any) -> Path:
    """Make the folder for a page; raises InputError where it holds something else, or cannot be made."""
    path = Path(folder)
    if path.is_dir():
        others = [one.name for one in path.iterdir() if one.name not in _OWN]
        if others and not (path / "data.js").is_file():
            raise InputError(f"{path} holds other files ({others[0]}); give a new or an empty folder for the page.")
    elif path.exists() or not path.absolute().parent.is_dir():
        raise InputError(f"{path} cannot be made; give a folder whose parent exists.")
    try:
        for one in (path, path / "figures", path / "pairs"):
            one.mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(f"{path} cannot be made ({error.strerror}); choose another folder.") from error
    return path


_ASSETS = ("index.html", "review.css", "review.js")
_OWN = {*_ASSETS, "data.js", "figures", "pairs"}


def add_pair(
    folder: Any, key: str, moving: Volume, fixed: Volume, matrix: np.ndarray, facts: Mapping[str, Any],
    oriented: bool = True,
) -> dict:  # fmt: skip
    """Draw a pair and write what is known of it; returns its row.

    key: its name in file names (unique); matrix: 4×4, moving → fixed, RAS mm. facts: word ("good" …), probability
    (that the answer is right, 0…1, or None), and anything else that the page lists, such as similarity or warnings.
    """
    path, name = Path(folder), safe_name(key)
    known = prepare(fixed), prepare(moving)
    views = VIEWS if oriented else VIEWS_OF_SCANS
    states = {
        "before": planes(*known, np.eye(4), SIZE, oriented),
        "moved": planes(*known, np.linalg.inv(matrix), SIZE, oriented),
    }
    figures: dict = {}
    for index, view in enumerate(views):
        gray = {"fixed": states["moved"][index].fixed, **{k: drawn[index].moving for k, drawn in states.items()}}
        figures[view] = {state: _save_gray(values, path, name, view, state) for state, values in gray.items()}
    middle = states["moved"][0]
    overlay = np.stack([middle.moving, middle.fixed, middle.moving], axis=-1)
    figures["thumbnail"] = _save(overlay, path / "figures" / f"{name}_desc-thumbnail.jpg", THUMBNAIL)
    row = {"id": name, "moving": moving.name, "fixed": fixed.name, **facts, "figures": figures, "views": list(views)}
    row["risk"] = risk(facts)
    _write_row(path, row)
    return row


def add_failure(folder: Any, key: str, moving: str, fixed: str, reason: str) -> dict:
    """A row without pictures for a pair that could not be registered."""
    row: dict = {"id": safe_name(key), "moving": moving, "fixed": fixed, "word": "failed", "probability": None}
    row.update({"warnings": [reason], "figures": {}, "views": [], "risk": 1.0})
    _write_row(Path(folder), row)
    return row


def _write_row(path: Path, row: dict) -> None:
    with written_whole(path / "pairs" / f"{row['id']}.json") as temporary:
        temporary.write_text(json.dumps(row), encoding="utf-8")


def risk(facts: Mapping[str, Any]) -> float:
    """Probability that an answer is wrong, 0…1; where none is known what its word stands for."""
    probability = facts.get("probability")
    if probability is not None and np.isfinite(probability):
        return float(1 - probability)
    return RISK.get(str(facts.get("word")), 0.5)


def finish(folder: Any, title: str) -> Path:
    """Put the page together from the pairs that are there; returns the path of index.html."""
    path = Path(folder)
    rows = []
    for file in sorted((path / "pairs").glob("*.json")):
        if not file.name.startswith("."):
            rows.append(json.loads(file.read_text(encoding="utf-8")))
    if not rows:
        raise InputError(f"{path} holds no pairs to review.")
    rows.sort(key=lambda row: (-row["risk"], row["id"]))
    # What a person decided belongs to these answers: other answers are another page.
    digest = hashlib.blake2b(json.dumps(rows, sort_keys=True).encode(), digest_size=8).hexdigest()
    text = json.dumps({"title": title, "run": digest, "pairs": rows})  # ASCII, so that it is a script as well
    with written_whole(path / "data.js") as temporary:
        temporary.write_text(f"window.REVIEW = {text};\n", encoding="ascii")
    for asset in _ASSETS:
        with written_whole(path / asset) as temporary:
            shutil.copyfile(Path(__file__).parent / asset, temporary)
    return path / "index.html"


def add_registration(folder: Any, key: str, result: Any, moving: Volume, fixed: Volume) -> dict:
    """Add the answer of ``register``."""
    quality = result.quality
    facts = {
        "word": quality.confidence,
        "probability": getattr(quality, "probability", None),
        "similarity_before": quality.similarity_before,
        "similarity": quality.similarity_after,
        "overlap": quality.overlap,
        "why": quality.why(),
        "in_words": result.decomposition.text(),
        "warnings": list(quality.warnings),
    }
    oriented = all(catalog.get(one).oriented for one in result.modality)
    return add_pair(folder, key, moving, fixed, result.matrix, facts, oriented)


def review_series(result: Any, folder: Any) -> Path:
    """The page of a SeriesRegistration: each frame on the reference frame, doubtful ones first."""
    *_, page = review_series_steps(result, folder)
    return page


def review_series_steps(result: Any, folder: Any, first: int = 0) -> Iterator[Path]:
    """As ``review_series``, frame by frame: yields the page's path after each, and once it is there.

    first: the number that people give the first frame.
    """
    path = prepare_folder(folder)
    page = path / "index.html"
    series, parameters = result.series, result.parameters
    fixed = Volume(series.frame(result.reference), series.voxel_to_ras, f"frame {result.reference + first}")
    for index, matrix in enumerate(result.matrices):
        values = np.nan_to_num(series.frame(index), posinf=0.0, neginf=0.0)
        name, why = f"frame {index + first}", result.doubts.get(index)
        key = f"{_short(series.name)}_frame-{index + first:04d}"
        if values.max() == values.min():
            add_failure(path, key, name, fixed.name, why or "it is empty")
            yield page
            continue
        shift, turn = np.linalg.norm(parameters[index, :3]), np.degrees(np.linalg.norm(parameters[index, 3:]))
        facts = {
            "word": "poor" if why else "good",
            "probability": None,
            "similarity": float(result.similarity[index]),
            "in_words": f"moved {shift:.2f} mm, turned {turn:.2f}°",
            "warnings": [why] if why else [],
        }
        add_pair(path, key, Volume(values, series.voxel_to_ras, name), fixed, matrix, facts)
        yield page
    yield finish(path, f"Motion of {series.name}")


def review_group(result: Any, folder: Any) -> Path:
    """The page of a GroupRegistration: each volume on the mean image, doubtful ones first."""
    path, mean = prepare_folder(folder), result.mean()
    mean = Volume(mean.data, mean.voxel_to_ras, "group mean")
    for index, key in enumerate(result.stems):
        why = result.doubts.get(index)
        error = float(result.cycle_error[index])
        facts = {
            "word": "poor" if why else "good",
            "probability": None,
            "cycle_error_mm": error if np.isfinite(error) else None,
            "in_words": "" if not np.isfinite(error) else f"cycle error {error:.2f} mm",
            "warnings": [why] if why else [],
        }
        add_pair(path, key, result.volume(index), mean, result.matrices[index], facts)
    return finish(path, f"Group of {len(result.names)} volumes")


def safe_name(text: str) -> str:
    """A name for files on every system: letters, digits, dot, dash and underscore; a digest where others were lost."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.")[:120]
    if name != text:
        name = f"{name}-{hashlib.blake2b(text.encode(errors='surrogateescape'), digest_size=3).hexdigest()}".strip("-")
    return name


def _short(name: str) -> str:
    return re.sub(r"(\.seq)?\.(nii|nrrd|nhdr|mha|mhd)(\.gz)?$", "", name, flags=re.IGNORECASE)


def _save_gray(values: np.ndarray, path: Path, name: str, view: str, state: str) -> str:
    if state == "fixed":  # the same for all pairs that share a fixed volume
        name = "fixed-" + hashlib.blake2b(np.ascontiguousarray(values).tobytes(), digest_size=8).hexdigest()
        target = path / "figures" / f"{name}_view-{view}.jpg"
        if target.is_file():
            return f"figures/{target.name}"
    else:
        target = path / "figures" / f"{name}_view-{view}_desc-{state}.jpg"
    return _save(values, target)


def _save(values: np.ndarray, target: Path, size: int | None = None) -> str:
    from PIL import Image

    picture = Image.fromarray((np.clip(values, 0, 1) * 255).round().astype(np.uint8))
    if size is not None:
        picture = picture.resize((size, size), Image.Resampling.LANCZOS)
    with written_whole(target) as temporary:
        picture.save(temporary, format="JPEG", quality=QUALITY, optimize=True)
    return f"figures/{target.name}"
