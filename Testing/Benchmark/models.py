"""Each trained model alone on each modality: what a model of one modality and one of all are worth.

Heads are drawn from the diffusion's own forward process as in steps.py: scans that no model was trained on. Eyes are
phantoms that no model was trained on, scanned twice with rasters up to 20° from the usual one, and without a search for
the turn. Other organs and animals are copies of volumes as in task anatomies, turned within 45° and told as "any".
Methods are named diffusion:MODEL, or diffusion:MODEL:any where the model is not told the modality (class 0);
models of one's own take part by --methods.
"""

from __future__ import annotations

from functools import cache, partial

import numpy as np

from SpatialDiffusionCore.modality import MODALITIES

from . import anatomies, hard, measures, retinas, steps, tables
from .cases import Arguments, Case, Task, Todo, data_root, groups_of, rng, stem

#: Timestep of the heads' draws: with the brain preset's schedule about 28 mm, RMS over the head.
TIMESTEP = 45

#: Largest turn of the phantoms' rasters, degrees.
TURN = 20.0

#: Number of the first eye; the retinas' tasks begin at retinas.FIRST_EYE.
FIRST_EYE = 200_000


@cache
def draw(subject: str, seed: int) -> hard.Draw:
    """A draw of the forward process for a subject "modality/scan"."""
    return steps.of_process(rng("models", subject, seed), TIMESTEP)


def heads(data) -> dict:
    """{modality: scans that no model was trained on}."""
    root = data_root(data)
    return {
        "t1-brain": hard.held_out(data),
        "t2-head-neck": sorted((root / "multi").glob("*_t2.nii.gz")),
        "ct-head-neck": sorted((root / "bench").glob("openkbp_*_ct.nii.gz")),
    }


def eye(kind: str, number: int, seed: int, folder) -> Case:
    """Two scans of a phantom eye, each with what goes wrong in scans."""
    from SpatialDiffusionTraining import retina

    random = rng("models", kind, number, seed)
    phantom = retina.make_eye(FIRST_EYE + 1000 * seed + number)
    first = retina.draw_acquisition(random, kind, TURN)
    both = first, retina.draw_acquisition(random, kind, TURN, near=first)
    return retinas.scanned_twice("models", f"{kind}/eye{number:02d}", 0.0, seed, kind, phantom, both, folder)


def _cases(arguments: Arguments) -> list:
    seed, folder, count = arguments.seed, arguments.scratch, arguments.subjects or 10
    groups = {**heads(arguments.data), "oct": None, "octa": None, "any": None}
    todos = []
    for key in groups_of(arguments, groups):
        if key == "any":
            copies = anatomies.near_copies(data_root(arguments.data), seed)
            made = [(name, partial(anatomies.written, make, folder)) for name, make in copies.items()]
            todos += [Todo(name, 0.0, make) for name, make in made]
            continue
        if groups[key] is None:
            todos += [Todo(f"{key}/eye{n:02d}", 0.0, lambda k=key, n=n: eye(k, n, seed, folder)) for n in range(count)]
            continue
        for scan in groups[key][:count]:
            name = f"{key}/{stem(scan)}"
            todos.append(
                Todo(
                    name,
                    draw(name, seed).degrees,
                    lambda k=key, scan=scan, name=name: hard.make_case(
                        "models", name, scan, scan, name, seed, steps.EVERYDAY, folder, modality=(k, k), transform=draw
                    ),
                )
            )
    return todos


def _measure(arguments: Arguments):
    def measure(case, matrix) -> dict:
        if isinstance(case, anatomies.AnatomyCase):
            return anatomies.judge(case, matrix)
        return (retinas.measure if case.modality[0] in ("oct", "octa") else measures.known)(case, matrix)

    return measure


def takes(method: str, name: str) -> bool:
    """Whether a method can do a case: its model sees the modality on a grid made for it."""
    from SpatialDiffusionCore.modelfile.catalog import catalog

    model, key = tables.parse(method).model, name.split("/")[0]
    if model is None:
        return True
    installed = catalog().get(model)
    if installed is None or not installed.card.serves(key) or key in installed.card.modalities:
        return installed is not None and installed.card.serves(key)
    # Not trained for it, but for anything of its size: bodies in millimeters, eyes in tenths.
    return MODALITIES[key].oriented == bool(np.max(installed.card.grid_of(key).spacing) >= 1)


def _cell(found) -> str:
    if tables.group(found[0]) == "any":
        shares = [100 * r.get("error_share", 1.0) for r in found]
        return " · ".join(f"{np.percentile(shares, p):.1f}" for p in (50, 90)) + " %"
    digits = 2 if tables.group(found[0]) in ("oct", "octa") else 1
    errors = [r.get("error_mm", tables.FAILED_MM) for r in found]
    return " · ".join(f"{np.percentile(errors, p):.{digits}f}" for p in (50, 95))


def _tables(records) -> list:
    groups = [k for k in MODALITIES if any(tables.group(r) == k for r in records)]
    rows = []
    for method in tables.methods(records):
        mine = [[r for r in tables.pick(records, method=method) if tables.group(r) == k] for k in groups]
        rows.append([tables.label(method), *(_cell(found) if found else "–" for found in mine)])
    counts = [
        max(len([r for r in tables.pick(records, method=m) if tables.group(r) == k]) for m in tables.methods(records))
        for k in groups
    ]
    return [tables.table(["", *(f"{k} (n = {n})" for k, n in zip(groups, counts))], rows)]


def _words() -> str:
    from SpatialDiffusionCore.pipeline.stages import DEFAULT_STEPS

    return (
        f"{DEFAULT_STEPS} steps of the diffusion from the tissue's centers, no search, no refinement. Heads: draws of "
        f"the forward process at timestep {TIMESTEP}, with mild bias, gamma and noise. Eyes: phantoms, two scans of "
        f"each, rasters within {TURN:g}° of the usual, with motion and other artifacts. Median · 95th percentile of "
        "the RMS error over the tissue, mm; *(any)*: not told the modality (class 0). Any: copies of volumes of other "
        f"organs and animals, as in task anatomies, turned within {anatomies.NEAR[1]:g}°; median · 90th percentile "
        "in per cent of the size. `t1-brain` never saw T2 or CT. `eyes`, `ct` and `t2` (24 minutes of one core each, "
        "begun from `t1-brain`) and `no-t2` (T1 and CT) were trained for this comparison and do not ship."
    )


def _section(records) -> list:
    return [
        "## Models, each alone",
        _words(),
        *_tables(records),
        "**Time and memory, one registration**",
        tables.cost(records),
    ]


def _summary(records) -> list:
    return [f"**Models, each alone.** {_words()}", *_tables(records)]


TASKS = (
    Task(
        "models",
        "each trained model alone on each modality",
        _cases,
        _measure,
        _section,
        summary=_summary,
        interleave=True,
        takes=takes,
        methods=("centers", "diffusion:t1-brain", "diffusion:foundation", "diffusion:foundation:any"),
        choices=("conditions", "subjects"),
    ),
)
