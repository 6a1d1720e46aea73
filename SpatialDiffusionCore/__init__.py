"""Affine registration of 3D medical images by spatial diffusion.

Importing this package is instant: torch and scipy are loaded when a volume is registered, not before.
"""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "register": "registration",
    "register_many": "registration",
    "registration_steps": "registration",
    "register_series": "many.motion",
    "SeriesRegistration": "many.motion",
    "register_group": "many.group",
    "GroupRegistration": "many.group",
    "Registration": "result",
    "Step": "pipeline.step",
    "Cancelled": "registration",
    "Volume": "spatial.volume",
    "load": "spatial.volume_file",
    "save": "spatial.volume_file",
    "resample": "spatial.volume",
    "InputError": "errors",
    "ModelError": "errors",
}
__all__ = [*_HOMES, "__version__"]


def __dir__() -> list:
    return sorted(__all__)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
