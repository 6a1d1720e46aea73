"""Who belongs to which half: the committed list of the volumes of task ``anatomies``, split by person or animal.

One half of each collection is locked for the report and looked at for nothing else; the other is for development, and
in it those that no network was trained on and no other table reports may calibrate the score. ``subjects.tsv`` is
made by ``python -m Benchmark subjects --data DIR`` and committed, so that the split is the same for everybody.
"""

from __future__ import annotations

import csv
import hashlib
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from SpatialDiffusionCore.errors import InputError

from .cases import data_root, left_out, stem

SUBJECTS = Path(__file__).with_name("subjects.tsv")

#: The halves, as the file has them.
REPORT, DEVELOPMENT = "report", "development"

#: Collections of which a few volumes are all there is: every one is for development.
SINGLE = ("chest-ct", "torso-ct", "templates")

#: T1 scans that training leaves out and that other tasks of the benchmark report (hard, steps, models, hopeless, and
#: as heads the task heads).
IN_TABLES = (
    *("ds002748_sub-13", "ds002748_sub-24", "ds002748_sub-46", "ds002748_sub-60", "oasis_1038", "oasis_1039"),
    *(f"ixi_{n}" for n in ("014", "067", "127", "132", "163", "204", "205", "221", "256", "385")),
)

#: Every so many of the scans that a network was trained on takes part in the development half.
EVERY_TRAINED = 9


@dataclass(frozen=True)
class Subject:
    """A volume of a person or an animal.

    path: relative to the data's folder. half: "report" or "development". network: "seen" where a bundled network was
    trained on the person. tables: "used" where another table of the report shows the person.
    """

    collection: str
    person: str
    half: str
    network: str
    tables: str
    path: str

    @property
    def name(self) -> str:
        """The file's name without its extension."""
        return stem(self.path)

    @property
    def calibrates(self) -> bool:
        """Whether the score may be fitted on this person's answers."""
        return self.half == DEVELOPMENT and self.network == "unseen" and self.tables == "unused"


def read(path: Path = SUBJECTS) -> list[Subject]:
    """The committed list."""
    with open(path, encoding="utf-8", newline="") as file:
        return [Subject(**row) for row in csv.DictReader(file, delimiter="\t")]


def check_half(half: str) -> str:
    """The half itself; raises InputError where there is none of that name."""
    if half not in (REPORT, DEVELOPMENT):
        raise InputError(f"Unknown half {half!r}; choose {DEVELOPMENT} or {REPORT}.")
    return half


def _rank(person: str) -> str:
    return hashlib.sha256(f"anatomies/{person}".encode()).hexdigest()


def locked(persons: list[str], share: float = 0.5) -> set[str]:
    """The persons whose names' hashes are the lowest: half of them, one fewer where their number is odd."""
    return set(sorted(persons, key=_rank)[: int(share * len(persons))])


def _breadth(root: Path) -> list[tuple]:
    """(collection, person, seen by a network, path) of the volumes in ``breadth``."""
    kinds = {"mouse_brain": "mouse-brain", "mouse_skull": "mouse-skull", "spine": "spine"}
    found = []
    for path in sorted((root / "breadth").iterdir()):
        if not path.name.endswith((".nii.gz", ".mha")) or "_labels" in path.name:
            continue
        kind = next((kinds[k] for k in kinds if path.name.startswith(k)), None)
        if kind is None:
            kind = "chest-ct" if path.name.startswith("lung") else "torso-ct"
        found.append((kind, stem(path) if kind in kinds.values() else kind, False, path))
    return found


def _template_person(name: str) -> str:
    return "colin27" if name.startswith("colin27") else "mni152" if name[:3] in ("mni", "avg") else stem(name)


def _heads_and_necks(root: Path) -> list[tuple]:
    """The same of the folders of heads and necks; of scans that a network was trained on, some."""
    found = []
    for folder, collection in (("t1", "t1"), ("ct_head_neck", "neck-ct")):
        unseen, trained = left_out(root, folder)
        # The people of ds000011 are in t2, too, and stay in the half that they have there.
        trained = [path for path in trained if not path.name.startswith("ds000011")][::EVERY_TRAINED]
        found += [(collection, stem(path), path in trained, root / folder / path.name) for path in trained + unseen]
    for folder, collection in (("t2", "t2"), ("t2_neck", "t2-neck")):
        found += [(collection, stem(path), True, path) for path in sorted((root / folder).glob("*.nii.gz"))]
    for path in sorted((root / "multi").glob("*.nii.gz")):
        person = "adi" if path.name.startswith("adi") else "-".join(path.name.split("_")[:2])
        found.append(("multi", person, True, path))
    for path in sorted((root / "templates").glob("*.nii.gz")):
        found.append(("templates", _template_person(path.name), True, path))
    return found


def _halves(rows: list[tuple]) -> dict[str, str]:
    """person → half. Where networks saw some of a collection's people and not others, half of the others are locked;
    of the T1 scans those come first that other tables report anyway."""
    halves: dict[str, str] = {}
    for collection in dict.fromkeys(row[0] for row in rows):
        mine = [row for row in rows if row[0] == collection]
        unseen = sorted({row[1] for row in mine if not row[2]})
        persons = unseen or sorted({row[1] for row in mine})
        chosen: set[str] = set()
        if collection not in SINGLE:
            shown = [person for person in persons if person in IN_TABLES]
            share = len(persons) / (2 * len(shown)) if shown else 0.5
            chosen = locked(shown or persons, min(1.0, share))
        halves.update({row[1]: REPORT if row[1] in chosen else DEVELOPMENT for row in mine})
    return halves


def make_subjects(data: str, path: Path = SUBJECTS) -> int:
    """Write the list for a folder of data; returns how many volumes it names."""
    root = data_root(data)
    rows = _breadth(root) + _heads_and_necks(root)
    halves = _halves(rows)
    subjects = [
        Subject(
            collection,
            person,
            halves[person],
            "seen" if seen else "unseen",
            "used" if person in IN_TABLES else "unused",
            file.relative_to(root).as_posix(),
        )
        for collection, person, seen, file in rows
    ]
    names = [field.name for field in fields(Subject)]
    lines = ["\t".join(names)] + ["\t".join(astuple(subject)) for subject in subjects]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return len(subjects)
