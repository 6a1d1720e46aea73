"""Accuracy against the severity of artifacts: the known transforms of the hard task, one artifact at a time."""

from __future__ import annotations

from . import hard, measures, tables
from .cases import Arguments, Task, Todo, groups_of, stem

SEVERITIES = (0.25, 0.5, 1.0, 1.5)

_EDGE = hard.SIZE * hard.SPACING


def artifacts(name: str, severity: float) -> dict:
    """An artifact's settings at a severity (1 is that of the hard task where it has the artifact)."""
    settings = {
        "motion": {
            "most": 6,
            "thickness": (8 / _EDGE, 24 / _EDGE),
            "shift": (severity * 5 / _EDGE, severity * 25 / _EDGE),
        },
        "doubling": {"shift": 25 / 256, "weight": 0.3 * severity},
        "shadow": {"controls": (6, 6, 6), "dark": 0.45, "depth": 0.65 * severity},
        "stretch": {"most": 6, "thickness": (severity * 8 / _EDGE, severity * 24 / _EDGE)},
        "crop": {"keep": 1 - 0.4 * severity},
    }
    return {name: settings[name]}


ARTIFACTS = ("motion", "doubling", "shadow", "stretch", "crop")


def _cases(arguments: Arguments) -> list:
    """Random numbers belong to (artifact, scan), not to the severity, which then only scales them."""
    chosen = groups_of(arguments, ARTIFACTS)
    seed, todos = arguments.seed, []
    for scan in hard.held_out(arguments.data)[: arguments.subjects or 6]:
        subject = stem(scan)
        for name in chosen:
            for severity in SEVERITIES:
                case = f"{name}@{severity:g}/{subject}"
                todos.append(
                    Todo(
                        case,
                        hard.draw_known(subject, seed).degrees,
                        lambda case=case, scan=scan, name=name, subject=subject, severity=severity: hard.make_case(
                            "severity",
                            case,
                            scan,
                            scan,
                            subject,
                            seed,
                            artifacts(name, severity),
                            arguments.scratch,
                            key=name,
                        ),
                    )
                )
    return todos


def _tables(records) -> list:
    parts = []
    for name in ARTIFACTS:
        mine = tables.of_artifact(records, name)
        if mine:
            levels = sorted({tables.severity(r) for r in mine})
            parts += [
                f"**{name}**",
                tables.grid(mine, tables.severity, levels, tables.rate_and_median, [f"{level:g}" for level in levels]),
            ]
    return parts


def _section(records) -> list:
    count = len({r["case"].split("/")[1] for r in records})
    return [
        "## Accuracy against severity",
        f"{count} held-out scans, the known transforms of the hard task (turned by up to 180°), both volumes with the "
        "same kind of artifact, drawn independently. Success (< 5 mm) and median error in mm. Severity 1 shifts up to "
        "six slabs by 5–25 mm (motion), adds a copy of up to 30 % (doubling), takes up to 65 % of the light (shadow), "
        "repeats a slice in up to six slabs of 8–24 mm (stretch), and leaves 60 % of the head (crop).",
        *_tables(records),
        "**Time and memory, one registration**",
        tables.cost(records),
    ]


def _summary(records) -> list:
    if not tables.pick(records, method="default"):
        return []  # peers alone say nothing about this project
    count = len({r["case"].split("/")[1] for r in records})
    return [
        f"**Artifacts of growing severity**, on {count} held-out scans under the same transforms; severity 1 "
        "shifts slabs by up to 25 mm, leaves 60 % of the head and so on (the report says all).",
        tables.FIGURE,
    ]


TASKS = (
    Task(
        "severity",
        "known transforms under artifacts of growing severity",
        _cases,
        lambda arguments: measures.known,
        _section,
        summary=_summary,
        panels=tables.severity_panels(ARTIFACTS, SEVERITIES, "success (< 5 mm), %"),
        methods=("default", "no-network", "greedy-search", "elastix"),
        interleave=True,
        choices=("conditions", "subjects"),
    ),
)
