"""``python -m Benchmark anatomies``: many small registrations in a few processes, for development.

Every answer is one line of a file, written when it is done; what is there already isn't done again. Nothing but the
public ``register`` is used, told nothing about the volumes.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import lru_cache
from pathlib import Path
from typing import Any

from SpatialDiffusionCore.errors import InputError

from . import anatomies, anatomy_report, subjects
from .cases import Todo, data_root
from .child import ROOT, code_hash

#: The fixed check: cases of the development half that take seconds each.
CHECK = Path(__file__).with_name("anatomies_check.txt")


def add_command(commands: Any) -> None:
    """The command's options."""
    parser = commands.add_parser("anatomies", help="register copies and pairs of other organs, animals and sizes")
    parser.add_argument("--data", default=str(ROOT.parent / "shared" / "data"), metavar="DIR")
    parser.add_argument("--out", required=True, metavar="FILE.jsonl", help="one line an answer; goes on where it was")
    parser.add_argument("--half", default=subjects.DEVELOPMENT, choices=(subjects.DEVELOPMENT, subjects.REPORT))
    parser.add_argument(
        "--kinds",
        default=None,
        metavar="A,K,…",
        help="; ".join(map(": ".join, anatomies.KINDS.items())).replace("%", "%%"),
    )
    parser.add_argument("--collections", default=None, metavar="NAME,…", help="default: all")
    parser.add_argument("--draws", type=int, default=None, metavar="N", help=f"turns a volume ({anatomies.DRAWS})")
    parser.add_argument("--limit", type=int, metavar="N", help="the first N cases")
    parser.add_argument("--calibration", action="store_true", help="only of volumes that may calibrate the score")
    parser.add_argument("--check", action="store_true", help=f"the fixed check: the cases that {CHECK.name} names")
    parser.add_argument("--cases", nargs="+", metavar="NAME", help="these cases")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes of one thread each")
    parser.add_argument(
        "--options", default="{}", metavar="JSON", help='further options of register, as {"modality": "any"}'
    )
    parser.add_argument("--table", action="store_true", help="no registration: the table of what is in the file")


def run(arguments: argparse.Namespace) -> None:
    """Do what the command line says, and print the table."""
    out = Path(arguments.out)
    done = read(out)
    if arguments.table:
        for name in ("kinds", "collections", "draws", "limit", "calibration", "check", "cases"):
            if getattr(arguments, name):
                raise InputError(f"--{name} has no effect beside --table, which shows all of the file; leave it out.")
    else:
        wanted = chosen(arguments)
        names = [todo.name for todo in wanted]
        left = [todo.name for todo in wanted if todo.name not in done]
        print(f"{len(names)} cases, {len(names) - len(left)} of them done", flush=True)
        settings = str(data_root(arguments.data)), arguments.half, _draws(arguments), _options(arguments)
        for number, record in enumerate(answers(left, settings, arguments.jobs), 1):
            append(out, record)
            done[record["case"]] = record
            print(f"{number}/{len(left)} {line(record)}", flush=True)
        done = {name: done[name] for name in names if name in done}
    print(anatomy_report.text(list(done.values())))


def _draws(arguments: argparse.Namespace) -> int:
    return arguments.draws or anatomies.DRAWS


def _options(arguments: argparse.Namespace) -> dict:
    try:
        options = json.loads(arguments.options)
    except ValueError:
        options = None
    if not isinstance(options, dict):
        raise InputError(f'--options needs a JSON object, for example {{"modality": "any"}}, not {arguments.options}.')
    return options


def chosen(arguments: argparse.Namespace) -> list[Todo]:
    """The cases that the command line asks for; raises InputError where options contradict each other."""
    exact = arguments.check or arguments.cases
    ignored = ("kinds", "collections", *(("draws",) if arguments.check else ()))
    for name in ignored if exact else ():
        if getattr(arguments, name) is not None:
            raise InputError(f"--{name} has no effect beside --check or --cases; leave it out.")
    if arguments.check and (arguments.cases or arguments.half != subjects.DEVELOPMENT):
        raise InputError("--check is a fixed list of the development half; leave --cases and --half out.")
    kinds = tuple(arguments.kinds.split(",")) if arguments.kinds else tuple(anatomies.KINDS)
    if arguments.calibration and (exact or arguments.half != subjects.DEVELOPMENT):
        raise InputError("--calibration chooses among the development half; leave --check, --cases and --half out.")
    root, calibration = data_root(arguments.data), arguments.calibration
    every = anatomies.todos(root, arguments.half, kinds, _draws(arguments), calibration=calibration)
    if exact:
        names = CHECK.read_text(encoding="utf-8").split() if arguments.check else arguments.cases
        by_name = {todo.name: todo for todo in every}
        unknown = [name for name in names if name not in by_name]
        if unknown:
            raise InputError(f"There is no case {unknown[0]} in this half; names are KIND/COLLECTION/VOLUME/DRAW.")
        every = [by_name[name] for name in names]
    if arguments.collections:
        wanted, known = set(arguments.collections.split(",")), {todo.name.split("/")[1] for todo in every}
        if wanted - known:
            raise InputError(
                f"There is no collection {sorted(wanted - known)[0]}; choose among: {', '.join(sorted(known))}."
            )
        every = [todo for todo in every if todo.name.split("/")[1] in wanted]
    return every[: arguments.limit]


