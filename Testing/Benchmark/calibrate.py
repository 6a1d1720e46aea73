"""``python -m Benchmark calibrate``: fits the probability that an answer is right, and says how true it is.

Rows come from ``python -m Benchmark anatomies --calibration``: final answers on people and animals that no bundled
network saw and no table shows. They are committed (evidence.tsv), so that the coefficients can be derived again.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from SpatialDiffusionCore.errors import InputError

from . import anatomy_report, anatomy_run, calibration, subjects
from .calibration_report import Judged, draw, judged_of, text

#: The committed rows.
ROWS = Path(__file__).with_name("evidence.tsv")

#: Digits of the figures in the table.
DIGITS = 5

#: A strategy gets coefficients of its own from so many right and so many wrong answers on; the others share those of
#: "any". Chosen: about ten of each for every figure that usually counts would be better, and is not there.
ENOUGH = 20

#: Largest shares of wrong answers: the upper 95 % bound among those called good, the share among those called fair.
GOOD, FAIR = 0.005, 0.10


@dataclass(frozen=True)
class Row:
    """A final answer: its case, the strategy, whether it was right, and the figures of Evidence."""

    case: str
    strategy: str
    right: bool
    evidence: dict

    @property
    def people(self) -> set[str]:
        """The people or animals that the case shows."""
        return people_of(self.case)


def people_of(case: str) -> set[str]:
    """The persons of the volumes that a case's name says; phantom eyes (eye_rows.py) are persons of their own."""
    if case.split("/")[2].startswith("eye_"):
        return set(case.split("/")[2].split("-"))
    person = {subject.name: subject.person for subject in subjects.read()}
    what = case.split("/")[2]
    if what in person:
        return {person[what]}
    for place in (i for i, letter in enumerate(what) if letter == "-"):
        if what[:place] in person and what[place + 1 :] in person:
            return {person[what[:place]], person[what[place + 1 :]]}
    raise InputError(f"{case} is no case of task anatomies: its volumes are not in {subjects.SUBJECTS.name}.")


# --- rows --------------------------------------------------------------------------------------------------


def rows_of(records: Sequence[dict]) -> list[Row]:
    """The rows of a run's records; crashes have no evidence, and an answer neither right nor wrong takes no side.

    Raises InputError where a person may not calibrate.
    """
    from SpatialDiffusionCore.strategies.registry import strategy_of

    able = {subject.person for subject in subjects.read() if subject.calibrates}
    rows = []
    for record in records:
        people = {person for person in people_of(record["case"]) if not person.startswith("eye_")}
        if not people <= able:
            raise InputError(f"{record['case']} shows somebody who may not calibrate; run anatomies --calibration.")
        if "error" not in record and (record["success"] or record["wrong"]):
            strategy = strategy_of(*record["modality"]).name
            evidence = {name: _kept(value) for name, value in record["quality"]["evidence"].items()}
            rows.append(Row(record["case"], strategy, bool(record["success"]), evidence))
    return sorted(rows, key=lambda row: row.case)


def _kept(value: float | None) -> float | None:
    """A figure with the digits that the table keeps, so that the same coefficients follow from both."""
    return None if value is None else float(f"{value:.{DIGITS}g}")


def write_rows(rows: Sequence[Row], path: Path = ROWS) -> None:
    """A table: case, strategy, right, then the figures (empty where unknown)."""
    names = list(rows[0].evidence)
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(["case", "strategy", "right", *names])
        for row in rows:
            figures = ["" if row.evidence[n] is None else f"{row.evidence[n]:.{DIGITS}g}" for n in names]
            writer.writerow([row.case, row.strategy, int(row.right), *figures])


def read_rows(path: Path = ROWS) -> list[Row]:
    """What ``write_rows`` wrote."""
    rows = []
    with open(path, encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file, delimiter="\t"):
            case, strategy, right = (line.pop(name) for name in ("case", "strategy", "right"))
            evidence = {name: float(text) if text else None for name, text in line.items()}
            rows.append(Row(case, strategy, right == "1", evidence))
    return rows


# --- the fit -----------------------------------------------------------------------------------------------


def figures_of(rows: Sequence[Row]) -> list[dict]:
    """What the core's regression weighs, of each row."""
    from SpatialDiffusionCore.pipeline.confidence import features
    from SpatialDiffusionCore.pipeline.evidence import Evidence

    return [features(Evidence.from_dict(row.evidence)) for row in rows]


