"""Who is shown in which scan, told from the names of files and folders, and the split of scans by person.

A split of scans is worth something only if nobody is on both sides of it. Names follow many habits, so they are read in
this order: a table that the user gives; identifiers that archives agree on (BIDS ``sub-01``, ADNI, TCGA, OASIS); else
the part of the path that is left without words for visits, contrasts, sides and processing, and that varies.
"""

from __future__ import annotations

import csv
import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from SpatialDiffusionCore.errors import InputError
from SpatialDiffusionCore.files import extension
from SpatialDiffusionCore.spatial.volume_file import READ

#: Identifiers that archives agree on, anywhere in a path: BIDS, ADNI, TCGA, OASIS.
IDENTIFIERS = re.compile(
    r"(?P<bids>(?:[A-Za-z0-9.]+_)?sub-[A-Za-z0-9]+)|(?P<adni>\d{3}_S_\d{4})|(?P<tcga>TCGA-\w\w-\w{4})|(?P<oasis>OAS\d_\d{4})"
)

#: Words, alone or before a number, that say when, not who.
VISITS = (
    "ses|sess|session|visit|vis|tp|timepoint|time|scan|run|study|exam|day|week|wk|month|mo|year|yr|fu|followup|follow|"
    "up|baseline|bl|pre|post|rep|repeat|mr|series|ser|acq|echo|vol|test|retest"
)

#: Letters that do so before a number, after a name: p001_v2, p001/m12.
LETTERS = "v|d|m|y|w|s"

#: Words that say what was measured or done.
KINDS = (
    "t1|t1w|t1c|t1ce|t1gd|t1n|t2|t2w|t2f|t2star|flair|pd|pdw|dwi|adc|dti|asl|bold|func|swi|ct|cta|cect|mri|pet|us|"
    "mprage|mp2rage|space|tse|gre|img|image|anat|raw|orig|brain|head|masked|stripped|skullstripped|bet|n4|nu|norm|reg|"
    "registered|preproc|defaced|deface|nii|nifti|oct|octa|even|odd|ax|axial|sag|sagittal|cor|coronal|tra"
)

#: Words for sides of the body: both eyes or knees of a person belong together.
SIDES = "l|r|left|right|od|os|ou|lt|rt"

#: Folders that collect people and are no person, alone or before a number.
GROUPS = (
    "site|center|centre|scanner|batch|fold|set|part|group|disk|disc|dataset|data|train|training|val|validation|test"
)

_SEPARATORS = r"[/\s_\-.,+()\[\]]"
_NUMBERED = re.compile(rf"(?<![^\W_])(?:{VISITS})(?:{_SEPARATORS}*\d+)?(?![^\W_])", re.IGNORECASE)
_LETTERED = re.compile(rf"(?<={_SEPARATORS})(?:{LETTERS})\d+(?![^\W_])", re.IGNORECASE)
_WORDS = re.compile(rf"(?<![^\W_])(?:{KINDS}|{SIDES})(?![^\W_])", re.IGNORECASE)
_DATES = re.compile(r"(?<!\d)(?:19|20)\d\d[-_.]?(?:0[1-9]|1[0-2])[-_.]?(?:0[1-9]|[12]\d|3[01])(?!\d)")
_TIMES = re.compile(r"(?<!\d)(?:[01]\d|2[0-3])[-_.]?[0-5]\d[-_.]?[0-5]\d(?!\d)")
_YEAR = re.compile(r"(?:19|20)\d\d")
_GROUP = re.compile(rf"(?:{GROUPS}){_SEPARATORS}*\w?\d*", re.IGNORECASE)
_UID = re.compile(r"\d+(?:\.\d+){4,}")


