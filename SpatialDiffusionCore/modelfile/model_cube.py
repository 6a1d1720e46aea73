"""A volume on the cube of a model, and the part of it on which search and refinement look."""

from __future__ import annotations

from dataclasses import replace
from typing import Callable

import numpy as np
import torch

from ..spatial import geometry
from ..spatial.cube import Cube, on_grid
from ..spatial.sampling import Prepared, canonical_grid, prepare
from ..spatial.volume import Volume
from . import catalog
from .card import ModelCard, ModelGrid

#: Shares of the cube's tissue: a smaller focus is not believed, a larger one is left out (a brain without a skull).
LEAST, MOST = 0.1, 0.97

#: A focus that lies further from the cube's center than this share of its diagonal moves the cube; the most looks.
ASIDE, LOOKS = 0.08, 4


def focused(cube: Cube, network: Callable[[torch.Tensor], torch.Tensor]) -> Cube | None:
    """The Cube with its focus; as it is where that is nearly all of its tissue, None where it is hardly anything.

    A cube about the middle of an upper body shows little of its neck: where the focus lies off its center, the cube
    moves there and looks again.
    """
    if cube.focus is not None:
        return cube
    for _ in range(LOOKS):
        with torch.no_grad():
            sure = torch.sigmoid(network(cube.values))
        found = replace(cube, focus=(sure, cube.grid.with_shape(sure.shape[2:])))
        tissue = found.tissue[0, 0]
        share = float(tissue.sum() / cube.tissue.sum().clamp_min(1))
        if share > MOST or not bool(tissue.any()):
            break
        aside = found.middle - (np.array(cube.grid.shape) - 1) / 2
        shift = cube.grid.voxel_to_ras[:3, :3] @ aside
        if np.linalg.norm(shift) <= ASIDE * np.linalg.norm(cube.spacing * cube.grid.shape):
            break
        cube = cube.on(cube.grid.moved(geometry.from_parts(np.eye(3), shift)))
    if share < LEAST:
        return None
    return found if share <= MOST else cube


def with_focus(
    cube: Cube, network: Callable[[torch.Tensor], torch.Tensor] | None, masked: bool = False
) -> tuple[Cube, Cube | None]:
    """(the Cube as it is, in focus or None). masked: the user said where to look, which takes the focus's place."""
    if masked:
        return cube, cube
    return cube, None if network is None else focused(cube, network)


def in_common_focus(first: tuple, second: tuple) -> tuple:
    """Of two that were made by ``with_focus`` the Cubes in focus, or as they are where one has none: a neck and a head
    have no focus in common.
    """
    return (first[0], second[0]) if first[1] is None or second[1] is None else (first[1], second[1])


def model_cube(volume: Volume, mask: Volume | None, key: str, card: ModelCard, device: str) -> Cube:
    """A volume on a model's cube, on the grid and by the loading that the model's card names (see model.py)."""
    return on_model_cube(prepare(volume, mask), key, card.grid_of(key), device)


def on_model_cube(prepared: Prepared, key: str, grid: ModelGrid, device: str) -> Cube:
    """The same for a volume that is already prepared, and the model's grid for its modality ``key``."""
    if grid.loading == "published":
        from ..method import published_loading

        prepared, where = published_loading.published(prepared, catalog.get(key).published_loader, grid.size)
    else:
        assert grid.spacing is not None, "ModelGrid refuses canonical grids without"
        where = canonical_grid(prepared, grid.size, grid.spacing, catalog.get(key).oriented)
    return on_grid(prepared, where, device)
