"""Pairs of two people whose heads or necks have no labels (task ``anatomies``): what stands for the truth.

Two peers register them from the scans' own headers, which nearly agree; where both end within a few millimeters of each
other, their median is taken for the truth (people.json, made by ``python -m Benchmark consensus --people``).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from SpatialDiffusionCore.spatial import geometry

from . import contrast, subjects
from .subjects import Subject

PEOPLE = Path(__file__).with_name("people.json")

#: The peers that are asked.
PEERS = ("greedy", "reg-aladin")

#: Collections and how their files' names begin: whole heads with whole heads, necks with necks.
FAMILIES = (("t1", "ixi"), ("neck-ct", "openkbp"))

#: So many people of each family and half stand in a ring, those first that may calibrate.
MOST = 9


def rings(mine: list[Subject]) -> Iterator[tuple[Subject, Subject]]:
    """Each person of a family with the next one, apart by half; who may calibrate only with others who may."""
    for half in (subjects.REPORT, subjects.DEVELOPMENT):
        for collection, start in FAMILIES:
            family = [s for s in mine if (s.half, s.collection) == (half, collection) and s.name.startswith(start)]
            able = [s for s in family if s.calibrates]
            ring = (able or [s for s in family if s.network == "unseen"])[:MOST]
            if len(ring) > 1:
                yield from zip(ring, ring[1:] + ring[:1] if len(ring) > 2 else ring[1:])


def known(mine: list[Subject]) -> Iterator[tuple[Subject, Subject, np.ndarray]]:
    """(moving, fixed, 4×4 moving → fixed RAS under the files' own headers) of the pairs that the peers agree on."""
    table = json.loads(PEOPLE.read_text(encoding="utf-8")) if PEOPLE.is_file() else {}
    for moving, fixed in rings(mine):
        entry = table.get(contrast.pair_name(_plain(moving), _plain(fixed)))
        if entry is not None and entry["matrix"] is not None:
            yield moving, fixed, geometry.as_affine(entry["matrix"])


def _plain(subject: Subject) -> str:
    return subject.path.split(".")[0]


def make_people(data: str, python: str, log: str | None = None) -> None:
    """Ask the peers for every pair that the file lacks."""
    pairs = [(_plain(moving), _plain(fixed)) for moving, fixed in rings(subjects.read())]
    contrast.make_consensus(data, python, PEOPLE, log, pairs=pairs, peers=PEERS)