def groups(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """strategy → its rows; those of strategies with too few right or wrong answers are with "any"."""
    by_strategy: dict[str, list[Row]] = {}
    for row in rows:
        by_strategy.setdefault(row.strategy, []).append(row)
    found: dict[str, list[Row]] = {"any": []}
    for strategy, mine in sorted(by_strategy.items()):
        right = sum(row.right for row in mine)
        alone = strategy != "any" and min(right, len(mine) - right) >= ENOUGH
        found.setdefault(strategy if alone else "any", []).extend(mine)
    return {strategy: mine for strategy, mine in found.items() if mine}


def coefficients(rows: Sequence[Row]) -> dict[str, dict]:
    """strategy → its fit with the numbers of rows and people behind it."""
    fits = {}
    for strategy, mine in groups(rows).items():
        fitted = calibration.fit(figures_of(mine), [row.right for row in mine])
        people = set().union(*(row.people for row in mine))
        wrong = sum(not row.right for row in mine)
        fits[strategy] = {**fitted, "n": len(mine), "wrong": wrong, "subjects": len(people)}
    return fits


def held_out(rows: Sequence[Row]) -> tuple[list[Row], np.ndarray]:
    """(rows, the probability of each by a fit to other people), where there is one."""
    kept, chances = [], []
    for mine in groups(rows).values():
        found = calibration.left_out(figures_of(mine), [r.right for r in mine], [r.people for r in mine])
        kept += [row for row, chance in zip(mine, found) if np.isfinite(chance)]
        chances += [chance for chance in found if np.isfinite(chance)]
    return kept, np.array(chances)


# --- the command -------------------------------------------------------------------------------------------


def add_command(commands: Any) -> None:
    """The command's options."""
    parser = commands.add_parser("calibrate", help="fit the probability that an answer is right, and judge it")
    parser.add_argument("--from", dest="files", nargs="+", metavar="FILE.jsonl", help="of anatomies --calibration")
    parser.add_argument(
        "--judge", nargs="+", metavar="FILE.jsonl", help="no fit: how true the probabilities in these are"
    )
    parser.add_argument("--write", action="store_true", help=f"write {ROWS.name} and the core's confidence.json")
    parser.add_argument("--cut-offs", action="store_true", help="with --write: the words' cut-offs, too")
    parser.add_argument("--figure", metavar="FILE.png", help="the reliability diagram")


def run(arguments: argparse.Namespace) -> None:
    """Do what the command line says."""
    if arguments.judge:
        for name in ("files", "write", "cut_offs"):
            if getattr(arguments, name):
                raise InputError(f"--{name.replace('files', 'from').replace('_', '-')} has no effect beside --judge.")
        records = _records(arguments.judge)
        judged = judged_of(records)
        if not judged:
            raise InputError("No answer in these files has a probability.")
        print(anatomy_report.text(records), *text(judged), sep="\n\n")
    else:
        judged = _fit(arguments)
    if arguments.figure:
        draw(judged, Path(arguments.figure))


def _records(files: Sequence[str]) -> list[dict]:
    missing = [file for file in files if not Path(file).is_file()]
    if missing:
        raise InputError(f"{missing[0]} does not exist.")
    return [record for file in files for record in anatomy_run.read(Path(file)).values()]


def _fit(arguments: argparse.Namespace) -> list[Judged]:
    if arguments.write and not arguments.files:
        raise InputError("--write needs --from with the records of a run to write.")
    if arguments.cut_offs and not arguments.write:
        raise InputError("--cut-offs has no effect without --write; the cut-offs are printed in any case.")
    rows = rows_of(_records(arguments.files)) if arguments.files else read_rows()
    try:
        fits = coefficients(rows)
    except ValueError as error:
        raise InputError(f"These rows cannot be fitted: {error}.") from None
    kept, chances = held_out(rows)
    judged = [Judged(row.case, float(chance), row.right) for row, chance in zip(kept, chances)]
    for strategy, fitted in fits.items():
        print(f"{strategy}: {json.dumps(fitted)}")
    print("\nBy fits to other people:", *text(judged), sep="\n\n")
    offs = cut_offs(judged, coefficients_of_the_core()["cutoffs"]["good"])
    print(f"\nLowest probabilities from which wrong ones are at most {GOOD:.1%} (good) and {FAIR:.0%} (fair): {offs}")
    if arguments.write:
        write(rows, fits, offs if arguments.cut_offs else {})
    return judged


def cut_offs(judged: Sequence[Judged], good: float) -> dict[str, float | None]:
    """The lowest probabilities for "good" and "fair"; None where there are too few answers to tell.

    Of answers that are not good, ``good`` standing for a cut-off that can't be told, at most the share FAIR is wrong
    among those called fair; answers that are likelier wrong than right are never fair.
    """
    chances, right = np.array([j.chance for j in judged]), np.array([j.right for j in judged])
    found = calibration.cut_off(chances, right, GOOD)
    rest = chances < (good if found is None else found)
    fair = calibration.cut_off(chances[rest], right[rest], FAIR, bound=False)
    return {"good": found, "fair": None if fair is None else max(fair, 0.5)}


def coefficients_of_the_core() -> dict:
    """What the core's confidence.json holds, whatever version of the evidence it was fitted to."""
    from SpatialDiffusionCore.pipeline import confidence

    return json.loads(confidence.COEFFICIENTS.read_text(encoding="utf-8"))


def write(rows: Sequence[Row], fits: dict[str, dict], offs: dict[str, float | None]) -> None:
    """Write the table of rows and the core's coefficients; cut-offs that could not be told stay as they are."""
    from SpatialDiffusionCore.pipeline import confidence
    from SpatialDiffusionCore.pipeline.evidence import VERSION

    write_rows(rows)
    before = coefficients_of_the_core()
    cutoffs = {**before["cutoffs"], **{name: round(value, 4) for name, value in offs.items() if value is not None}}
    date = time.strftime("%Y-%m-%d")
    content = {
        "evidence_version": VERSION,
        "cutoffs": cutoffs,
        "strategies": {strategy: {**fitted, "date": date} for strategy, fitted in fits.items()},
    }
    confidence.COEFFICIENTS.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {ROWS} and {confidence.COEFFICIENTS}")
