"""Affine registration of 3D medical images by spatial diffusion.

Importing this package is instant: torch and scipy are loaded when a volume is registered, not before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what type checkers and editors see of the names below
    from .errors import InputError, ModelError
    from .many.group import GroupRegistration, register_group
    from .many.motion import SeriesRegistration, register_series
    from .options import RegistrationOptions, SearchMode
    from .pipeline.confidence import Quality
    from .pipeline.step import Step
    from .registration import Cancelled, register, register_many, registration_steps
    from .result import Registration
    from .spatial.volume import Volume, resample
    from .spatial.volume_file import load, save

__version__ = "0.1.0"

_HOMES = {
    "register": "registration",
    "register_many": "registration",
    "registration_steps": "registration",
    "register_series": "many.motion",
    "SeriesRegistration": "many.motion",
    "RegistrationOptions": "options",
    "SearchMode": "options",
    "register_group": "many.group",
    "GroupRegistration": "many.group",
    "Registration": "result",
    "Quality": "pipeline.confidence",
    "Step": "pipeline.step",
    "Cancelled": "registration",
    "Volume": "spatial.volume",
    "load": "spatial.volume_file",
    "save": "spatial.volume_file",
    "resample": "spatial.volume",
    "InputError": "errors",
    "ModelError": "errors",
}
__all__ = [
    "Cancelled",
    "GroupRegistration",
    "InputError",
    "ModelError",
    "Quality",
    "Registration",
    "RegistrationOptions",
    "SearchMode",
    "SeriesRegistration",
    "Step",
    "Volume",
    "__version__",
    "load",
    "register",
    "register_group",
    "register_many",
    "register_series",
    "registration_steps",
    "resample",
    "save",
]


def __dir__() -> list:
    return sorted(__all__)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
