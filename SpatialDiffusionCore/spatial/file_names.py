"""What several files are called, so that none overwrites another's outputs."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ..errors import InputError
from .volume_file import stem

#: A part of a path that says whose volume it is, in the manner of BIDS: sub-01, ses-2, run-3.
_ENTITY = re.compile(r"(sub|ses|sample|task|acq|ce|rec|dir|run|echo|space|res|desc)-[a-zA-Z0-9]+")


def unique_names(paths: Sequence[str]) -> list[str]:
    """What each volume is called: its stem; where stems are the same, with what tells them apart.

    That is the entities (sub-01, ses-2) in the folders' names if they suffice, else the names of the folders, from the
    nearest one on; of files in one folder their endings. Raises InputError where the same volume is given twice.
    """
    counted = Counter(os.path.realpath(path) for path in paths)
    twice = next((path for path in paths if counted[os.path.realpath(path)] > 1), None)
    if twice is not None:
        raise InputError(f"{twice} is given twice; name each volume once.")
    plain = [stem(path) for path in paths]
    folders = [Path(os.path.abspath(path)).parts[1:-1] for path in paths]
    entities = [[part for part in parts if _ENTITY.fullmatch(part)] for parts in folders]
    longer = [[*(part for part in own if part not in name), name] for own, name in zip(entities, plain)]
    names = _where_shared(plain, ["_".join(parts) for parts in longer])
    depth = 0
    while _shared(names) and depth < max(map(len, folders)):
        depth += 1
        names = _where_shared(names, ["_".join([*parts[-depth:], name]) for parts, name in zip(folders, plain)])
    if _shared(names):
        kinds = [path[path.rindex(name) + len(name) :].strip(".").replace(".", "_") for path, name in zip(paths, plain)]
        names = [f"{name}_{kind}" if name in _shared(plain) else name for name, kind in zip(plain, kinds)]
    return numbered(names)


def _where_shared(names: Sequence[str], others: Sequence[str]) -> list[str]:
    """The other name for each that is shared."""
    shared = _shared(names)
    return [other if name in shared else name for name, other in zip(names, others)]


def _shared(names: Sequence[str]) -> set[str]:
    """Names that occur more than once; capitals do not tell files apart everywhere."""
    counted = Counter(name.lower() for name in names)
    return {name for name in names if counted[name.lower()] > 1}


def numbered(names: Sequence[str]) -> list[str]:
    """The same names, those that occur several times with a number behind; capitals do not tell names apart."""
    taken = {name.lower() for name in names}
    shared, found = _shared(names), []
    for name in names:
        number = 1
        chosen = name
        while name in shared and (chosen == name or chosen.lower() in taken):
            chosen, number = f"{name}_{number}", number + 1
        taken.add(chosen.lower())
        found.append(chosen)
    return found
