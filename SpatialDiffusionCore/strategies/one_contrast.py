"""Two volumes of one modality: their sizes are what they are, and blocks may vote."""

from __future__ import annotations

from .base import Strategy


class OneContrast(Strategy):
    """Two volumes of one modality, whichever; a user's own, too."""

    name = "one-contrast"
    any_size = False
    looks_in_mirror = False
    blocks_vote = True


class NeckCT(OneContrast):
    """Head-and-neck CTs: people are hardly alike, and the network's agreement tells which answers are right."""

    name = "neck-ct"
