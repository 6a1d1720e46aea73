"""A volume made ready for registration: what takes time is done once, also for many registrations to it."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from ..errors import InputError
from ..modality import AUTO
from ..modelfile import catalog
from ..modelfile.catalog import find
from ..modelfile.model import Model, load_model
from ..modelfile.model_cube import on_model_cube, with_focus
from ..options import RegistrationOptions
from ..spatial.cube import Cube
from ..spatial.sampling import Prepared, anatomical_order, prepare
from ..spatial.volume import Volume
from ..strategies.recognition import recognized


@dataclass
class PreparedInput:
    """A volume, the mask that says where it matters (None: everywhere), and what was computed of it so far."""

    volume: Volume
    mask: Volume | None
    device: str
    _cubes: dict = field(default_factory=dict)

    @cached_property
    def prepared(self) -> Prepared:
        """With the array as it is; the published loading and scans of eyes go by its axes."""
        return prepare(self.volume, self.mask)

    @cached_property
    def upright(self) -> Prepared:
        """With the array in anatomical order, so that an answer does not depend on a program's order of axes."""
        return prepare(anatomical_order(self.volume), self.mask)

    @cached_property
    def modality(self) -> str:
        """What it shows by its looks."""

        def look(key: str) -> Cube:
            cube, focused = self.cubes(key, load_model(None, key, key, self.device), "fast")
            return focused or cube

        return recognized(self.upright, look, self.device)

    def cubes(self, key: str, model: Model, sampler: str, scale: float = 1.0) -> tuple[Cube, Cube | None]:
        """It on a model's cube, as it is and in focus (see model_cube.with_focus); the published method has no focus.

        scale: units of the work per mm (work_scale.py).
        """
        known = key, model.name, sampler, scale
        if known not in self._cubes:
            grid = model.card.grid_of(key)
            by_array = grid.loading == "published" or not catalog.get(key).oriented
            prepared = self.prepared if by_array else self.upright
            cube = on_model_cube(prepared.scaled(scale), key, grid, self.device)
            focus = model.focus_on(key) if sampler == "fast" else None
            self._cubes[known] = with_focus(cube, focus, self.mask is not None)
        return self._cubes[known]


def modalities_of(options: RegistrationOptions, moving: PreparedInput, fixed: PreparedInput) -> tuple:
    """What the (moving, fixed) volumes are taken for: what the caller said, else what they show by their looks.

    A model that was chosen may know no more than some kinds.
    """
    model, card = options.model, None
    if model is not None:
        card = model.card if isinstance(model, Model) else find(model).card
    keys = []
    for said, volume in ((options.moving_modality, moving), (options.fixed_modality, fixed)):
        if said != AUTO.key:
            keys.append(said)
        else:
            keys.append(volume.modality if card is None else card.nearest(volume.modality))
    return tuple(keys)


def model_for(options: RegistrationOptions, keys: tuple[str, str], device: str) -> Model:
    """The model for two volumes; raises InputError where it sees them on different grids."""
    chosen = options.model
    model = chosen if isinstance(chosen, Model) else load_model(chosen, keys[0], keys[1], device)
    if model.card.grid_of(keys[0]) != model.card.grid_of(keys[1]):
        raise InputError(
            f"The model {model.name} sees {keys[0]} and {keys[1]} volumes at different scales, so they "
            "cannot be registered to each other; give both volumes their true modality."
        )
    return model
