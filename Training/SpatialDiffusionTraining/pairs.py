"""From rows of the cache to what the network sees: one training pair per row, made on the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from SpatialDiffusionCore.errors import InputError
from SpatialDiffusionCore.method import diffusion
from SpatialDiffusionCore.method.diffusion import compose
from SpatialDiffusionCore.method.schedule import Schedule
from SpatialDiffusionCore.modality import MODALITIES
from SpatialDiffusionCore.networks.affine_transformer import preprocess

from . import losses
from .augmentation import Corruption, Draw, Pose, take
from .datasets import Cache
from .settings import Augmentation, Settings


def seeded(*numbers: int) -> torch.Generator:
    """A CPU generator whose numbers depend on all of `numbers` (whole, not negative)."""
    state = 0x9E3779B97F4A7C15
    for number in numbers:
        state = ((state ^ (int(number) + 0x632BE59BD9B4E019)) * 0xBF58476D1CE4E5B9) % 2**64
        state ^= state >> 29
    return torch.Generator().manual_seed(state % 2**63)


@dataclass
class Pairs:
    """A batch: volumes B×1×D×H×W in 0..1; t, class_id B; target B×3×4; tissue moments of the fixed volumes."""

    fixed: torch.Tensor
    moving: torch.Tensor
    t: torch.Tensor
    class_id: torch.Tensor
    target: torch.Tensor
    mean: torch.Tensor
    covariance: torch.Tensor
    rows: list[int]


class PairMaker:
    """Draws and makes pairs: one shared pose, one affine of the diffusion, independent corruption of both.

    Both volumes of a pair are one scan, or two whose alignment the cache knows (partners).
    """

    def __init__(self, cache: Cache, settings: Settings, device: str | torch.device = "cpu") -> None:
        self.cache, self.device = cache, torch.device(device)
        self.clean = settings.augmentation.clean
        self.partner = settings.augmentation.partner
        self.rigid_share = settings.diffusion.rigid_share
        classes = torch.zeros(max(e["row"] for e in cache.entries) + 1, dtype=torch.long)
        for entry in cache.entries:
            classes[entry["row"]] = entry["class_id"]
        self.classes = classes
        self.half = losses.half_edges(cache.shape, cache.spacing, torch.zeros(1))
        self.published = "published" in settings.data.loader
        self.preprocessed: dict[str, set[int]] = {}
        for entry in cache.entries:
            name = self.preprocessing(entry["modality"])
            if name != "none":
                self.preprocessed.setdefault(name, set()).add(entry["row"])
        # What holds for the first modality holds for all rows but those of the variants.
        first, *others = dict.fromkeys(entry["modality"] for entry in cache.entries)
        self.pose, self.corruption = changed(settings.augmentation, first)
        self.schedule = make_schedule(settings, first)
        self.variants: list[tuple[set[int], Pose, Corruption]] = []
        for modality in others:
            self._vary(modality, first, settings)

    def _vary(self, modality: str, first: str, settings: Settings) -> None:
        """Take up what differs for the rows of another modality than the first."""
        rows = {e["row"] for e in self.cache.entries if e["modality"] == modality}
        self.variants.append((rows, *changed(settings.augmentation, modality)))
        if _shapes(self.variants[-1][2]) != _shapes(self.corruption):
            raise InputError(
                f"Scans of {first} and {modality} share batches, so their artifacts may not differ in "
                "controls, knots or most (augmentation.by_modality)."
            )
        if make_schedule(settings, modality) != self.schedule:
            raise InputError(
                f"{first} and {modality} share a grid, so they must share the noise, too (diffusion.by_modality)."
            )

    def preprocessing(self, modality: str) -> str:
        """What the published recipe does to volumes of a modality before the network sees them ("none" otherwise)."""
        if not self.published or modality not in MODALITIES:
            return "none"
        return MODALITIES[modality].preprocessing  # see model.Model.denoiser

    def _draw_artifacts(self, rows: Sequence[int], generator: torch.Generator) -> dict[str, Draw]:
        """Drawn numbers of all artifacts for fixed and moving volumes of the rows, by each row's modality."""
        draws = self.corruption.draw(2 * len(rows), generator)
        for of_modality, _, corruption in self.variants:
            other = corruption.draw(2 * len(rows), generator)
            chosen = torch.tensor([row in of_modality for row in rows] * 2)
            for name, draw in other.items():
                for key, values in draw.items():
                    draws[name][key][chosen] = values[chosen]
        return draws

    def _draw_partners(self, rows: Sequence[int], generator: torch.Generator) -> tuple[list[int], torch.Tensor]:
        """(rows of the moving volumes, affines from the fixed scans' cubes to theirs, B×3×4): a partner of the scan,
        where there is one and the dice say so, else the scan itself."""
        count = len(rows)
        alone = torch.rand(count, generator=generator) >= self.partner
        which = torch.rand(count, generator=generator)
        others, between = list(rows), torch.eye(3, 4).repeat(count, 1, 1)
        for i, row in enumerate(rows):
            known = self.cache.partners.get(int(row))
            if known and not alone[i]:
                others[i], between[i] = known[int(which[i] * len(known))]
        return others, between

    def make(
        self,
        rows: Sequence[int],
        generator: torch.Generator,
        share: slice = slice(None),
        t: Sequence[int] | torch.Tensor | None = None,
        corrupt: bool = True,
        enhance: bool = True,
    ) -> Pairs:
        """Pairs of the rows `share` of a global batch: all numbers are drawn for the whole batch, then cut.

        t: timesteps instead of uniform ones in 1..T; corrupt: False leaves out all artifacts; enhance: False leaves out
        the preprocessing, for those who warp the volumes once more, as the diffusion's process does, before it.
        """
        count, shape = len(rows), self.cache.shape
        drawn = torch.randint(1, self.schedule.timesteps + 1, (count,), generator=generator)
        t = drawn if t is None else torch.as_tensor(t)
        pose = self.pose.draw(count, generator, shape, self.cache.spacing)
        for of_modality, other, _ in self.variants:
            chosen = torch.tensor([row in of_modality for row in rows])
            pose[chosen] = other.draw(count, generator, shape, self.cache.spacing)[chosen]
        affine, target = diffusion.draw(self.schedule, t, shape, generator, self.rigid_share)
        affine, target = affine.float(), target.float()
        draws = self._draw_artifacts(rows, generator)
        clean = (torch.rand(count, generator=generator) < self.clean).repeat(2)
        for draw in draws.values():
            draw["on"] &= ~clean
            if not corrupt:
                draw["on"][:] = False
        own = torch.arange(count)[share]
        draws = take(draws, torch.cat([own, own + count]))
        mine = [int(rows[i]) for i in own.tolist()]
        others, between = self._draw_partners(rows, generator)
        theirs = [int(others[i]) for i in own.tolist()]
        index = torch.tensor(mine)
        mean, covariance = losses.moved_moments(self.cache.means[index], self.cache.covariances[index], pose[own])
        both = torch.cat([pose[own], compose(between, compose(pose, affine))[own]]).to(self.device)
        volumes = self._volumes(mine + theirs, both, draws, enhance)
        fixed, moving = volumes.chunk(2)
        to: dict[str, Any] = {"device": self.device, "non_blocking": True}
        return Pairs(
            fixed,
            moving,
            t[own].to(**to),
            self.classes[index].to(**to),
            target[own].to(**to),
            mean.to(**to),
            covariance.to(**to),
            mine,
        )

    def _volumes(self, rows: list[int], affines: torch.Tensor, draws: dict[str, Draw], enhance: bool) -> torch.Tensor:
        """The scans of rows under affines and artifacts, B×1×D×H×W in 0..1."""
        source = self.cache.read(rows, self.device)
        source = self.corruption.strip(source, self.cache.read_masks(rows, self.device), draws)
        volumes = self.corruption.filter(self.corruption.warp(source, affines, draws), draws)
        for name, of_name in self.preprocessed.items() if enhance else ():
            chosen = [i for i, row in enumerate(rows) if row in of_name]
            if chosen:  # as the network would do it, which cannot tell the samples of a batch apart
                volumes[chosen] = preprocess(volumes[chosen], name)
        return volumes


def changed(augmentation: Augmentation, modality: str | None) -> tuple[Pose, Corruption]:
    """Pose and artifacts of the settings for a modality (None: for those without changes of their own)."""
    changes = augmentation.by_modality.get(modality, {})
    artifacts = {name: {**values, **changes.get(name, {})} for name, values in augmentation.artifacts.items()}
    return Pose(**{**augmentation.pose, **changes.get("pose", {})}), Corruption(artifacts, augmentation.strength)


def _shapes(corruption: Corruption) -> dict[tuple[str, str], torch.Size]:
    draws = corruption.draw(1, torch.Generator().manual_seed(0))
    return {(name, key): values.shape for name, draw in draws.items() for key, values in draw.items()}


def make_schedule(settings: Settings, modality: str | None = None) -> Schedule:
    """The core's schedule from a run's settings: the modality's own, where they name one (diffusion.by_modality)."""
    d = settings.diffusion
    own = d.by_modality.get(modality, {})
    transform, translation = (
        tuple(own.get(name, getattr(d, name))) for name in ("transform_range", "translation_range")
    )
    return Schedule(timesteps=d.timesteps, kind=d.kind, transform_range=transform, translation_range=translation)
