"""The report (Markdown), the figure (PNG) and the README's part, made from result files alone."""

from __future__ import annotations

import os
from pathlib import Path

from SpatialDiffusionCore.errors import InputError

from . import confidence, results, tables
from .child import code_hash
from .tasks import TASKS

#: The README's part lies between these lines.
BEGIN, END = "<!-- benchmark: begin -->", "<!-- benchmark: end -->"


def machine_card(everything) -> list:
    """What the figures were measured on, one paragraph a machine."""
    machines = {(m["cpu"], m["cores"], m["threads"]): m for m in everything if m["task"] == "machine"}
    return [
        f"Measured on {m['cpu']}, {m['threads']} thread of {m['cores']}"
        + (f", {m['memory_gb']} GB of memory" if m.get("memory_gb") else "")
        + f"; {m['system']}, Python {m['python']}, PyTorch {m['torch']}. Seconds are those of the registration alone, "
        "without process start and file reading: CPU seconds of the one-thread process, as the machine was shared."
        for m in machines.values()
    ]


def command(task: str) -> str:
    """What makes a task's results."""
    return f"`python -m Benchmark run --task {task} --data DIR --out RESULTS`"


def _builds(records) -> list:
    builds = sorted({r["build"] for r in records if r.get("build")})
    if not builds:
        return []
    # A task may take a model for each modality, but each in one state and around one state of the code.
    weights, codes = zip(*(build.rstrip(")").partition(" (code ")[::2] for build in builds))
    names = {weight.rpartition("-")[0] for weight in weights}
    mixed = len(set(codes)) > 1 or len(set(weights)) > len(names)
    said = f"Model{'s' * (len(builds) > 1)}: {', '.join(builds)}."
    if mixed:
        said += " **More than one state of a model or of the code: they do not belong together.**"
    elif codes[0] != code_hash():
        said += f" The core's code has changed since; it is {code_hash()} now."
    return [said]


def text(folder) -> str:
    """The whole report as Markdown."""
    everything = results.read(folder)
    records = results.registrations(everything)
    if not records:
        return "# Benchmark\n\nNo results yet.\n"
    parts = ["# Benchmark", *machine_card(everything)]
    for name, task in TASKS.items():
        mine = [r for r in records if r["task"] == name]
        if mine:
            title, *rest = task.section(mine)
            picture = [f"![{task.about}]({name}.png)"] if task.panels(mine) else []
            parts += [title, f"Made by {command(name)}.", *_builds(mine), *rest, *picture]
    parts += confidence.section(records)
    return "\n\n".join(parts) + "\n"


def summary(folder, start=".") -> str:
    """The README's part: the machine, and what each task has to say there; figures as seen from a folder ``start``."""
    everything = results.read(folder)
    records = results.registrations(everything)
    parts = machine_card(everything)
    for name, task in TASKS.items():
        mine = [r for r in records if r["task"] == name]
        said = task.summary(mine) if mine else []
        if said:
            title, *rest = said
            picture = Path(os.path.relpath(Path(folder) / f"{name}.png", start)).as_posix()
            parts += [f"{title} Made by {command(name)}.", *_builds(mine)]
            parts += [f"![{task.about}]({picture})" if part == tables.FIGURE else part for part in rest]
    parts += confidence.summary(records)
    return "\n\n".join(parts)


def write_readme(folder, path) -> Path:
    """Put the summary between the two markers of a README; returns its path."""
    path = Path(path)
    before, begin, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise InputError(f"{path} lacks the lines {BEGIN} and {END}, between which the tables go.")
    path.write_text(f"{before}{BEGIN}\n{summary(folder, path.parent)}\n{END}{after}", encoding="utf-8")
    return path


def figures(folder) -> list:
    """One PNG a task that draws any panel, named like the task; returns their paths."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    records, paths = results.registrations(results.read(folder)), []
    for name, task in TASKS.items():
        mine = [r for r in records if r["task"] == name]
        panels = task.panels(mine) if mine else []
        if not panels:
            continue
        columns = min(3, len(panels))
        rows = -(-len(panels) // columns)
        width = 6.2 if columns < 3 else 4.6
        drawing, axes = pyplot.subplots(rows, columns, figsize=(width * columns, 3.9 * rows), squeeze=False)
        for axis in axes.flat[len(panels) :]:
            axis.set_axis_off()
        for panel, axis in zip(panels, axes.flat):
            panel(axis, mine)
        drawing.tight_layout()
        paths.append(Path(folder) / f"{name}.png")
        drawing.savefig(paths[-1], dpi=80)
        pyplot.close(drawing)
    return paths


def write(folder, readme=None) -> list:
    """Write report.md and the figures beside the results, and the README's part; returns the paths written."""
    folder = Path(folder)
    if not results.registrations(results.read(folder)):
        raise InputError(f"{folder} holds no results; run the benchmark first.")
    table = folder / "report.md"
    table.write_text(text(folder), encoding="utf-8")
    return [table, *figures(folder), *([write_readme(folder, readme)] if readme else [])]