def read(path: Path) -> dict[str, dict]:
    """case → its last record."""
    records: dict[str, dict] = {}
    if path.is_file():
        for text in path.read_text(encoding="utf-8").splitlines():
            try:
                record = json.loads(text)
            except ValueError:
                continue  # a line that a crash has cut off
            records[record["case"]] = record
    return records


def append(path: Path, record: dict) -> None:
    """Add one line; it never joins one that a crash has cut off."""
    torn = path.is_file() and path.stat().st_size and not path.read_bytes().endswith(b"\n")
    with open(path, "a", encoding="utf-8") as file:
        file.write(("\n" if torn else "") + json.dumps(record, ensure_ascii=False, default=_plain) + "\n")


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else str(value)


def line(record: dict) -> str:
    """One record in a line."""
    judged = (
        "right" if record["success"] else "wrong" if record.get("wrong") else "failed" if "error" in record else "near"
    )
    figure = f"Dice {record['dice']:.3f}" if "dice" in record else f"{100 * record.get('error_share', 0):.2f} %"
    chance = f" P {record['probability']:.3f}" if record.get("probability") is not None else ""
    return (
        f"{record['case']:60} {judged:6} {record.get('word', ''):5}{chance} {figure:>10} "
        f"{record.get('cpu_seconds', 0):6.2f} s {record.get('error', '')}"
    )


# --- the work ----------------------------------------------------------------------------------------------


def answers(names: list[str], settings: tuple, jobs: int) -> Iterator[dict]:
    """The records of cases, as they come; a process that dies costs its case only."""
    if jobs <= 1:
        start()
        yield from (answer(name, settings) for name in names)
        return
    waiting = list(reversed(names))
    while waiting:
        yield from _pooled(waiting, settings, jobs)


def _pooled(waiting: list[str], settings: tuple, jobs: int) -> Iterable[dict]:
    """Work off ``waiting`` from its end until it is empty or a process dies."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=start) as pool:
        running: dict[Future, str] = {}
        while waiting or running:
            while waiting and len(running) < jobs:
                name = waiting.pop()
                running[pool.submit(answer, name, settings)] = name
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                name = running.pop(future)
                try:
                    yield future.result()
                except BrokenProcessPool:
                    # Which of those at work brought the process down isn't known: the others are done again, alone.
                    waiting += running.values()
                    yield _failed(name, "the process ended")
                    return


def start() -> None:
    """One thread, and everything loaded that a first registration loads."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
    import torch

    from .worker import warm_up

    torch.set_num_threads(1)
    warm_up(_Plain())


class _Plain:
    """The public face as worker.warm_up calls a method."""

    @staticmethod
    def load(array: Any, voxel_to_ras: Any) -> Any:
        from SpatialDiffusionCore import Volume

        return Volume(array, voxel_to_ras)

    @staticmethod
    def run(moving: Any, fixed: Any, seed: int) -> None:
        from SpatialDiffusionCore import register

        register(moving, fixed, seed=seed, device="cpu")


@lru_cache(maxsize=2)
def _all(root: str, half: str, draws: int) -> dict[str, Todo]:
    """Hopeless pairs of volumes that may calibrate are others than those of the whole half."""
    both = (anatomies.todos(Path(root), half, draws=draws, calibration=only) for only in (False, True))
    return {todo.name: todo for todos in both for todo in todos}


def _failed(name: str, error: str) -> dict:
    return {"case": name, "code": code_hash(), "error": error, "success": False, "wrong": False}


def answer(name: str, settings: tuple) -> dict:
    """Register one case and judge the answer: the record that the file keeps."""
    from SpatialDiffusionCore import register

    root, half, draws, options = settings
    case = _all(root, half, draws)[name].make()
    moving, fixed = case.volumes[0].moved(case.moved), case.volumes[1]
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        result = register(moving, fixed, **{"device": "cpu", "seed": case.seed, **options})
    except Exception as error:
        record = _failed(name, " ".join(f"{type(error).__name__}: {error}".split())[:300])
        return {**record, "degrees": case.rotation, "cpu_seconds": round(time.process_time() - cpu, 3)}
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    quality = result.quality.to_dict()
    return {
        "case": name,
        "code": code_hash(),
        "degrees": case.rotation,
        "word": quality.get("confidence"),
        "probability": quality.get("probability"),
        **anatomies.judge(case, result.matrix),
        "limits": [round(limit, 4) for limit in case.limits],
        "seconds": round(wall, 3),
        "cpu_seconds": round(cpu, 3),
        "modality": list(result.modality),
        "polished": result.polished,
        "quality": quality,
        "matrix": [round(value, 7) for value in result.matrix[:3].ravel().tolist()],
        "options": options,
    }
