"""Results as lines of JSON, appended one by one, so that a run can stop anywhere and go on later."""

from __future__ import annotations

import json
from pathlib import Path

FILE = "results.jsonl"


def key(record: dict) -> tuple:
    """What is computed once: (task, method, case, rotation, seed)."""
    return tuple(record[name] for name in ("task", "method", "case", "rotation", "seed"))


def read(folder) -> list:
    """All records, in order; a line that was cut off by a crash is passed over."""
    path = Path(folder) / FILE
    records = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                records.append(json.loads(line))
            except ValueError:
                continue
    return records


def registrations(records) -> list:
    """The registrations among the records, each once: the last one of a key counts."""
    return list({key(r): r for r in records if r.get("task") != "machine"}.values())


def append(folder, record: dict) -> None:
    """Add one record; it never joins a line that a crash has cut off."""
    path = Path(folder) / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+b") as file:
        end = file.seek(0, 2)
        torn = False
        if end:
            file.seek(end - 1)
            torn = file.read(1) != b"\n"
        file.write((b"\n" if torn else b"") + json.dumps(record, ensure_ascii=False).encode() + b"\n")


def forget(folder, methods, task) -> int:
    """Drop a task's registrations of some methods; returns how many. Not while another run writes to the folder."""
    records = read(folder)
    kept = [r for r in records if r["task"] != task or r.get("method") not in methods]
    if len(kept) < len(records):
        path = Path(folder) / FILE
        part = path.with_suffix(".part")
        part.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in kept), encoding="utf-8")
        part.replace(path)
    return len(records) - len(kept)
