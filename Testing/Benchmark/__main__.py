"""The benchmark's command line; see ``python -m Benchmark --help``."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from typing import Any

from SpatialDiffusionCore.errors import InputError


def main(argv: Sequence[str] | None = None) -> int:
    """Run or report; returns the exit status."""
    arguments = _parser().parse_args(argv)
    try:
        COMMANDS[arguments.command](arguments)
    except InputError as error:
        print(f"Benchmark: {error}", file=sys.stderr)
        return 1
    return 0


# --- options -----------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    from . import anatomy_run, calibrate, cohort, eye_rows, group, motion, neck_rows

    parser = argparse.ArgumentParser(
        prog="python -m Benchmark", description="This project and its peers on the same pairs."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    _add_run(commands)
    report = commands.add_parser("report", help="tables and figures from a folder of results")
    report.add_argument("out", metavar="RESULTS")
    report.add_argument("--readme", metavar="FILE", help="also put the main tables between the markers of this file")
    anatomy_run.add_command(commands)
    calibrate.add_command(commands)
    eye_rows.add_command(commands)
    neck_rows.add_command(commands)
    for many in (motion, group, cohort):
        many.add_command(commands)
    consensus = commands.add_parser("consensus", help="ask the peers for the transforms of raw scans (task contrast)")
    consensus.add_argument("--data", required=True, metavar="DIR")
    consensus.add_argument("--peer-python", default=sys.executable, metavar="PATH")
    consensus.add_argument("--log", metavar="FILE", help="append what the methods print")
    consensus.add_argument("--people", action="store_true", help="for pairs of two people (task anatomies) instead")
    ceiling = commands.add_parser("ceiling", help="fit an affine to the labels of each pair (task brains)")
    ceiling.add_argument("--data", required=True, metavar="DIR")
    place = commands.add_parser("place", help="lay whole heads on the labelled brains (task heads)")
    place.add_argument("--data", required=True, metavar="DIR")
    people = commands.add_parser("subjects", help="write the list of subjects and their halves (task anatomies)")
    people.add_argument("--data", required=True, metavar="DIR")
    return parser


def _method(name: str) -> str:
    from . import runner, tables

    try:
        base = tables.parse(name).base
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if base not in runner.all_methods():
        known = ", ".join(runner.all_methods())
        raise argparse.ArgumentTypeError(f"unknown method {name}; choose among: {known}")
    return name


def _add_run(commands: Any) -> None:
    from . import runner
    from .tasks import TASKS

    run = commands.add_parser("run", help="register; what is in the results already is not done again")
    run.add_argument("--data", required=True, metavar="DIR", help="folder with bench/, t1/ and oasis_labels.tsv")
    run.add_argument("--out", required=True, metavar="RESULTS", help="folder of the results")
    abouts = "; ".join(f"{t.name}: {t.about}" for t in TASKS.values())
    run.add_argument(
        "--task", choices=list(TASKS), default="brains", metavar="TASK", help=f"{abouts} (default: brains)"
    )
    methods = (
        f"default: the task's own, or all of {', '.join(runner.all_methods())}; NAME@K: with K steps; NAME:MODEL: with "
        "that model, NAME:MODEL:any: not told the modality"
    )
    run.add_argument("--methods", nargs="+", type=_method, metavar="METHOD", help=methods)
    run.add_argument("--rotations", nargs="+", type=float, metavar="DEG", help="turns of the moving header (sweeps)")
    run.add_argument("--pairs", type=int, metavar="N", help="the first N pairs")
    run.add_argument("--conditions", nargs="+", metavar="CONDITION", help="some of the task's groups of cases")
    run.add_argument("--subjects", type=int, metavar="N", help="the first N held-out scans")
    run.add_argument("--draws", type=int, metavar="N", help="the first N random poses of each pair")
    run.add_argument("--seed", type=int, default=0)
    run.add_argument("--threads", type=int, default=1)
    run.add_argument("--timeout", type=float, default=900, metavar="S", help="seconds for one registration")
    run.add_argument("--until", metavar="HH:MM", help="start no registration after this time of day")
    run.add_argument("--peer-python", metavar="PATH", help="Python that has the peers, if this one has not")
    run.add_argument("--model", metavar="FILE", help="a model file instead of the installed one")
    forget = "forget these methods' results in this task first (after a change of model or code)"
    run.add_argument("--again", nargs="+", default=[], type=_method, metavar="METHOD", help=forget)
    run.add_argument("--log", metavar="FILE", help="append what the methods print")


# --- commands ----------------------------------------------------------------------------------------------


def _run(arguments: argparse.Namespace) -> None:
    from . import results, runner
    from .cases import CHOICES
    from .tasks import TASKS

    task = TASKS[arguments.task]
    for name in CHOICES:
        if getattr(arguments, name) is not None and name not in task.choices:
            known = ", ".join(f"--{choice}" for choice in task.choices)
            raise InputError(f"--{name} has no effect on task {task.name}, which knows {known}; leave it out.")
    methods = arguments.methods or task.methods or runner.all_methods()
    if arguments.model is not None and not any(runner.is_ours(method) for method in methods):
        raise InputError("--model has no effect on other programs; leave it out, or name a method of this project.")
    if arguments.peer_python is not None and all(runner.is_ours(method) for method in methods):
        raise InputError("--peer-python has no effect on methods of this project alone; leave it out.")
    if arguments.again:
        print(f"forgot {results.forget(arguments.out, arguments.again, arguments.task)} results")

    def late() -> bool:
        return arguments.until is not None and time.strftime("%H:%M") >= arguments.until

    def say(line: str) -> None:
        print(line, flush=True)

    names = ("data", "out", "task", "methods", "seed", "threads", "timeout", "peer_python", "model", "log", *CHOICES)
    count = runner.run(**{name: getattr(arguments, name) for name in names}, deadline=late, report=say)
    print(f"{count} new registrations in {arguments.out}")


def _report(arguments: argparse.Namespace) -> None:
    from .report import write

    for path in write(arguments.out, arguments.readme):
        print(f"wrote {path}")


def _anatomies(arguments: argparse.Namespace) -> None:
    from .anatomy_run import run

    run(arguments)


def _eyes(arguments: argparse.Namespace) -> None:
    from .eye_rows import run

    run(arguments)


def _necks(arguments: argparse.Namespace) -> None:
    from .neck_rows import run

    run(arguments)


def _calibrate(arguments: argparse.Namespace) -> None:
    from .calibrate import run

    run(arguments)


def _consensus(arguments: argparse.Namespace) -> None:
    from .contrast import make_consensus
    from .people import make_people

    make = make_people if arguments.people else make_consensus
    make(arguments.data, arguments.peer_python, log=arguments.log)


def _ceiling(arguments: argparse.Namespace) -> None:
    from .ceiling import make_ceilings

    make_ceilings(arguments.data)


def _place(arguments: argparse.Namespace) -> None:
    from .heads import make_places

    make_places(arguments.data)


def _subjects(arguments: argparse.Namespace) -> None:
    from .subjects import make_subjects

    print(f"{make_subjects(arguments.data)} volumes")


def _motion(arguments: argparse.Namespace) -> None:
    from . import motion

    motion.run(arguments)


def _group(arguments: argparse.Namespace) -> None:
    from . import group

    group.run(arguments)


def _cohort(arguments: argparse.Namespace) -> None:
    from . import cohort

    cohort.run(arguments)


COMMANDS = {
    "run": _run,
    "eyes": _eyes,
    "necks": _necks,
    "report": _report,
    "anatomies": _anatomies,
    "calibrate": _calibrate,
    "consensus": _consensus,
    "ceiling": _ceiling,
    "place": _place,
    "subjects": _subjects,
    "motion": _motion,
    "group": _group,
    "cohort": _cohort,
}


if __name__ == "__main__":
    sys.exit(main())
