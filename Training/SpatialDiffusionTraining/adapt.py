"""`spatial-diffusion adapt FOLDER`: from scans to a model that registers them better, or the word that none does.

The scans are recognized and split by person, the nearest bundled model is trained on for the time given, and the result
is measured on the people held out against what was there. It is installed only where it helps. What it may change is
where answers end; how sure an answer is called is not learned from it: its card leaves out what raises a probability.
"""

from __future__ import annotations

import argparse
import base64
import html
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

import numpy as np

from SpatialDiffusionCore.errors import InputError
from SpatialDiffusionCore.files import written_whole
from SpatialDiffusionCore.modality import MODALITIES
from SpatialDiffusionCore.modelfile.card import PARTS, ModelCard, read_card
from SpatialDiffusionCore.modelfile.catalog import BUNDLED
from SpatialDiffusionCore.modelfile.model import load_model
from SpatialDiffusionCore.modelfile.safetensors_file import save_model
from SpatialDiffusionCore.pipeline.prepared_input import PreparedInput
from SpatialDiffusionCore.spatial import volume_file
from SpatialDiffusionCore.spatial.sampling import prepare

from . import architecture, checkpoint, export, measure, run
from . import settings as settings_module
from .checks import check_folder
from .command import say
from .people import people_of
from .scans import find_scans
from .settings import PRESETS, Settings

#: Scans that are looked at to recognize what a folder shows.
LOOKS = 8

#: Fewer people teach nothing that can be measured on others.
LEAST_PEOPLE = 4

#: Fine-tuning begins with this share of the learning rate with which the model was trained.
RATE = 0.25

#: The cube's edge in sizes of the tissue (twice the RMS radius), as of heads in the bundled models: 224 mm to about
#: 150.
ROOM = 1.5


@dataclass
class Base:
    """The model that training begins with: its file, card and what it takes the scans for."""

    path: Path
    card: ModelCard
    key: str


def recognize(paths: Sequence[Path]) -> str:
    """The modality that most of some scans surely show; "any" where there is none."""
    chosen = [paths[i] for i in np.linspace(0, len(paths) - 1, min(LOOKS, len(paths))).round().astype(int)]
    found: Counter[str] = Counter()
    for path in chosen:
        try:
            found[PreparedInput(volume_file.load(path), None, "cpu").modality] += 1
        except (InputError, ValueError):
            continue
    word, count = found.most_common(1)[0] if found else ("any", 0)
    return word if count > len(chosen) / 2 else "any"


def nearest(modality: str) -> Base:
    """The bundled model with a network that knows a modality and the fewest others; else the one for anything."""
    cards = {path: read_card(path) for path in sorted(BUNDLED.glob("*.safetensors"))}
    trained = {path: card for path, card in cards.items() if card.architecture["head"] != "none"}
    for key in (modality, "any"):
        fitting = [(len(card.modalities), path) for path, card in trained.items() if key in card.modalities]
        if fitting:
            path = min(fitting)[1]  # the model that knows little else
            return Base(path, trained[path], key)
    raise InputError("No bundled model has a network that could be adapted; train one of your own instead.")


def typical_size(paths: Sequence[Path]) -> float:
    """Median size of the tissue (twice its RMS radius) of some scans, mm. Raises InputError where none can be used."""
    sizes = []
    for path in [paths[i] for i in np.linspace(0, len(paths) - 1, min(LOOKS, len(paths))).round().astype(int)]:
        try:
            sizes.append(float(prepare(volume_file.load(path)).size))
        except (InputError, ValueError):
            continue
    if not sizes:
        raise InputError(f"None of the scans can be read, for example {paths[0]}.")
    return float(np.median(sizes))


def settings_for(base: Base, modality: str, chosen: argparse.Namespace, size: float) -> Settings:
    """The settings of the run: those that the model was trained with, on a grid that fits the scans, gentler and
    shorter."""
    settings = _trained_with(base)
    grid = base.card.grid_of(base.key)
    known = modality in MODALITIES and modality != "any"
    spacing = grid.spacing if known and grid.spacing is not None else ROOM * size / max(grid.size)
    settings.update(
        {
            "data": {
                "train": [chosen.scans],
                "dataset": [modality],
                "val": [],
                "weights": [],
                "loader": [],
                "masks": [],
                "partners": [],
                "grids": {},
                "size": list(grid.size),
                "spacing": np.round(np.atleast_1d(spacing), 4).tolist(),
                "people": chosen.people,
                "cache": "",
                "workers": 0,
                "held_out": chosen.held_out,
            },
            "optimization": {
                "steps": 0,
                "max_minutes": chosen.minutes,
                "lr": RATE * settings.optimization.lr,
                "warmup": min(settings.optimization.warmup, 100),
                "precision": "32",
            },
            "run": {
                "output": str(Path(chosen.output) / "run"),
                "init": str(base.path),
                "device": chosen.device,
                "devices": 1,
                "nodes": 1,
                "threads": chosen.threads,
                "log_every": 50,
                "validate_every": 200,
                "seed": chosen.seed,
            },
        },
        "adapt",
    )
    settings.data.grids = {}
    changes = settings.augmentation.by_modality.get(base.key)
    settings.augmentation.by_modality = {modality: changes} if changes else {}
    own = settings.diffusion.by_modality.get(base.key, {})
    settings.diffusion.by_modality = {modality: own} if own else {}
    return settings.update_all(settings_module.given(chosen))


