"""The benchmark's command line; see ``python -m Benchmark --help``."""
from __future__ import annotations

import argparse
import sys
import time

from SpatialDiffusionCore.errors import InputError


def main(argv=None) -> int:
    """Run or report; returns the exit status."""
    from . import anatomy_run, runner, tables
    from .tasks import TASKS

    def method(name):
        try:
            base = tables.parse(name).base
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        if base not in runner.all_methods():
            known = ", ".join(runner.all_methods())
            raise argparse.ArgumentTypeError(f"unknown method {name}; choose among: {known}")
        return name

    parser = argparse.ArgumentParser(
        prog="python -m Benchmark", description="This project and its peers on the same pairs."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="register; what is in the results already is not done again")
    run.add_argument("--data", required=True, metavar="DIR", help="folder with bench/, t1/ and oasis_labels.tsv")
    run.add_argument("--out", required=True, metavar="RESULTS", help="folder of the results")
    run.add_argument("--task", choices=list(TASKS), default="brains", metavar="TASK",
                     help="; ".join(f"{t.name}: {t.about}" for t in TASKS.values()) + " (default: brains)")
    run.add_argument("--methods", nargs="+", type=method, metavar="METHOD",
                     help=f"default: the task's own, or all of {', '.join(runner.all_methods())}; NAME@K: with K "
                          "steps; NAME:MODEL: with that model, NAME:MODEL:any: not told the modality")
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
    run.add_argument("--again", nargs="+", default=[], type=method, metavar="METHOD",
                     help="forget these methods' results in this task first (after a change of model or code)")
    run.add_argument("--log", metavar="FILE", help="append what the methods print")
    report = commands.add_parser("report", help="tables and figures from a folder of results")
    report.add_argument("out", metavar="RESULTS")
    report.add_argument("--readme", metavar="FILE", help="also put the main tables between the markers of this file")
    consensus = commands.add_parser("consensus", help="ask the peers for the transforms of raw scans (task contrast)")
    consensus.add_argument("--data", required=True, metavar="DIR")
    consensus.add_argument("--peer-python", default=sys.executable, metavar="PATH")
    consensus.add_argument("--log", metavar="FILE", help="append what the methods print")
    people = commands.add_parser("subjects", help="write the list of subjects and their halves (task anatomies)")
    people.add_argument("--data", required=True, metavar="DIR")
    anatomy_run.add_command(commands)
    place = commands.add_parser("place", help="lay whole heads on the labelled brains (task heads)")
    place.add_argument("--data", required=True, metavar="DIR")
    arguments = parser.parse_args(argv)
    try:
        if arguments.command == "anatomies":
            anatomy_run.run(arguments)
            return 0
        if arguments.command == "subjects":
            from .subjects import make_subjects

            print(f"{make_subjects(arguments.data)} volumes")
            return 0
        if arguments.command == "place":
            from .heads import make_places

            make_places(arguments.data)
            return 0
        if arguments.command == "consensus":
            from .contrast import make_consensus

            make_consensus(arguments.data, arguments.peer_python, log=arguments.log)
            return 0
        if arguments.command == "report":
            from .report import write

            for path in write(arguments.out, arguments.readme):
                print(f"wrote {path}")
            return 0
        return _run(arguments)
    except InputError as error:
        print(f"Benchmark: {error}", file=sys.stderr)
        return 1


def _run(arguments) -> int:
    from . import results, runner

    if arguments.again:
        print(f"forgot {results.forget(arguments.out, arguments.again, arguments.task)} results")

    def late() -> bool:
        return arguments.until is not None and time.strftime("%H:%M") >= arguments.until

    def say(line):
        print(line, flush=True)

    chosen = {name: getattr(arguments, name) for name in (
        "data", "out", "task", "methods", "rotations", "pairs", "conditions", "subjects", "draws", "seed", "threads",
        "timeout", "peer_python", "model", "log")}
    count = runner.run(**chosen, deadline=late, report=say)
    print(f"{count} new registrations in {arguments.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
