"""An answer as it is stored, and what differs between two of them."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import subprocess
import time
from pathlib import Path

import numpy as np

from SpatialDiffusionCore import Volume, __version__, register

from .cases import CASES, Case
from .sources import ROOT, Missing

STORE = Path(__file__).with_name("answers.json")

#: RMS over the fixed tissue, mm, between answers that count as the same: of one machine, and of two.
SAME, ELSEWHERE = 1e-6, 0.1

#: The figures' largest difference where the matrices are the same.
FIGURES = 1e-5

LEVELS = ("exact", "same", "elsewhere")

#: Entries of an answer that are words or whole numbers, and figures.
_WORDS = (
    "confidence",
    "warnings",
    "kinds",
    "modality",
    "model",
    "transform",
    "sampler",
    "polished",
    "steps",
    "details",
)
_NUMBERS = ("similarity_before", "similarity_after", "overlap", "spread_mm", "agreement", "detour_mm", "sides")


def answer(case: Case) -> dict:
    """Register, and return what is stored, as it comes back from JSON. Raises Missing where a volume is not here."""
    import torch

    torch.set_num_threads(1)
    moving, fixed = case.moving(), case.fixed()
    masks = {
        role: source()
        for role, source in (("moving_mask", case.moving_mask), ("fixed_mask", case.fixed_mask))
        if source is not None
    }
    found = register(moving, fixed, device="cpu", **masks, **case.options)
    quality = found.quality
    mean, covariance = _tissue(fixed, masks.get("fixed_mask"))
    stored = {
        "matrix": found.matrix.tolist(),
        "confidence": quality.confidence,
        "warnings": quality.warnings,
        "kinds": found.kinds(),
        "modality": found.modality,
        "model": found.model,
        "transform": str(found.transform),
        "sampler": str(found.sampler),
        "polished": found.polished,
        "steps": len(found.steps),
        "details": found.details,
        **{name: getattr(quality, name) for name in _NUMBERS},
        "tissue": {"mean": mean.tolist(), "covariance": covariance.tolist()},
        "input": _digest(moving, fixed, *masks.values()),
    }
    return json.loads(json.dumps(stored))


def work(name: str) -> tuple:
    """(name, answer or None, why there is none, CPU seconds) of a case."""
    started = time.process_time()
    try:
        found, why = answer(CASES[name]), ""
    except Missing as missing:
        found, why = None, f"skipped: {missing}"
    except Exception as error:  # one that fails must not hide what the others say
        found, why = None, f"failed: {type(error).__name__}: {error}"
    return name, found, why, time.process_time() - started


def _tissue(volume: Volume, mask: Volume | None) -> tuple:
    """Mean (3, RAS mm) and covariance (3×3) of where answers are compared: brighter than the mean, or in the mask."""
    data = (volume.data > volume.data.mean()) if mask is None else mask.data > 0
    header = (volume if mask is None else mask).voxel_to_ras
    points = np.argwhere(data)[::7] @ header[:3, :3].T + header[:3, 3]
    return points.mean(0), np.cov(points.T, bias=True)


def _digest(*volumes: Volume) -> str:
    """Of what was registered, so that another input is not taken for another answer."""
    digest = hashlib.blake2b(digest_size=8)
    for volume in volumes:
        digest.update(np.ascontiguousarray(volume.data, np.float32).tobytes())
        digest.update((np.round(volume.voxel_to_ras, 5) + 0.0).tobytes())
    return digest.hexdigest()


def distance(found: dict, stored: dict) -> float:
    """mm RMS over the stored fixed tissue between two answers."""
    difference = np.array(found["matrix"]) @ np.linalg.inv(stored["matrix"]) - np.eye(4)
    mean, covariance = (np.array(stored["tissue"][name]) for name in ("mean", "covariance"))
    shift = difference[:3, :3] @ mean + difference[:3, 3]
    spread = np.trace(difference[:3, :3] @ covariance @ difference[:3, :3].T)
    return float(math.sqrt(max(0.0, shift @ shift + spread)))


def differences(found: dict, stored: dict, level: str) -> list[str]:
    """What differs, in words; empty where two answers are the same at one of LEVELS.

    "exact": bit for bit. "same": within SAME, figures within FIGURES, the same words. "elsewhere": within ELSEWHERE
    where the stored answer is good, the same kinds of volumes, and none is good in one place and poor in another.
    """
    if level == "elsewhere":
        return _differences_elsewhere(found, stored)
    said = ["the volumes are not those that were stored"] if found["input"] != stored["input"] else []
    mm = distance(found, stored)
    if found["matrix"] != stored["matrix"] and (level == "exact" or mm > SAME):
        said.append(f"matrix {mm:.3g} mm RMS away")
    said += [f"{name} {stored[name]} → {found[name]}" for name in _WORDS if found[name] != stored[name]]
    allowed = 0.0 if level == "exact" else FIGURES
    said += [
        f"{name} {stored[name]} → {found[name]}" for name in _NUMBERS if not _near(found[name], stored[name], allowed)
    ]
    return said


def _differences_elsewhere(found: dict, stored: dict) -> list[str]:
    mm = distance(found, stored)
    said = [f"matrix {mm:.3g} mm RMS away"] if stored["confidence"] == "good" and mm > ELSEWHERE else []
    said += [
        f"{name} {stored[name]} → {found[name]}"
        for name in ("kinds", "modality", "model", "transform", "sampler")
        if found[name] != stored[name]
    ]
    if {found["confidence"], stored["confidence"]} == {"good", "poor"}:
        said.append(f"confidence {stored['confidence']} → {found['confidence']}")
    return said


def _near(a, b, allowed: float) -> bool:
    """Whether two figures, pairs of figures, or None and None, are within ``allowed``."""
    if a is None or b is None:
        return a is b
    if isinstance(a, list) or isinstance(b, list):
        return (
            isinstance(a, list)
            and isinstance(b, list)
            and len(a) == len(b)
            and all(_near(x, y, allowed) for x, y in zip(a, b))
        )
    return a == b or abs(a - b) <= allowed


# --- the store -----------------------------------------------------------------------------------------------------


def read() -> dict:
    """Name → stored answer."""
    return json.loads(STORE.read_text(encoding="utf-8"))["answers"] if STORE.is_file() else {}


def write(answers: dict) -> None:
    """All answers, in the order of CASES, each entry on a line of its own, the file whole or not at all."""
    blocks = []
    for name in (name for name in CASES if name in answers):
        lines = ",\n".join(
            f"   {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in answers[name].items()
        )
        blocks.append(f"  {json.dumps(name)}: {{\n{lines}\n  }}")
    temporary = STORE.with_suffix(".part")
    temporary.write_text('{\n "answers": {\n' + ",\n".join(blocks) + "\n }\n}\n", encoding="utf-8")
    os.replace(temporary, STORE)


def origin() -> dict:
    """What made an answer: the code's version and commit, and the machine's processor."""
    import torch

    asked = subprocess.run(
        ["git", "describe", "--always", "--dirty=+changes", "--exclude=*"], cwd=ROOT, capture_output=True, text=True
    )
    code = " ".join([__version__, *asked.stdout.split()]) if asked.returncode == 0 else __version__
    capability = torch.backends.cpu.get_cpu_capability()
    return {"code": code, "machine": f"{_processor()}, {capability}, torch {torch.__version__}"}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
