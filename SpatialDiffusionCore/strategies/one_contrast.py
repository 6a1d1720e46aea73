"""Two volumes of one modality: their sizes are what they are, and blocks may vote."""

from __future__ import annotations

from .base import Strategy


class OneContrast(Strategy):
    """Two volumes of one modality, whichever; a user's own, too."""

    name = "one-contrast"
    any_size = False
    looks_in_mirror = False
    blocks_vote = True
    rescues: tuple[str, ...] = ("wide", "network")


class NeckCT(OneContrast):
    """Head-and-neck CTs: the network knows them, and its agreement tells right answers between people who are hardly
    alike, so it is asked first.
    """

    name = "neck-ct"
    rescues: tuple[str, ...] = ("network", "wide")
