"""The benchmark's command line; see ``python -m Benchmark --help``."""
from __future__ import annotations

import argparse
import sys
import time

from SpatialDiffusionCore.errors import InputError


def main(argv=None) -> int:
    """Run or report; returns the exit status."""
    from . import cases, runner

    parser = argparse.ArgumentParser(
        prog="python -m Benchmark", description="This project and its peers on the same pairs."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="register; what is in the results already is not done again")
    run.add_argument("--data", required=True, metavar="DIR", help="folder with bench/, t1/ and oasis_labels.tsv")
    run.add_argument("--out", required=True, metavar="RESULTS", help="folder of the results")
    run.add_argument("--task", choices=("brains", "hard"), default="brains")
    run.add_argument("--methods", nargs="+", choices=runner.all_methods(), metavar="METHOD",
                     help=f"default: all of {', '.join(runner.all_methods())}")
    run.add_argument("--rotations", nargs="+", type=float, default=[0, 15, 30, 45, 90, 135, 180], metavar="DEG",
                     help="brains: turns of the moving header (default: 0 15 30 45 90 135 180)")
    run.add_argument("--pairs", type=int, default=20, metavar="N", help="brains: the first N of the 20 pairs")
    run.add_argument("--conditions", nargs="+", choices=list(cases.CONDITIONS), metavar="CONDITION",
                     help=f"hard: default all of {', '.join(cases.CONDITIONS)}")
    run.add_argument("--subjects", type=int, default=10, metavar="N", help="hard: the first N held-out scans")
    run.add_argument("--seed", type=int, default=0)
    run.add_argument("--threads", type=int, default=1)
    run.add_argument("--timeout", type=float, default=900, metavar="S", help="seconds for one registration")
    run.add_argument("--until", metavar="HH:MM", help="start no registration after this time of day")
    run.add_argument("--peer-python", metavar="PATH", help="Python that has the peers, if this one has not")
    run.add_argument("--model", metavar="FILE", help="a model file instead of the installed one")
    run.add_argument("--again", nargs="+", default=[], choices=runner.all_methods(), metavar="METHOD",
                     help="forget these methods' results first (after a change of model or code)")
    run.add_argument("--log", metavar="FILE", help="append what the methods print")
    report = commands.add_parser("report", help="tables and figures from a folder of results")
    report.add_argument("out", metavar="RESULTS")
    arguments = parser.parse_args(argv)
    try:
        if arguments.command == "report":
            from .report import write

            for path in write(arguments.out):
                print(f"wrote {path}")
            return 0
        return _run(arguments)
    except InputError as error:
        print(f"Benchmark: {error}", file=sys.stderr)
        return 1


def _run(arguments) -> int:
    from . import results, runner

    if arguments.again:
        print(f"forgot {results.forget(arguments.out, arguments.again)} results")

    def late() -> bool:
        return arguments.until is not None and time.strftime("%H:%M") >= arguments.until

    def say(line):
        print(line, flush=True)

    count = runner.run(
        data=arguments.data, out=arguments.out, task=arguments.task, methods=arguments.methods,
        rotations=arguments.rotations, pairs=arguments.pairs, conditions=arguments.conditions,
        subjects=arguments.subjects, seed=arguments.seed, threads=arguments.threads, timeout=arguments.timeout,
        peer_python=arguments.peer_python, model=arguments.model, log=arguments.log, deadline=late, report=say,
    )
    print(f"{count} new registrations in {arguments.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