@dataclass
class Split:
    """Scans to train with and scans held out, sorted; who is who, and what looks odd about it, in sentences."""

    train: list[Path]
    held_out: list[Path]
    people: dict[str, str] = field(repr=False)  # str(path) → person
    odd: list[str] = field(default_factory=list)

    def __iter__(self) -> Iterator[list[Path]]:
        """``train, held_out = split(paths)``."""
        return iter((self.train, self.held_out))

    def text(self) -> str:
        """One line for people."""
        counts = [(len({self.people[str(p)] for p in part}), len(part)) for part in (self.train, self.held_out)]
        example = max(self.people.values(), key=len, default="")
        (trained, scans), (kept, held) = counts
        return (
            f"split by person: {trained} people ({scans} scans) to train with, {kept} ({held} scans) held out; "
            f"a person is told by a name like {example!r}"
        )


def read_people(file: str | Path) -> dict[str, str]:
    """{file name or path: person} from a table of two columns, separated by tabs or commas: scan, person.

    Paths are relative to the table; a name without a folder stands for every scan of that name. A first line that
    begins with "file" or "scan" is a heading. Raises InputError that names the line.
    """
    file = Path(file)
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"The table of people {file} cannot be read ({error}).") from None
    found = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        columns = next(csv.reader([line], delimiter="\t" if "\t" in line else ","))
        if len(columns) < 2 or not all(column.strip() for column in columns[:2]):
            raise InputError(f"{file}, line {number}: expected a scan and its person, separated by a tab or a comma.")
        name, person = (column.strip() for column in columns[:2])
        if number == 1 and name.lower().startswith(("file", "scan", "path")):
            continue
        found[name if "/" not in name else os.path.abspath(file.parent / name)] = person
    return found


def people_of(paths: Sequence[str | Path], table: dict[str, str] | None = None) -> dict[str, str]:
    """{str(path): person} of scans. table: see read_people; scans that it does not name are told by their names."""
    names = [str(path) for path in paths]
    told = {}
    for name in names:
        person = (table or {}).get(os.path.abspath(name), (table or {}).get(os.path.basename(name)))
        if person is not None:
            told[name] = person
    left = [name for name in names if name not in told]
    root = os.path.commonpath([os.path.dirname(name) for name in left]) if left else ""
    parts = {name: _components(name, root) for name in left}
    persons = {name: _person(parts[name], visits=True) for name in left}
    if len(left) > 1 and len(set(persons.values())) == 1 and not any(map(_identified, parts.values())):
        # Nothing but visits tells them apart: then the visits are the people (and Split says that this is odd).
        persons = {name: _person(parts[name], visits=False) for name in left}
    return {name: told[name] if name in told else persons[name] for name in names}


def _components(name: str, root: str) -> list[str]:
    """The folders below the common root and the file's name without its ending."""
    parts = list(Path(os.path.relpath(name, root or ".")).parts)
    parts[-1] = _stem(parts[-1])
    return parts


def _stem(name: str) -> str:
    """A file's name without the ending of its format; that of a folder of DICOM slices as it is."""
    ending = extension(name)
    return name[: len(name) - len(ending)] if ending in READ else name


def _identified(parts: Iterable[str]) -> str:
    """The identifier that an archive agrees on, or ""."""
    for part in parts:
        match = IDENTIFIERS.search(part)
        if match:
            return match.group()
    return ""


def _clean(part: str, visits: bool, named: bool = False) -> str:
    """A component without words for visits, contrasts and sides; "" where nothing is left.

    named: whether a component before it already names somebody.
    """
    if _UID.fullmatch(part):
        return part
    left = _WORDS.sub("", part)
    if visits:
        # Words before dates: "day20200101" is no date of its own.
        left = _TIMES.sub("", _DATES.sub("", left)) if _DATES.search(left) else left
        left = "" if _YEAR.fullmatch(left) else _NUMBERED.sub("", left)
        left = _LETTERED.sub("", f"/{left}" if named else left) if left else left
    left = re.sub(rf"({_SEPARATORS})(?:{_SEPARATORS})+", r"\1", left)
    return re.sub(rf"^{_SEPARATORS}+|{_SEPARATORS}+$", "", left)