def _trained_with(base: Base) -> Settings:
    """The settings in a model's card with its own network; those of the preset foundation where the card has none."""
    try:
        settings = Settings.from_dict(base.card.training["settings"])
    except (InputError, KeyError):
        settings = Settings()
        preset = settings_module.read_json(PRESETS / "foundation.json", "The preset")
        settings.update(preset, "The preset foundation")
    described = dict(base.card.architecture)
    network = settings.network
    network.head, network.channels = described.pop("head"), list(described.pop("channels", []))
    network.class_dropout = described.pop("class_dropout", network.class_dropout)
    network.options = {name: value for name, value in described.items() if name not in ("volume_size", "n_classes")}
    return settings


def model_of(run_folder: Path, base: Base, modality: str, name: str, output: Path) -> Path:
    """Write the adapted model: the run's network with what else the base model has for the modality.

    Its card names that modality alone, and leaves out the base's "agreement": that was measured with another network,
    and may raise how sure an answer is called.
    """
    state = checkpoint.weights_of_run(run_folder)
    network = architecture.build_network(state["architecture"])
    network.load_state_dict(state["weights"])
    found = {part: base.card.part_for(part, modality) for part in PARTS}
    entries = {name: replace(part, modalities=(modality,)) for name, part in found.items() if part is not None}
    card = export.card(state, name, base.card.license, f"adapted from {base.card.name}")
    card = replace(card, modalities={modality: 0}, parts=entries)
    loaded = load_model(base.path, base.key, base.key)
    save_model(output, network, card, half=True, **{part: getattr(loaded, part) for part in entries})
    return output


def own_name(text: str) -> str:
    """Text made a modality's name: small letters, digits and -, beginning with a letter."""
    name = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    return name if name[:1].isalpha() else f"scans-{name}".strip("-")


def adapt(chosen: argparse.Namespace) -> int:
    """Do what the command line says; returns the exit code."""
    paths = find_scans(chosen.scans)
    people = set(people_of(paths).values())
    if len(people) < LEAST_PEOPLE and not chosen.people:
        raise InputError(
            f"{chosen.scans} shows {len(people)} people as far as names tell, too few to learn from some "
            f"and measure on "
            f"others (at least {LEAST_PEOPLE}); --people FILE.tsv says who is who."
        )
    folder = check_folder(chosen.output)
    word = run.modality_key(chosen.modality) if chosen.modality else recognize(paths)
    modality = own_name(chosen.name or Path(chosen.scans).resolve().name) if word == "any" else word
    base = nearest(word if word in MODALITIES else "any")
    size = typical_size(paths)
    shown = word if word != "any" else f"no known modality, so they get a name of their own: {modality}"
    say(f"{len(paths)} scans of {len(people)} people, about {size:.0f} mm large; they show {shown}")
    say(f"training goes on from {base.card.name} for {chosen.minutes:g} minutes")
    settings = settings_for(base, modality, chosen, size)
    ended = run.train(settings, resume=bool(checkpoint.checkpoints(settings.run.output)), report=say)
    if ended:
        return ended
    name = own_name(chosen.name or f"{modality}-adapted") if word != "any" else modality
    model = model_of(Path(settings.run.output), base, modality, name, folder / "model.safetensors")
    tables = measure.of_run(settings, model, chosen.measure, say)
    if not tables:
        raise InputError("Nobody could be held out, so nothing could be measured, and nothing is installed.")
    table = tables[0]
    say(table.text())
    done = _install(model, table, chosen)
    say(done)
    say(str(write_report(folder, settings, base, table, done)))
    return 0


def _install(model: Path, table: measure.Comparison, chosen: argparse.Namespace) -> str:
    """Install a model that helps; what was done, in a sentence."""
    if not table.helps:
        return "Nothing is installed; registrations go on as before."
    if chosen.no_install:
        return f"It is not installed, as asked; use it with --model {model}."
    target = export.install(model, replace_bundled=True)
    return (
        f"Installed as {target}: scans called {table.modality} are now registered with it (--modality "
        f"{table.modality}, or the "
        "choice in Slicer). Remove that file to undo this."
    )


