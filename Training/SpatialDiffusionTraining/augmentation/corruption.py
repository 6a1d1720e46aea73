"""The artifacts of a training pair together: drawn, then applied to a batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch

from .draws import Draw
from .filters import (
    Bias,
    Blur,
    Contrast,
    Doubling,
    FieldOfView,
    Intensity,
    Lesion,
    Noise,
    Shadow,
    Strip,
    ThickSlices,
)
from .warps import Deformation, Motion, Stretch, warp

WARPS: dict[str, Any] = {"deformation": Deformation, "motion": Motion, "stretch": Stretch}


# In the order in which they happen: the tissue, the coil and the light, the scanner's sampling, the reader's
# window. The field of view is cut last but noise, which fills the cut-off part as in a real scan's padding.
FILTERS: dict[str, Any] = {
    "contrast": Contrast,
    "lesion": Lesion,
    "bias": Bias,
    "shadow": Shadow,
    "doubling": Doubling,
    "blur": Blur,
    "thick_slices": ThickSlices,
    "intensity": Intensity,
    "noise": Noise,
    "field_of_view": FieldOfView,
}


ARTIFACTS: dict[str, Any] = {"strip": Strip, **WARPS, **FILTERS}


class Corruption:
    """The artifacts of a training pair, each with its probability, and one knob for all their strengths.

    settings: name → {"probability": p, …parameters of the class…}; names as in ARTIFACTS; absent ones are
    off. strength scales every magnitude (0 turns everything off).
    """

    def __init__(self, settings: Mapping[str, Mapping[str, Any]], strength: float = 1.0) -> None:
        unknown = set(settings) - set(ARTIFACTS)
        if unknown:
            raise ValueError(f"unknown artifacts {sorted(unknown)}; known are {sorted(ARTIFACTS)}")
        self.strength = float(strength)
        self.artifacts: dict[str, tuple[float, Any]] = {}
        for name, kind in ARTIFACTS.items():
            if name in settings:
                options: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in settings[name].items()}
                probability = float(options.pop("probability", 0.5))
                if not 0 <= probability <= 1:
                    raise ValueError(f"expected a probability of {name} in 0..1, got {probability}")
                self.artifacts[name] = (probability, kind(**options))

    def draw(self, count: int, generator: torch.Generator) -> dict[str, Draw]:
        """All random numbers for `count` volumes: {name: {"on": count bools, …}}, on the CPU."""
        draws: dict[str, Draw] = {}
        for name, (probability, artifact) in self.artifacts.items():
            draw = artifact.draw(count, generator, self.strength)
            draw["on"] = (torch.rand(count, generator=generator) < probability) & (self.strength > 0)
            draws[name] = draw
        return draws

    def strip(
        self, source: torch.Tensor, masks: tuple[torch.Tensor, torch.Tensor], draws: Mapping[str, Draw]
    ) -> torch.Tensor:
        """The source volumes without what lies outside their masks, where drawn. masks: (rows, their masks)."""
        rows, mask = masks
        on = draws["strip"]["on"][rows] if "strip" in draws else torch.zeros(len(rows), dtype=torch.bool)
        if not bool(on.any()):
            return source
        chosen, which = rows[on], on.nonzero()[:, 0].to(mask.device)  # chosen on the CPU: no wait for the device
        part = {"level": draws["strip"]["level"][chosen]}
        stripped = self.artifacts["strip"][1].apply(source[chosen.to(source.device)], mask[which], part)
        return source.index_copy(0, chosen.to(source.device), stripped)

    def warp(self, source: torch.Tensor, affine: torch.Tensor, draws: Mapping[str, Draw]) -> torch.Tensor:
        """The volumes under affine and the drawn displacements, by one look at every voxel."""
        shape, device = tuple(source.shape[2:]), source.device
        controls = profile = rolled = None
        if "deformation" in draws and bool(draws["deformation"]["on"].any()):
            artifact = self.artifacts["deformation"][1]
            controls = artifact.displace(draws["deformation"], shape)
            controls = (controls * draws["deformation"]["on"].view(-1, 1, 1, 1, 1)).to(device)
        for name in ("motion", "stretch"):
            if name in draws and bool(draws[name]["on"].any()):
                part = self.artifacts[name][1].profile(draws[name], max(shape))
                part = part * draws[name]["on"].view(-1, 1, 1, 1)
                profile = part if profile is None else profile + part
                if name == "motion" and self.artifacts[name][1].roll:
                    rolled = part
        return warp(source, affine, controls, profile, rolled)

    def filter(self, volume: torch.Tensor, draws: Mapping[str, Draw]) -> torch.Tensor:
        """The volumes with the drawn artifacts of intensity; only the chosen samples are touched."""
        for name in FILTERS:
            if name not in draws:
                continue
            chosen = draws[name]["on"].nonzero()[:, 0]  # on the CPU: no wait for the device
            if not len(chosen):
                continue
            part = {k: v[chosen].to(volume.device) for k, v in draws[name].items() if k != "on"}
            artifact = self.artifacts[name][1]
            if len(chosen) == len(volume):
                volume = artifact.apply(volume, part)
            else:
                rows = chosen.to(volume.device)
                volume = volume.index_copy(0, rows, artifact.apply(volume[rows], part))
        return volume.clamp_(0, 1)


def take(draws: Mapping[str, Any], rows: torch.Tensor) -> dict[str, Any]:
    """The given rows of a drawn dictionary (a process's share of a global batch)."""
    return {k: take(v, rows) if isinstance(v, dict) else v[rows] for k, v in draws.items()}


def describe() -> dict[str, dict[str, Any]]:
    """Every artifact with its parameters' defaults: {name: {parameter: value}}."""
    out: dict[str, dict[str, Any]] = {}
    for name, kind in ARTIFACTS.items():
        out[name] = {f.name: f.default for f in fields(kind)} if kind is not Noise else {"sigma": 0.08, "inside": 0.5}
    return out
