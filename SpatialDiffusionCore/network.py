"""The networks that predict, at a timestep, the affine that undoes a misalignment.

``AffineTransformer`` is the published 3D affine spatial transformer, key for key. ``PointTransformer`` sees each
volume alone, finds corresponding feature points in both and solves for the affine by weighted least squares;
``MatchTransformer`` does so with places that it matches all with all. All take (fixed, moving, t, class) and return θ,
B×3×4 normalized (see geometry.py).
"""
from __future__ import annotations

import contextlib
import functools
import math
from typing import Sequence

import torch
import torch.nn.functional as F
from torch import nn

PUBLISHED_CHANNELS = (2, 64, 128, 256, 256, 512, 1024)


def sinusoidal_code(t: torch.Tensor, width: int) -> torch.Tensor:
    """Sines then cosines of t at width/2 frequencies from 1 down to 1/10000, B×width."""
    half = width // 2
    frequencies = torch.exp(-math.log(10000.0) / (half - 1) * torch.arange(half, device=t.device))
    angles = t.float()[:, None] * frequencies[None]
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def remaining_grid(size: Sequence[int], blocks: int = 5) -> tuple:
    """Size of the feature grid after the first convolution and ``blocks`` halving blocks."""
    grid = [n // 2 for n in size]
    for _ in range(blocks):
        grid = [(n - 1) // 2 + 1 for n in grid]
    return tuple(grid)


class Convolution(nn.Conv3d):
    """nn.Conv3d that is as fast for a small volume alone as for two: there PyTorch leaves oneDNN on a CPU, and takes four times
    as long for each."""

    def forward(self, x):
        alone = len(x) == 1 and x.device.type == "cpu" and x.dtype == self.weight.dtype == torch.float32
        if not alone or torch.is_grad_enabled() or not torch.backends.mkldnn.is_available():
            return super().forward(x)
        return torch.mkldnn_convolution(x.contiguous(), self.weight, self.bias, self.padding, self.stride, self.dilation,
                                        self.groups)


# --- modality preprocessing --------------------------------------------------------------------------------

#: name → (ω, threshold) of the Gabor enhancement; "none" leaves volumes unchanged.
PREPROCESSING = {"none": None, "oct": (0.5, -0.4), "octa": (0.95, -0.5)}


def gabor_kernel(omega: float, angle: float) -> torch.Tensor:
    """5×5×5 cosine Gabor kernel (axes z, y, x = D, H, W) with φ = 0 and κ = π, normalized to sum 1.

    All in single precision, in the published order of operations: the response is compared with a threshold, so the
    last digit decides about voxels.
    """
    offsets = torch.arange(-2, 3)
    z, y, x = torch.meshgrid(offsets, offsets, offsets, indexing="ij")
    omega, angle, kappa = torch.tensor(float(omega)), torch.tensor(float(angle)), torch.tensor(math.pi)
    x1 = x * torch.cos(angle) + y * torch.sin(angle)
    y1 = -x * torch.sin(angle) + y * torch.cos(angle)
    spread = -(omega**2) / (8 * kappa**2) * (4 * x1**2 + y1**2 + z**2)
    envelope = omega**2 / (4 * math.pi * kappa**2) * torch.exp(spread)
    kernel = envelope * (torch.cos(omega * x1) * torch.exp(kappa**2 / 2))
    return kernel / kernel.sum()


def preprocess(volume: torch.Tensor, name: str) -> torch.Tensor:
    """Apply a modality's preprocessing to each channel of B×C×D×H×W volumes in 0…1; the result is in 0…1."""
    if name not in PREPROCESSING:
        raise ValueError(f"unknown preprocessing {name!r}; choose one of: {', '.join(PREPROCESSING)}")
    if PREPROCESSING[name] is None:
        return volume
    omega, threshold = PREPROCESSING[name]
    channels, responses = volume.shape[1], []
    for angle in (math.pi / 2, 0.0):
        kernel = gabor_kernel(omega, angle).to(volume).repeat(channels, 1, 1, 1, 1)
        responses.append(F.conv3d(volume, kernel, padding="same", groups=channels) * 2 - 1)
    return (torch.maximum(*responses) >= threshold).to(volume.dtype)


def front_view(volume: torch.Tensor):
    """(maps, height, known) of B×1×D×H×W scans of eyes in 0…1, seen from the front, along H.

    maps: B×1×D×2×W in 0…1, the two maps of enface.maps_of as if they were two slices; height: B×1×D×1×W, normalized y of the
    tissue's middle, 0 where it is not known; known: B×1×D×1×W, 0 or 1.
    """
    from .enface import maps_of

    values = volume[:, 0].float()
    with torch.no_grad():
        maps, _, height, known = maps_of(values, torch.ones_like(values), 2 / volume.shape[3])
    return maps.permute(0, 2, 1, 3)[:, None] / 5 + 0.5, (height * known)[:, None, :, None], known[:, None, :, None]


# --- the published network ---------------------------------------------------------------------------------


class _Block(nn.Module):
    """Pre-activation residual block that adds the time and class codes and halves the grid (stride 2) or keeps it."""

    def __init__(self, inner: int, outer: int, groups: int, time_width: int, rows: int, stride: int = 2):
        super().__init__()
        self.conv1 = nn.Sequential(nn.GroupNorm(groups, inner), nn.SiLU(), Convolution(inner, outer, 3, stride, 1))
        self.conv2 = nn.Sequential(nn.GroupNorm(groups, outer), nn.SiLU(), Convolution(outer, outer, 3, 1, 1))
        pool = nn.MaxPool3d(2, 2, ceil_mode=True) if stride == 2 else nn.Identity()
        self.res_conv = nn.Sequential(pool, Convolution(inner, outer, 1)) if inner != outer else pool
        self.time_embed = nn.Sequential(nn.GELU(), nn.Linear(time_width, outer))
        if rows:
            self.class_embedding = nn.Embedding(rows, outer)

    def forward(self, x, time_code, class_id):
        code = self.time_embed(time_code)
        if class_id is not None:
            code = code + self.class_embedding(class_id)
        h = self.conv1(x) + code[:, :, None, None, None]
        return self.conv2(h) + self.res_conv(x)


class _Encoder(nn.Module):
    def __init__(self, channels, groups, time_width, rows):
        super().__init__()
        self.in_conv = nn.Conv3d(channels[0], channels[1], 4, 2, 1)
        self.encoder = nn.ModuleList(
            _Block(a, b, groups, time_width, rows) for a, b in zip(channels[1:-1], channels[2:])
        )

    def forward(self, x, time_code, class_ids):
        x = self.in_conv(x)
        for block, class_id in zip(self.encoder, class_ids):
            x = block(x, time_code, class_id)
        return x


class _Conditioned(nn.Module):
    """What both networks share: the size they see, the class ids and their dropout."""

    def __init__(self, volume_size, n_classes: int, class_dropout: float):
        super().__init__()
        self.volume_size = tuple(int(n) for n in volume_size)
        self.n_classes, self.class_dropout = int(n_classes), float(class_dropout)
        # With class dropout row 0 means "no modality"; an unconditional network has no rows at all.
        self.rows = 0 if self.n_classes == 1 else self.n_classes + (1 if self.class_dropout > 0 else 0)

    def class_ids(self, class_id, batch: int, device, blocks: int) -> list:
        """The class ids each block uses: as given, or 0 with probability class_dropout while training."""
        if not self.rows:
            return [None] * blocks
        if class_id is None:
            class_id = torch.zeros(batch, dtype=torch.long, device=device)
        class_id = class_id.to(device=device, dtype=torch.long)
        if not self.training or self.class_dropout == 0:
            return [class_id] * blocks
        kept = torch.rand(blocks, batch, device=device) >= self.class_dropout
        return [class_id * keep for keep in kept]


class AffineTransformer(_Conditioned):
    """The published 3D affine spatial transformer.

    volume_size: (D, H, W) the network is built for; volumes of another size are resized to it. channels: 2, then
    one per stage. n_classes: number of modalities (1 = unconditional). Its state dict has the published keys.
    """

    def __init__(
        self,
        volume_size: Sequence[int],
        channels: Sequence[int] = PUBLISHED_CHANNELS,
        n_classes: int = 1,
        class_dropout: float = 0.15,
        groups: int = 32,
        time_width: int = 256,
    ):
        super().__init__(volume_size, n_classes, class_dropout)
        channels = tuple(int(c) for c in channels)
        self.time_width = time_width
        self.time_mlp = nn.Sequential(
            nn.Linear(time_width, 4 * time_width), nn.GELU(), nn.Linear(4 * time_width, time_width)
        )
        self.encoder = _Encoder(channels, groups, time_width, self.rows)
        kernel = remaining_grid(volume_size, len(channels) - 2)
        self.output_head = nn.Sequential(
            nn.GroupNorm(groups, channels[-1]), nn.SiLU(), nn.Conv3d(channels[-1], 12, kernel)
        )

    def fit_size(self, volume: torch.Tensor) -> torch.Tensor:
        """Resize B×1×D×H×W volumes to the size this network was built for."""
        if tuple(volume.shape[2:]) == self.volume_size:
            return volume
        return F.interpolate(volume, size=self.volume_size, mode="trilinear", align_corners=False)

    def forward(self, fixed, moving, t, class_id=None, preprocessing=("none", "none")):
        """fixed, moving: B×1×D×H×W in 0…1; t: B in 1…T; class_id: B or None; preprocessing: (fixed, moving)."""
        pair = self.fit_size(torch.cat([fixed, moving], dim=1))
        if preprocessing[0] == preprocessing[1]:
            pair = preprocess(pair, preprocessing[0])
        else:
            pair = torch.cat([preprocess(pair[:, i:i + 1], name) for i, name in enumerate(preprocessing)], dim=1)
        code = self.time_mlp(sinusoidal_code(t, self.time_width))
        ids = self.class_ids(class_id, pair.shape[0], pair.device, len(self.encoder.encoder))
        features = self.encoder(pair * 2 - 1, code, ids)
        residual = self.output_head(features).reshape(-1, 3, 4)
        return residual + torch.eye(3, 4, device=residual.device, dtype=residual.dtype)


# --- feature points ----------------------------------------------------------------------------------------


def solve_affine(source, target, weights, ridge=1e-4):
    """θ (B×3×4) that maps B×N×3 ``source`` points to ``target`` with B×N weights, by weighted least squares.

    The ridge, one number or one per axis (3), pulls the 3×3 part to the identity where the points do not determine it (all
    in one plane, say).
    """
    weights = weights / weights.sum(dim=1, keepdim=True)
    mean_source = (weights[..., None] * source).sum(1, keepdim=True)
    mean_target = (weights[..., None] * target).sum(1, keepdim=True)
    centered, aimed = source - mean_source, target - mean_target
    weighted = (weights[..., None] * centered).transpose(1, 2)
    covariance = weighted @ centered + torch.diag(torch.as_tensor(ridge, device=source.device).float().expand(3))
    change = torch.linalg.solve(covariance, weighted @ (aimed - centered)).transpose(1, 2)
    linear = torch.eye(3, device=source.device) + change
    translation = mean_target.transpose(1, 2) - linear @ mean_source.transpose(1, 2)
    return torch.cat([linear, translation], dim=2)


def transform(points, theta):
    """Where θ (B×3×4) takes B×N×3 normalized points."""
    return points @ theta[:, :, :3].transpose(1, 2) + theta[:, None, :, 3]


class _Pyramid(_Conditioned):
    """A small U-shaped encoder that sees one volume and gives features on a quarter of the cube's resolution.

    channels: of the grids at 1/2, 1/4, 1/8 and 1/16 of the cube's size; the other arguments as in AffineTransformer.
    Volumes of any size will do; volume_size is what it is trained on.
    """

    def __init__(self, volume_size, channels, n_classes, class_dropout, groups, time_width):
        super().__init__(volume_size, n_classes, class_dropout)
        c2, c4, c8, c16 = (int(c) for c in channels)
        self.time_width = time_width
        self.time_mlp = nn.Sequential(
            nn.Linear(time_width, 2 * time_width), nn.GELU(), nn.Linear(2 * time_width, time_width)
        )
        common = (groups, time_width, self.rows)
        self.stem = Convolution(1, c2, 4, 2, 1)
        self.down4 = _Block(c2, c4, *common)
        self.down8 = _Block(c4, c8, *common)
        self.down16 = _Block(c8, c16, *common)
        self.up8 = Convolution(c16, c8, 1)
        self.mix8 = _Block(c8, c8, *common, stride=1)
        self.up4 = Convolution(c8, c4, 1)
        self.mix4 = nn.Sequential(nn.GroupNorm(groups, c4), nn.SiLU(), Convolution(c4, c4, 3, 1, 1))

    def encode(self, volume, t, class_id):
        """Features at 1/2, at 1/4 and at 1/16 of the size of B×1×D×H×W preprocessed volumes in 0…1."""
        x = volume * 2 - 1
        code = self.time_mlp(sinusoidal_code(t, self.time_width))
        ids = self.class_ids(class_id, x.shape[0], x.device, 4)
        f2 = self.stem(x)
        f4 = self.down4(f2, code, ids[0])
        f8 = self.down8(f4, code, ids[1])
        f16 = self.down16(f8, code, ids[2])
        up = F.interpolate(self.up8(f16), size=f8.shape[2:], mode="trilinear", align_corners=False)
        f8 = self.mix8(f8 + up, code, ids[3])
        up = F.interpolate(self.up4(f8), size=f4.shape[2:], mode="trilinear", align_corners=False)
        f4 = f4 + up
        return f2, f4 + self.mix4(f4), f16

    def forward(self, fixed, moving, t, class_id=None, preprocessing=("none", "none")):
        """fixed, moving: B×1×D×H×W in 0…1; t: B in 1…T; class_id: B or None; preprocessing: (fixed, moving)."""
        described = self.describe_both(fixed, moving, t, class_id, preprocessing)
        # The solve needs single precision whatever the convolutions run in.
        with torch.autocast(fixed.device.type, enabled=False):
            source, target, trust, _ = self.correspond(*described)
            return solve_affine(source, target, torch.softmax(trust, dim=1))

    def describe(self, volume, t, class_id=None, preprocessing: str = "none") -> tuple:
        """What ``correspond`` needs to know of B×1×D×H×W volumes in 0…1: tensors that begin with B."""
        raise NotImplementedError

    def correspond(self, fixed: tuple, moving: tuple) -> tuple:
        """(places in the fixed volumes, places in the moving ones, log-weights, sureness) of two descriptions of B volumes.

        B×N×3 normalized x, y, z, twice, B×N, and B: how sure it is that they show the same in the same orientation.
        """
        raise NotImplementedError

    def describe_both(self, fixed, moving, t, class_id, preprocessing, **options):
        """The descriptions of the fixed and of the moving volumes."""
        describe = functools.partial(self.describe, **options)
        if len(fixed) > 1 and fixed.stride(0) == 0 and not self.training and bool((t == t[0]).all()):
            # One volume expanded to a batch (several poses of the moving one): seen once.
            one = None if class_id is None else class_id[:1]
            first = describe(fixed[:1], t[:1], one, preprocessing[0])
            second = describe(moving, t, class_id, preprocessing[1])
            return tuple(a.expand_as(b) for a, b in zip(first, second)), second
        if preprocessing[0] == preprocessing[1]:
            twice = None if class_id is None else torch.cat([class_id, class_id])
            found = describe(torch.cat([fixed, moving]), torch.cat([t, t]), twice, preprocessing[0])
            return tuple(zip(*(part.chunk(2) for part in found)))
        return tuple(describe(v, t, class_id, p) for v, p in zip((fixed, moving), preprocessing))


class PointTransformer(_Pyramid):
    """Feature points seen in each volume alone, and the affine that takes the fixed ones to the moving ones.

    A small U-shaped encoder gives a heat map per point at a quarter of the cube's resolution; its center of mass is
    the point (as in KeyMorph, Wang et al., arXiv 2304.09941), and a weight per point and volume says how far it is
    to be trusted. The affine is the weighted least-squares fit.
    """

    def __init__(
        self,
        volume_size: Sequence[int],
        channels: Sequence[int] = (16, 64, 128, 128),
        points: int = 64,
        n_classes: int = 1,
        class_dropout: float = 0.15,
        groups: int = 8,
        time_width: int = 128,
    ):
        super().__init__(volume_size, channels, n_classes, class_dropout, groups, time_width)
        c4, c16 = int(channels[1]), int(channels[3])
        self.heat = nn.Sequential(nn.GroupNorm(groups, c4), nn.SiLU(), Convolution(c4, points, 1))
        self.trust = nn.Sequential(nn.GroupNorm(groups, c16), nn.SiLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(),
                                   nn.Linear(c16, points))
        # Heat maps that start sharp spread the points over the head; from a flat start all of them sit in its middle
        # and learning stalls (measured: after 4,800 pairs they still lay within 10 mm of it).
        self.sharpness = nn.Parameter(torch.tensor(8.0))
        nn.init.zeros_(self.trust[-1].weight)
        nn.init.zeros_(self.trust[-1].bias)

    def describe(self, volume, t, class_id=None, preprocessing: str = "none"):
        """Points (B×N×3, normalized x, y, z) and log-weights (B×N) of B×1×D×H×W volumes in 0…1."""
        _, f4, f16 = self.encode(preprocess(volume, preprocessing), t, class_id)
        return centers_of_mass(self.sharpness * self.heat(f4).float()), self.trust(f16).float()

    def correspond(self, fixed, moving):
        """The points of both volumes, as they are numbered; how sure that is, they do not say."""
        return fixed[0], moving[0], fixed[1] + moving[1], torch.ones_like(fixed[1][:, 0])


class MatchTransformer(_Pyramid):
    """Every cell of the fixed volume finds its like among all cells of the moving one; the affine is fitted to that.

    Each volume is seen alone and gives a feature vector per cell of 4³ voxels. Cells are compared all with all, a match
    counts as far as it is mutual (dual softmax, as in LoFTR, Sun et al., arXiv 2104.00680), and the affine is the
    weighted least-squares fit. Unlike feature points it needs no place that every scan shows: vessels of a retina, and
    parts of a body that only some scans hold, will do. cells: how many of each volume, the brightest, take part.
    features: length of their vectors. fine: length of the vectors of cells of 2³ voxels, which are compared in turn with
    those about the place where the first affine puts them (0: no such second look). front: made to see eyes from the front
    (preprocessing "front", see front_view): cells are then squares of their maps, in the middle of the tissue. The other
    arguments as in PointTransformer.
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
    ):
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

    def describe(self, volume, t, class_id=None, preprocessing: str = "none", fine: bool = False):
        """Vectors of length 1 (B×N×F), centers (B×N×3, normalized x, y, z) and log-weights (B×N) of the cells, and how
        near a match should lie (B). With ``fine`` also which cells these are (B×N) and, on a grid of half the size, the fine
        vectors, log-weights and, seen from the front, heights (B×(fine + 1 or 2)×D/2×H/2×W/2)."""
        height = None
        if preprocessing == "front":
            volume, height, known = front_view(volume)
            light = known
        else:
            light = volume = preprocess(volume, preprocessing)
        f2, f4, _ = self.encode(volume, t, class_id)
        found = self.feature(f4).float().flatten(2)
        light = F.adaptive_avg_pool3d(light.float(), f4.shape[2:]).flatten(1)
        centers = cell_centers(f4.shape[2:], f4.device).expand(len(light), -1, -1)
        if height is not None:
            middle = F.adaptive_avg_pool3d(height, f4.shape[2:]).flatten(1) / light.clamp_min(1e-3)
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
            middle = F.adaptive_avg_pool3d(height, f2.shape[2:]) / F.adaptive_avg_pool3d(known, f2.shape[2:]).clamp_min(1e-3)
            grid = torch.cat([grid, middle], dim=1)
        return *coarse, kept, grid

    def compare(self, fixed, moving):
        """Log-probabilities (B×N×M) of every moving cell given a fixed one, and of every fixed cell given a moving one.
        """
        (u, x, _, near), (v, y, _, _) = fixed, moving
        logits = self.log_sharpness.exp() * u @ v.transpose(1, 2) - near[:, None, None] * torch.cdist(x, y).square()
        return logits.log_softmax(2), logits.log_softmax(1)

    def correspond(self, fixed, moving, compared=None):
        """The fixed cells, and where each finds its like on average, weighted by how mutual that is."""
        rows, columns = compared or self.compare(fixed, moving)
        mutual = rows + columns
        best = mutual.detach().amax(2, keepdim=True)
        # Without the floor nearly all are numbers so small that a CPU takes ten times as long for each.
        shares = (mutual - best).clamp_min(-60.0).exp()
        total = shares.sum(2, keepdim=True)
        found = (total.log() + best)[..., 0]
        return fixed[1], shares @ moving[1] / total, fixed[2] + found, found.exp().mean(1)

    def look_again(self, fixed, moving, trust, theta):
        """(source, places tried, their log-probabilities, log-weights) of a fine cell in each of the surer half of the cells.

        fixed, moving: descriptions with their fine parts; trust: B×N log-weights of the coarse matches; theta: B×3×4, about
        whose answer it looks. Places are B×N×M×3, M = (2·REACH + 1)³.
        """
        trust, surer = trust.topk((trust.shape[1] + 1) // 2, dim=1)
        kept, grid, vectors = fixed[4].gather(1, surer), fixed[5], F.normalize(moving[5][:, :self.fine], dim=1)
        height, front = moving[5][:, self.fine + 1:], grid.shape[1] > self.fine + 1
        cell = 2.0 / torch.tensor(grid.shape[:1:-1], device=grid.device)
        chosen = grid[:, :, ::2, ::2, ::2].flatten(2)
        chosen = chosen.gather(2, kept[:, None].expand(-1, chosen.shape[1], -1)).transpose(1, 2)
        every = cell_centers(grid.shape[2:], grid.device).view(*grid.shape[2:], 3)
        source = every[::2, ::2, ::2].reshape(-1, 3)[kept]
        steps = torch.arange(-self.REACH, self.REACH + 1, device=grid.device)
        offsets = torch.cartesian_prod(steps, steps[self.REACH:self.REACH + 1] if front else steps, steps) * cell
        if front:
            source = torch.stack([source[..., 0], chosen[..., -1], source[..., 2]], dim=2)
        places = transform(source, theta)[:, :, None] + offsets
        if front:
            places = places * torch.tensor([1.0, 0.0, 1.0], device=grid.device)
        seen = F.grid_sample(vectors, places[:, :, :, None], align_corners=False)[..., 0]
        if front:
            middle = F.grid_sample(height, places[:, :, :, None], align_corners=False)[:, 0, :, :, 0]
            places = torch.stack([places[..., 0], middle, places[..., 2]], dim=3)
        alike = torch.einsum("bnf,bfnm->bnm", F.normalize(chosen[..., :self.fine], dim=2), seen)
        found = (self.log_sharpness2.exp() * alike).log_softmax(2)
        # A match that spreads over many places says little: the chance that two draws from it agree.
        return source, places, found, trust + chosen[..., self.fine] + (2 * found).logsumexp(2)

    @staticmethod
    def _cells(shape, preprocessing) -> tuple:
        """The grid of the coarse cells of B×1×D×H×W volumes."""
        d, h, w = remaining_grid(shape[2:], 1)
        return (d, 1, w) if preprocessing == "front" else (d, h, w)

    def forward(self, fixed, moving, t, class_id=None, preprocessing=("none", "none"), target=None):
        """As in PointTransformer. With ``target``, the true θ, (the θ of each look, cross-entropy of the matches, B)."""
        solve = functools.partial(solve_affine, ridge=self.RIDGE) if "front" in preprocessing else solve_affine
        # Maps are single slices, of which half-precision convolutions give gradients that are no numbers (torch 2.13, CPU).
        with contextlib.ExitStack() as stack:
            if "front" in preprocessing:
                stack.enter_context(torch.autocast(fixed.device.type, enabled=False))
            first, second = self.describe_both(fixed, moving, t, class_id, preprocessing, fine=bool(self.fine))
        with torch.autocast(fixed.device.type, enabled=False):
            compared = self.compare(first[:4], second[:4])
            source, aim, trust, _ = self.correspond(first[:4], second[:4], compared)
            thetas, entropy = [solve(source, aim, torch.softmax(trust, dim=1))], 0.0
            if target is not None:
                target = target.float()
                known = tuple(side[0].norm(dim=2) > 0.5 for side in (first, second))
                shape = self._cells(fixed.shape, preprocessing[0])
                entropy = match_entropy(*compared, first[1], second[1], target, shape, known)
            if self.fine:
                source, places, found, trust = self.look_again(first, second, trust, thetas[0].detach())
                aim = (found.exp()[..., None] * places).sum(2)
                thetas.append(solve(source, aim, torch.softmax(trust, dim=1)))
                if target is not None:
                    true = transform(source, target)
                    weight = true_weights(true, places, 2.0 / torch.tensor(second[5].shape[:1:-1], device=true.device))
                    entropy = entropy - (weight * found).sum((1, 2)) / weight.sum((1, 2)).clamp_min(1.0)
        return thetas[-1] if target is None else (thetas, entropy)


def true_weights(true, places, cell, present=1.0):
    """How far each place (B×N×M×3) is the true one (B×N×3): trilinear weights of cells with edges ``cell`` (3) where
    ``present``, B×N×M; 0 for all places of a true one of which they hold less than half."""
    weight = present * (1 - (true[:, :, None] - places).abs() / cell).clamp_min(0).prod(3)
    return weight * (weight.sum(2, keepdim=True) > 0.5)


def match_entropy(rows, columns, x, y, target, shape, known=None):
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


def cell_centers(shape, device) -> torch.Tensor:
    """Centers (D·H·W×3, normalized x, y, z) of the cells of a D×H×W grid."""
    axes = [(2 * torch.arange(n, device=device) + 1) / n - 1 for n in shape]
    z, y, x = torch.meshgrid(*axes, indexing="ij")
    return torch.stack([x, y, z], dim=-1).reshape(-1, 3)


def centers_of_mass(heat: torch.Tensor) -> torch.Tensor:
    """Centers of mass (B×N×3, normalized x, y, z) of the softmax of B×N×D×H×W heat maps."""
    mass = torch.softmax(heat.flatten(2), dim=2).view_as(heat)
    result = []
    for axis in (4, 3, 2):  # x = W, y = H, z = D
        size = heat.shape[axis]
        places = (2 * torch.arange(size, device=heat.device, dtype=heat.dtype) + 1) / size - 1
        others = tuple(a for a in (2, 3, 4) if a != axis)
        result.append((mass.sum(dim=others) * places).sum(dim=2))
    return torch.stack(result, dim=2)


class NoNetwork(nn.Module):
    """Predicts that nothing is left to do: stands in a model file that only says on which grid its modalities are
    searched and refined."""

    def __init__(self, volume_size: Sequence[int]):
        super().__init__()
        self.volume_size = tuple(int(n) for n in volume_size)

    def forward(self, fixed, moving, t, class_id=None, preprocessing=("none", "none")):
        """B identities, B×3×4."""
        return torch.eye(3, 4, device=fixed.device).repeat(fixed.shape[0], 1, 1)


NETWORKS = {"matrix": AffineTransformer, "points": PointTransformer, "matches": MatchTransformer, "none": NoNetwork}


def build(architecture: dict) -> nn.Module:
    """The network described by {"head": a key of NETWORKS, and the constructor's arguments}."""
    settings = dict(architecture)
    head = settings.pop("head", "matrix")
    if head not in NETWORKS:
        raise ValueError(f"unknown network head {head!r}; known: {', '.join(NETWORKS)}")
    network = NETWORKS[head](**settings)
    network.architecture = dict(architecture)
    return network