# ---------------------------------------------------------------------------------------------- the report
PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 15px/1.5 sans-serif; max-width: 60em; margin: 2em auto; color: #222 }}
td, th {{ padding: .2em .8em; text-align: right }} td:nth-child(-n+2) {{ text-align: left }}
tr:nth-child(even) {{ background: #f3f3f3 }} img {{ max-width: 100% }}
</style></head><body>
<h1>{title}</h1>
<p><b>{verdict}</b> {done}</p>
<table><tr><th></th><th></th><th>median, mm</th><th>worst, mm</th><th>right</th><th>wrong</th></tr>
{rows}
</table>
<p>Pairs are made from scans of people that nothing was learned from, both volumes corrupted, under a known transform.
Errors are root mean squares over the tissue. Right is within 1&#8239;% of the size of the tissue or half a voxel, wrong
beyond 3&#8239;%.</p>
<p>Training went on from the model <i>{base}</i> for {minutes:g} minutes, on {date}. The model is the file
model.safetensors beside this page, the run with all settings the folder run.</p>
<h2>What it learned from</h2>
<pre>{data}</pre>
{pictures}
</body></html>
"""


def write_report(folder: Path, settings: Settings, base: Base, table: measure.Comparison, done: str) -> Path:
    """Write report.html, one page with its pictures in it; returns its path."""
    run_folder = Path(settings.run.output)
    rows = "\n".join(
        f"<tr><td>{html.escape(row.part)}</td><td>{html.escape(row.method)}</td><td>{row.median:.2f}</td>"
        f"<td>{max(row.errors):.2f}</td><td>{row.right} of {len(row.errors)}</td><td>{row.wrong}</td></tr>"
        for row in table.rows
    )
    drawn = [
        run_folder / "loss.png",
        run_folder / "data.png",
        *sorted(run_folder.glob("pictures/predictions-*.png"))[-1:],
    ]
    pictures = "\n".join(
        f'<p><img alt="{path.stem}" src="data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"></p>'
        for path in drawn
        if path.exists()
    )
    data = run_folder / "data.txt"
    page = PAGE.format(
        title=html.escape(f"Adapted to {table.modality}"),
        verdict=html.escape(table.sentence()),
        done=html.escape(done),
        rows=rows,
        base=html.escape(base.card.name),
        minutes=settings.optimization.max_minutes,
        date=date.today().isoformat(),
        data=html.escape(data.read_text(encoding="utf-8") if data.exists() else ""),
        pictures=pictures,
    )
    path = folder / "report.html"
    with written_whole(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def parser() -> argparse.ArgumentParser:
    """The parser of the command."""
    out = argparse.ArgumentParser(
        prog="spatial-diffusion adapt",
        description="Adapt the nearest bundled model to a folder of scans, measure it on people held "
        "out, and install it "
        "only if it helps. Interrupted, the same command goes on where it stopped.",
    )
    out.add_argument("scans", metavar="SCANS", help="folder of scans (searched recursively) or text list")
    out.add_argument("-o", "--output", required=True, metavar="FOLDER", help="for the report, the model and the run")
    out.add_argument("--minutes", type=float, default=30.0, metavar="MIN", help="of training (default: 30)")
    out.add_argument("--modality", default="", metavar="M", help="what the scans are (default: recognized)")
    out.add_argument(
        "--name", default="", help="of the model, and of the modality where none is known (default: the folder's)"
    )
    out.add_argument("--people", default="", metavar="FILE.tsv", help="who is shown in which scan: scan, person")
    out.add_argument("--held-out", type=float, default=0.2, metavar="SHARE", help="of the scans (default: 0.2)")
    out.add_argument("--measure", type=int, default=12, metavar="N", help="held-out pairs to measure on (default: 12)")
    out.add_argument("--no-install", action="store_true", help="leave what is installed alone, whatever comes out")
    out.add_argument("--device", default="auto", metavar="DEVICE", help="cpu, cuda, mps or auto")
    out.add_argument("--threads", type=int, default=0, metavar="N", help="CPU threads (default: all)")
    out.add_argument("--seed", type=int, default=0, metavar="N", help="of everything random (default: 0)")
    out.add_argument(
        "--set",
        metavar="SECTION.NAME=VALUE",
        action="append",
        default=[],
        dest="assignments",
        help="any setting of training, the value in JSON; may be repeated",
    )
    return out


def adapt_command(argv: Sequence[str]) -> int:
    """Run the command; returns the exit code."""
    chosen = parser().parse_args(argv)
    if not chosen.minutes > 0:
        raise InputError(f"--minutes expects more than 0, got {chosen.minutes:g}.")
    if chosen.measure < 1:
        raise InputError(f"--measure expects 1 or more, got {chosen.measure}.")
    return adapt(chosen)