def _person(parts: Sequence[str], visits: bool) -> str:
    """Who a path's components name: the identifier, else what is left down to the first component with a number."""
    known = _identified(parts)
    if known:
        return known
    kept: list[str] = []
    for part in parts:
        cleaned = _clean(part, visits, bool(kept))
        if not cleaned:
            continue
        kept.append(cleaned)
        if any(letter.isdigit() for letter in cleaned) and not _GROUP.fullmatch(cleaned):
            break
    return "/".join(kept)


def split(
    paths: Sequence[str | Path],
    held_out: float = 0.1,
    table: dict[str, str] | None = None,
    known: dict[str, bool] | None = None,
) -> Split:
    """Split scans by person: the same on every machine, and nearly the same when scans are added.

    People are ranked by a hash of their name; those ranked first are held out until their scans are the share
    ``held_out``, never the only person, and no person with so many scans that most would be held out. known: {person:
    whether held out} of data sets that were split before; the same person stays on the same side, and it is added to.
    """
    people = people_of(paths, table)
    scans: dict[str, list[Path]] = {}
    for path in paths:
        scans.setdefault(people[str(path)], []).append(Path(path))
    root = os.path.basename(os.path.commonpath([os.path.dirname(str(p)) for p in paths])) if len(paths) else ""

    def rank(person: str) -> str:
        return hashlib.sha256(f"{root}/{person}".encode()).hexdigest()

    sides = known if known is not None else {}
    wanted = max(1, round(held_out * len(paths))) if held_out > 0 and len(scans) > 1 else 0
    held = [person for person in scans if sides.get(person)]
    free = sorted((person for person in scans if person not in sides), key=rank)
    count = sum(len(scans[person]) for person in held)
    most = min(2 * wanted, len(paths) // 2)
    for person in free:
        if count >= wanted:
            break
        if count + len(scans[person]) <= most and len(held) + 1 < len(scans):
            held.append(person)
            count += len(scans[person])
    if wanted and not held:  # everybody has many scans
        held = [min(free, key=lambda person: (len(scans[person]), rank(person)))] if free else []
    sides.update({person: person in held for person in scans})
    train = sorted(path for person, own in scans.items() if person not in held for path in own)
    kept = sorted(path for person in held for path in scans[person])
    return Split(train, kept, people, _odd(scans, wanted, len(kept), table))


def _odd(scans: dict[str, list[Path]], wanted: int, held: int, table: dict[str, str] | None) -> list[str]:
    """Sentences on what looks wrong about who is who."""
    total = sum(map(len, scans.values()))
    remedy = "; if that is wrong, name the people in a table: --people FILE.tsv"
    found: list[str] = []
    sizes = Counter({person: len(own) for person, own in scans.items()})
    if not sizes or total < 2:
        return found
    largest, most = sizes.most_common(1)[0]
    if len(scans) == 1:
        found.append(f"All {total} scans are taken for one person ({largest!r}), so none can be held out{remedy}.")
    elif most > max(8, 0.3 * total) and most > 2 * sorted(sizes.values())[-2]:
        found.append(f"{most} of {total} scans are taken for one person ({largest!r}){remedy}.")
    if any(_UID.fullmatch(person.split("/")[-1]) for person in scans) and not table:
        found.append(
            f"Names are UIDs, which do not say who is who; every scan is taken for a person of its own{remedy}."
        )
    one = {person: own[0] for person, own in scans.items()}
    if len(scans) == total > 1 and not table:
        visits = [person for person, path in one.items() if _only_a_visit(path)]
        if len(visits) == total:
            found.append(
                f"Names differ in a visit or session only; every scan is taken for a person of its own{remedy}."
            )
    if wanted and not wanted / 2 <= held <= 2 * wanted and len(scans) > 1:
        found.append(f"{held} of {total} scans are held out where {wanted} were wanted{remedy}.")
    return found


def _only_a_visit(path: Path) -> bool:
    """Whether a name holds a visit with a number and no other number."""
    name = _stem(path.name)
    return bool(_NUMBERED.search(name)) and not any(map(str.isdigit, _clean(name, visits=True)))
