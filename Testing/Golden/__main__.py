"""Golden answers: registrations whose matrices, words and figures are stored and compared.

    python -m Golden check            the same answers? within 1e-6 mm and with the same words
    python -m Golden check --exact    bit for bit: for code that is moved or renamed
    python -m Golden check --elsewhere   on another processor: within 0.1 mm where the stored answer is good
    python -m Golden record NAME…     replace answers that a change improves on purpose (no name: all)
    python -m Golden list

Run it in Testing, or with Testing on PYTHONPATH. ``check`` prints what differs and then exits with 1.
"""

from __future__ import annotations

import os

# Before torch is loaded: sums are added in one order.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import argparse  # noqa: E402
import multiprocessing  # noqa: E402
import sys  # noqa: E402
from concurrent.futures import ProcessPoolExecutor  # noqa: E402
from pathlib import Path  # noqa: E402

# This checkout comes before what is installed, and after what PYTHONPATH names: the code of another checkout, say.
_named = [name for name in os.environ.get("PYTHONPATH", "").split(os.pathsep) if name]
sys.path[1 + len(_named) : 1 + len(_named)] = [str(Path(__file__).resolve().parents[2] / n) for n in ("", "Training")]

import SpatialDiffusionCore  # noqa: E402

from . import answers, cases  # noqa: E402


def results(names, jobs: int):
    """``answers.work`` of each name, in their order."""
    if jobs == 1:
        yield from map(answers.work, names)
        return
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(answers.work, names)


def record(names, jobs: int) -> int:
    """Store the answers of these cases beside those of the others; nothing is stored where one fails."""
    stored, made_by, failed, seconds = answers.read(), answers.origin(), 0, 0.0
    for name, found, why, took in results(names, jobs):
        failed += found is None
        seconds += took
        word = why if found is None else f"{found['confidence']}, similarity {found['similarity_after']:.3f}"
        print(f"{name:28} {took:6.1f} s  {word}", flush=True)
        if found is not None:
            stored[name] = {**found, **made_by}
    if failed:
        print(f"{failed} of {len(names)} have no answer; nothing was stored.")
        return 1
    answers.write(stored)
    print(f"{len(names)} answers stored in {seconds:.0f} CPU seconds.")
    return 0


def check(names, jobs: int, level: str) -> int:
    """Compare; 1 where anything differs, fails, or was never stored."""
    stored, wrong, skipped, seconds = answers.read(), 0, 0, 0.0
    for name, found, why, took in results(names, jobs):
        seconds += took
        if found is None:
            said = [why]
        elif name not in stored:
            said = ["no answer is stored; record it"]
        else:
            said = answers.differences(found, stored[name], level)
        missing = why.startswith("skipped")
        skipped += missing
        wrong += bool(said) and not missing
        for text in said:
            print(f"{name:28} {text}", flush=True)
    same = len(names) - wrong - skipped
    print(f"{same} same ({level}), {wrong} differ, {skipped} skipped; {seconds:.0f} CPU seconds.")
    return 1 if wrong else 0


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m Golden", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("check", "record", "list"))
    parser.add_argument("names", nargs="*", metavar="NAME", help="which (default: all)")
    parser.add_argument("--jobs", type=int, default=1, help="processes at once (default: 1)")
    level = parser.add_mutually_exclusive_group()
    level.add_argument("--exact", dest="level", action="store_const", const="exact", default="same")
    level.add_argument("--elsewhere", dest="level", action="store_const", const="elsewhere")
    options = parser.parse_intermixed_args(arguments)
    unknown = [name for name in options.names if name not in cases.CASES]
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; see python -m Golden list")
    names = options.names or list(cases.CASES)
    if options.command == "list":
        print("\n".join(names))
        return 0
    print(f"Core: {Path(SpatialDiffusionCore.__file__).parent}")
    return record(names, options.jobs) if options.command == "record" else check(names, options.jobs, options.level)


if __name__ == "__main__":
    sys.exit(main())
