"""A network of matches: cells of both volumes compared all with all, the affine solved from the mutual ones."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .affine_transformer import preprocess
from .front import front_view
from .layers import Convolution, remaining_grid, sinusoidal_code
from .pyramid import _Pyramid, solve_affine


def transform(points: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
    """Where θ (B×3×4) takes B×N×3 normalized points."""
    return points @ theta[:, :, :3].transpose(1, 2) + theta[:, None, :, 3]


def _averaged(volume: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """B×C×D×H×W volumes averaged to the size of others."""
    d, h, w = like.shape[2:]
    return F.adaptive_avg_pool3d(volume, (d, h, w))


class MatchTransformer(_Pyramid):
    """Every cell of the fixed volume finds its like among all cells of the moving one; the affine is fitted to that.

    Each volume is seen alone and gives a feature vector per cell of 4³ voxels. Cells are compared all with all, a match
    counts as far as it is mutual (dual softmax, as in LoFTR, Sun et al., arXiv 2104.00680), and the affine is the
    weighted least-squares fit. Unlike feature points it needs no place that every scan shows: vessels of a retina, and
    parts of a body that only some scans hold, will do. cells: how many of each volume, the brightest, take part.
    features: length of their vectors. fine: length of the vectors of cells of 2³ voxels, which are compared in turn
    with those about the place where the first affine puts them (0: no such second look). front: made to see eyes from
    the front (preprocessing "front", see front_view): cells are then squares of their maps, in the middle of the
    tissue. The other arguments as in PointTransformer.
    """

    #: How many fine cells to either side the second look reaches.
    REACH = 2

    #: The ridge of the fit to places seen from the front: they lie on one surface, which says little about depth.
    RIDGE = 1e-4, 3e-2, 1e-4

    def __init__(
        self,
        volume_size: Sequence[int],
        channels: Sequence[int] = (16, 64, 128, 128),
        features: int = 48,
        cells: int = 1024,
        fine: int = 0,
        front: bool = False,
        n_classes: int = 1,
        class_dropout: float = 0.15,
        groups: int = 8,
        time_width: int = 128,
    ) -> None:
        super().__init__(volume_size, channels, n_classes, class_dropout, groups, time_width)
        c2, c4 = int(channels[0]), int(channels[1])
        self.count, self.fine, self.front = int(cells), int(fine), bool(front)
        self.feature = nn.Sequential(nn.GroupNorm(groups, c4), nn.SiLU(), Convolution(c4, features + 1, 1))
        # Logits are cosines times this; and minus the squared distance times what the timestep says about it.
        self.log_sharpness = nn.Parameter(torch.tensor(math.log(10.0)))
        self.nearness = nn.Sequential(nn.GELU(), nn.Linear(time_width, 1))
        if self.fine:
            self.up2 = Convolution(c4, fine, 1)
            self.mix2 = Convolution(c2, fine, 3, 1, 1)
            self.feature2 = nn.Sequential(nn.GroupNorm(groups, fine), nn.SiLU(), Convolution(fine, fine + 1, 3, 1, 1))
            self.log_sharpness2 = nn.Parameter(torch.tensor(math.log(10.0)))

    def describe(
        self,
        volume: torch.Tensor,
        t: torch.Tensor,
        class_id: torch.Tensor | None = None,
        preprocessing: str = "none",
        fine: bool = False,
    ) -> tuple:
        """Vectors of length 1 (B×N×F), centers (B×N×3, normalized x, y, z) and log-weights (B×N) of the cells, and how
        near a match should lie (B). With ``fine`` also which cells these are (B×N) and, on a grid of half the size, the
        fine vectors, log-weights and, seen from the front, heights (B×(fine + 1 or 2)×D/2×H/2×W/2).
        """
        height = None
        if preprocessing == "front":
            volume, height, known = front_view(volume)
            light = known
        else:
            light = volume = preprocess(volume, preprocessing)
        f2, f4, _ = self.encode(volume, t, class_id)
        found = self.feature(f4).float().flatten(2)
        light = _averaged(light.float(), f4).flatten(1)
        centers = cell_centers(f4.shape[2:], f4.device).expand(len(light), -1, -1)
        if height is not None:
            middle = _averaged(height, f4).flatten(1) / light.clamp_min(1e-3)
            centers = torch.stack([centers[..., 0], middle, centers[..., 2]], dim=2)
        light, kept = light.topk(min(self.count, light.shape[1]), dim=1)
        found = found.gather(2, kept[:, None].expand(-1, found.shape[1], -1)).transpose(1, 2)
        centers = centers.gather(1, kept[:, :, None].expand(-1, -1, 3))
        vectors, weights = F.normalize(found[..., :-1], dim=2), found[..., -1]
        if height is not None:  # a square without tissue is like no other
            there = (light > 0.5).float()
            vectors, weights = vectors * there[..., None], weights + (there + 1e-4).log()
        near = F.softplus(self.nearness(self.time_mlp(sinusoidal_code(t, self.time_width))).float())[:, 0]
        coarse = vectors, centers, weights, near
        if not fine:
            return coarse
        up = F.interpolate(self.up2(f4), size=f2.shape[2:], mode="trilinear", align_corners=False)
        grid = self.feature2(up + self.mix2(f2)).float()
        if height is not None:
            middle = _averaged(height, f2) / _averaged(known, f2).clamp_min(1e-3)
            grid = torch.cat([grid, middle], dim=1)
        return *coarse, kept, grid

    def compare(self, fixed: tuple, moving: tuple) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities (B×N×M) of every moving cell given a fixed one, and of fixed cells given moving ones."""
        (u, x, _, near), (v, y, _, _) = fixed, moving
        logits = self.log_sharpness.exp() * u @ v.transpose(1, 2) - near[:, None, None] * torch.cdist(x, y).square()
        return logits.log_softmax(2), logits.log_softmax(1)

    def correspond(
        self, fixed: tuple, moving: tuple, compared: tuple[torch.Tensor, torch.Tensor] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """The fixed cells, and where each finds its like on average, weighted by how mutual that is."""
        rows, columns = compared or self.compare(fixed, moving)
        mutual = rows + columns
        best = mutual.detach().amax(2, keepdim=True)
        # Without the floor nearly all are numbers so small that a CPU takes ten times as long for each.
        shares = (mutual - best).clamp_min(-60.0).exp()
        total = shares.sum(2, keepdim=True)
        found = (total.log() + best)[..., 0]
        return fixed[1], shares @ moving[1] / total, fixed[2] + found, found.exp().mean(1)

    def look_again(
        self, fixed: tuple, moving: tuple, trust: torch.Tensor, theta: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """(source, places tried, their log-probabilities, log-weights) of a fine cell in each of the surer half of the
        cells.

        fixed, moving: descriptions with their fine parts; trust: B×N log-weights of the coarse matches; theta: B×3×4,
        about whose answer it looks. Places are B×N×M×3, M = (2·REACH + 1)³.
        """
        trust, surer = trust.topk((trust.shape[1] + 1) // 2, dim=1)
        kept, grid, vectors = fixed[4].gather(1, surer), fixed[5], F.normalize(moving[5][:, : self.fine], dim=1)
        height, front = moving[5][:, self.fine + 1 :], grid.shape[1] > self.fine + 1
        cell = 2.0 / torch.tensor(grid.shape[:1:-1], device=grid.device)
        chosen = grid[:, :, ::2, ::2, ::2].flatten(2)
        chosen = chosen.gather(2, kept[:, None].expand(-1, chosen.shape[1], -1)).transpose(1, 2)
        every = cell_centers(grid.shape[2:], grid.device).view(*grid.shape[2:], 3)
        source = every[::2, ::2, ::2].reshape(-1, 3)[kept]
        steps = torch.arange(-self.REACH, self.REACH + 1, device=grid.device)
        offsets = torch.cartesian_prod(steps, steps[self.REACH : self.REACH + 1] if front else steps, steps) * cell
        if front:
            source = torch.stack([source[..., 0], chosen[..., -1], source[..., 2]], dim=2)
        places = transform(source, theta)[:, :, None] + offsets
        if front:
            places = places * torch.tensor([1.0, 0.0, 1.0], device=grid.device)
        seen = F.grid_sample(vectors, places[:, :, :, None], align_corners=False)[..., 0]
        if front:
            middle = F.grid_sample(height, places[:, :, :, None], align_corners=False)[:, 0, :, :, 0]
            places = torch.stack([places[..., 0], middle, places[..., 2]], dim=3)
        alike = torch.einsum("bnf,bfnm->bnm", F.normalize(chosen[..., : self.fine], dim=2), seen)
        found = (self.log_sharpness2.exp() * alike).log_softmax(2)
        # A match that spreads over many places says little: the chance that two draws from it agree.
        return source, places, found, trust + chosen[..., self.fine] + (2 * found).logsumexp(2)

    @staticmethod
    def _cells(shape: Sequence[int], preprocessing: str) -> tuple:
        """The grid of the coarse cells of B×1×D×H×W volumes."""
        d, h, w = remaining_grid(shape[2:], 1)
        return (d, 1, w) if preprocessing == "front" else (d, h, w)

    def forward(
        self,
        fixed: torch.Tensor,
        moving: torch.Tensor,
        t: torch.Tensor,
        class_id: torch.Tensor | None = None,
        preprocessing: tuple[str, str] = ("none", "none"),
        target: torch.Tensor | None = None,
    ) -> Any:
        """As in PointTransformer. With ``target``, the true θ: (the θ of each look, the matches' cross-entropy, B)."""
        solve = functools.partial(solve_affine, ridge=self.RIDGE) if "front" in preprocessing else solve_affine
        # Maps are single slices, of which half-precision convolutions give gradients that are no numbers (torch 2.13,
        # CPU).
        with contextlib.ExitStack() as stack:
            if "front" in preprocessing:
                stack.enter_context(torch.autocast(fixed.device.type, enabled=False))
            first, second = self.describe_both(fixed, moving, t, class_id, preprocessing, fine=bool(self.fine))
        with torch.autocast(fixed.device.type, enabled=False):
            compared = self.compare(first[:4], second[:4])
            source, aim, trust, _ = self.correspond(first[:4], second[:4], compared)
            thetas = [solve(source, aim, torch.softmax(trust, dim=1))]
            entropy: torch.Tensor | float = 0.0
            if target is not None:
                target = target.float()
                known = tuple(side[0].norm(dim=2) > 0.5 for side in (first, second))
                shape = self._cells(fixed.shape, preprocessing[0])
                entropy = match_entropy(compared[0], compared[1], first[1], second[1], target, shape, known)
            if self.fine:
                source, places, found, trust = self.look_again(first, second, trust, thetas[0].detach())
                aim = (found.exp()[..., None] * places).sum(2)
                thetas.append(solve(source, aim, torch.softmax(trust, dim=1)))
                if target is not None:
                    true = transform(source, target)
                    weight = true_weights(true, places, 2.0 / torch.tensor(second[5].shape[:1:-1], device=true.device))
                    entropy = entropy - (weight * found).sum((1, 2)) / weight.sum((1, 2)).clamp_min(1.0)
        return thetas[-1] if target is None else (thetas, entropy)


def true_weights(
    true: torch.Tensor, places: torch.Tensor, cell: torch.Tensor, present: torch.Tensor | float = 1.0
) -> torch.Tensor:
    """How far each place (B×N×M×3) is the true one (B×N×3): trilinear weights of cells with edges ``cell`` (3) where
    ``present``, B×N×M; 0 for all places of a true one of which they hold less than half."""
    weight = present * (1 - (true[:, :, None] - places).abs() / cell).clamp_min(0).prod(3)
    return weight * (weight.sum(2, keepdim=True) > 0.5)


def match_entropy(
    rows: torch.Tensor,
    columns: torch.Tensor,
    x: torch.Tensor,
    y: torch.Tensor,
    target: torch.Tensor,
    shape: Sequence[int],
    known: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> torch.Tensor:
    """Cross-entropy (B) of the matches of cells at x (B×N×3) and y (B×M×3) of a D×H×W grid under the true θ (B×3×4).

    rows, columns: B×N×M log-probabilities of y given x and of x given y. known: which cells show something, B×N and B×M
    (default: all).
    """
    size = torch.tensor(tuple(shape)[::-1], device=x.device)
    cell = 2.0 / size
    strides = torch.tensor([1, shape[2], shape[1] * shape[2]], device=x.device)
    where = torch.full((len(y), math.prod(shape)), -1, device=x.device)
    numbers = torch.arange(y.shape[1], device=x.device).expand(len(y), -1)
    if known is not None:
        numbers = numbers.where(known[1], -1)
    where.scatter_(1, (((y + 1) / cell - 0.5).round().long() * strides).sum(2), numbers)
    true = transform(x, target)
    steps = torch.arange(2, device=x.device)
    corners = ((true + 1) / cell - 0.5).floor().long()[:, :, None] + torch.cartesian_prod(steps, steps, steps)
    inside = ((corners >= 0) & (corners < size)).all(3)
    index = where.gather(1, ((corners * strides).sum(3) * inside).flatten(1)).view(inside.shape)
    present = inside & (index >= 0)
    if known is not None:
        present = present & known[0][:, :, None]
    weight = true_weights(true, (corners + 0.5) * cell - 1, cell, present.float())
    found = rows.gather(2, index.clamp_min(0)) + columns.gather(2, index.clamp_min(0))
    return -(weight * found).sum((1, 2)) / (2 * weight.sum((1, 2)).clamp_min(1.0))


def cell_centers(shape: Sequence[int], device: torch.device) -> torch.Tensor:
    """Centers (D·H·W×3, normalized x, y, z) of the cells of a D×H×W grid."""
    axes = [(2 * torch.arange(n, device=device) + 1) / n - 1 for n in shape]
    z, y, x = torch.meshgrid(*axes, indexing="ij")
    return torch.stack([x, y, z], dim=-1).reshape(-1, 3)
