"""The work of one moving volume: registered, written, and put on record; in this process or in another.

What is done is known by the content of the input files and by everything that decides the answer. The record of a
volume lies in ``.spatial-diffusion/`` in the folder of its outputs, so that several runs, and the tasks of an array on
a cluster, need no common file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..report import row as row_of
from .outputs import write_outputs

RECORDS = ".spatial-diffusion"


@dataclass(frozen=True)
class Common:
    """What is the same for all moving volumes of a command: the paths of its files, and the options (name, value).

    init: 4×4, moving → fixed, as rows; changed: when the files changed last. format: of the transforms; review: the
    folder of the page, or None.
    """

    fixed: str
    fixed_mask: str | None
    moving_mask: str | None
    init: tuple | None
    options: tuple
    format: str | None
    review: str | None
    changed: tuple = ()

    @classmethod
    def of(cls, arguments: Any, options: dict, init: Any = None) -> Common:
        """What a command line says."""
        files = (arguments.fixed, arguments.fixed_mask, arguments.moving_mask)
        changed = tuple(os.stat(path).st_mtime_ns if path and os.path.exists(path) else 0 for path in files)
        rows = None if init is None else tuple(map(tuple, init.tolist()))
        model = options.get("model")
        if model and os.path.isfile(model):
            options = {**options, "model": os.path.abspath(model)}
        settings = tuple(sorted(options.items()))
        return cls(*files, rows, settings, arguments.format, arguments.review, changed)


@dataclass(frozen=True)
class Job:
    """A moving volume's file, its name in file names, {option: path} to write, and the file of its record (or None)."""

    common: Common
    moving: str
    name: str
    plan: dict
    record: str | None = None

    def absolute(self) -> Job:
        """The same for a process that may work in another folder."""
        common = replace(
            self.common, **{name: _absolute(getattr(self.common, name)) for name in ("fixed", *_MASKS, "review")}
        )
        plan = {option: os.path.abspath(path) for option, path in self.plan.items()}
        return replace(self, common=common, moving=_absolute(self.moving), plan=plan, record=_absolute(self.record))

    def taken(self, done: Done) -> Done:
        """What another process did, in this one's paths."""
        done.plan = {option: self.plan[option] for option in done.plan}
        done.row["transform_file"] = done.plan.get("output", "")
        return done


_MASKS = "fixed_mask", "moving_mask"


def _absolute(path: Any) -> Any:
    return None if path is None else os.path.abspath(path)


@dataclass
class Done:
    """What became of a job: a Registration (None where it was done before), what was written, sentences on what could
    not be, the row of the table, and the word."""

    row: dict
    word: str
    plan: dict
    warnings: list = field(default_factory=list)
    failures: list = field(default_factory=list)
    result: Any = None


@dataclass(frozen=True)
class Target:
    """The fixed volume made ready, and what registers moving ones to it."""

    fixed: Any
    register: Callable


@lru_cache(maxsize=1)
def target(common: Common) -> Target:
    """Read the fixed volume and make it ready; kept for the volumes that follow."""
    from ..inputs import as_volume
    from ..registration import registrar

    fixed = as_volume(common.fixed, "fixed")
    masks = {name: as_volume(getattr(common, name), name.replace("_", " ")) for name in _MASKS if getattr(common, name)}
    return Target(fixed, registrar(fixed, init=common.init, **masks, **dict(common.options)))


def work(job: Job, on_step: Any = None) -> Done:
    """Do a job; raises InputError where the volume cannot be used."""
    from ..inputs import as_volume

    to = target(job.common)
    moving = as_volume(job.moving, "moving")
    result = to.register(moving, on_step)
    plan = dict(job.plan)
    failures = write_outputs(result, plan, moving, to.fixed, job.common.format)
    if job.common.review:
        from ..review.pages import add_registration

        add_registration(job.common.review, job.name, result, moving, to.fixed)
    result.volumes = None
    table_row = row_of(result.report(), plan.get("output", ""))
    done = Done(table_row, result.quality.confidence, plan, list(result.quality.warnings), failures, result)
    if job.record and not failures:
        _put_on_record(job, done)
    return done


# What is done already


@lru_cache(maxsize=1)
def _models() -> str:
    """The content of all installed models, any of which may be chosen for what a volume shows."""
    from ..many.record import digest_of
    from ..modelfile import catalog

    return json.dumps({name: digest_of(path) for name, (path, _) in sorted(catalog.catalog().items())})


@lru_cache(maxsize=8)
def _content(path: str, changed: int) -> str:
    from ..many.record import digest_of

    return digest_of(path)


def key_of(job: Job) -> str:
    """One name for all that decides what a job writes."""
    from ..many.record import content_key

    common = job.common
    same = [
        _content(path, changed) if path else ""
        for path, changed in zip((common.fixed, common.fixed_mask, common.moving_mask), common.changed)
    ]
    model = dict(common.options).get("model")
    own = [model] if model and os.path.isfile(str(model)) else []
    names = {option: os.path.basename(path) for option, path in job.plan.items()}
    settings = {"options": common.options, "init": common.init, "format": common.format, "outputs": names}
    return content_key([job.moving, *own], {"same": same, "models": _models(), **settings})


def done_before(job: Job) -> Done | None:
    """What is on record of a job, if its files are as it left them; None where it is to be done."""
    if not job.record:
        return None
    try:
        known = json.loads(Path(job.record).read_text(encoding="utf-8"))
        written = {option: os.path.getsize(path) for option, path in job.plan.items()}
        if known["key"] != key_of(job) or known["sizes"] != written:
            return None
        if job.common.review and not _review_row(job).is_file():
            return None
        return job.taken(Done(known["row"], known["word"], dict(job.plan), known["warnings"]))
    except (OSError, ValueError, KeyError, TypeError, InputError):
        return None


def _review_row(job: Job) -> Path:
    from ..review.pages import safe_name

    return Path(str(job.common.review)) / "pairs" / f"{safe_name(job.name)}.json"


def _put_on_record(job: Job, done: Done) -> None:
    from ..files import written_whole

    path = Path(str(job.record))
    path.parent.mkdir(exist_ok=True)
    sizes = {option: os.path.getsize(written) for option, written in done.plan.items()}
    known = {"key": key_of(job), "sizes": sizes, "row": done.row, "word": done.word, "warnings": done.warnings}
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(known), encoding="utf-8")


def record_path(plan: dict, name: str) -> str | None:
    """Where the record of a volume lies, beside its first output."""
    from ..review.pages import safe_name

    first = next(iter(plan.values()), None)
    return None if first is None else os.path.join(os.path.dirname(first), RECORDS, f"{safe_name(name)}.json")
