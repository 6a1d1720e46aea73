"""Which strategy serves which pair of modalities. A new modality with a way of its own: its file, and a line here."""

from __future__ import annotations

from .base import Strategy
from .one_contrast import NeckCT, OneContrast
from .retina import Retina

ANY = Strategy()
ONE_CONTRAST = OneContrast()
RETINA = Retina()

#: Strategies of both volumes of a pair by what they show; two of one modality that is not here get ONE_CONTRAST.
STRATEGIES = {"any": ANY, "ct-head-neck": NeckCT(), "oct": RETINA, "octa": RETINA}


def strategy_of(moving_modality: str, fixed_modality: str) -> Strategy:
    """The strategy for two volumes: their common one, or that for volumes of any kind."""
    first, second = (STRATEGIES.get(key, ONE_CONTRAST) for key in (moving_modality, fixed_modality))
    if moving_modality == fixed_modality or (first is second and first is not ONE_CONTRAST):
        return first
    return ANY
