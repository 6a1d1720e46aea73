"""What a caller may choose about a registration: one class for Python, the shell and Slicer."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, fields, replace
from enum import Enum
from typing import Any, Callable, TypeVar

import numpy as np

from .errors import InputError
from .modality import AUTO
from .modelfile import catalog
from .spatial import geometry

SAMPLERS = ("fast", "reference")


class SearchMode(Enum):
    """Where a registration begins.

    SIMILARITY: at the best of all rotations by the volumes' similarity; it goes on where the answer is doubtful.
    SCREEN: the same, but it never goes on. NETWORK: where the places lead that the network finds to correspond.
    NONE: where the tissues' centers meet, not turned.
    """

    SIMILARITY = "similarity"
    SCREEN = "screen"
    NETWORK = "network"
    NONE = "none"

    @classmethod
    def of(cls, value: SearchMode | str | bool) -> SearchMode:
        """The mode that a caller means: one of these, its name, or True (SIMILARITY) or False (NONE)."""
        if isinstance(value, bool):
            return cls.SIMILARITY if value else cls.NONE
        if isinstance(value, cls):
            return value
        try:
            return cls(value)
        except ValueError:
            known = ", ".join(mode.value for mode in cls)
            raise InputError(f"Unknown search {value!r}; choose True, False or one of: {known}.") from None


@dataclass(frozen=True)
class RegistrationOptions:
    """How to register; every field has a default that suits most volumes, and is checked when it is set.

    modality: what both volumes show (modality.MODALITIES), or moving_modality and fixed_modality each; "auto"
    recognizes what is registered in a way of its own and takes everything else for "any".
    transform: "rigid", "similarity" or "affine". model: name or file of a trained model, or a loaded one (None: the
    installed one for the modality). sampler: "fast", or "reference", the published 65 steps and nothing else (None:
    the one for which the model was made). steps: diffusion steps of "fast" (None: as many as help; 0: no network).
    search: a SearchMode or its name; True is SIMILARITY, False is NONE. bidirectional: with "reference", both
    directions, combined. polish: refine at the end (None: in "fast" only). device: "auto", "cpu", "cuda", "cuda:N" or
    "mps". seed: of the points that are drawn. init: 4×4 moving → fixed, RAS mm, to start from; no other pose is
    searched then.

    Raises InputError, one sentence, where a value cannot be used.
    """

    modality: str = AUTO.key
    moving_modality: str | None = None
    fixed_modality: str | None = None
    transform: str = "affine"
    model: Any = None
    sampler: str | None = None
    steps: int | None = None
    search: SearchMode | str | bool = SearchMode.SIMILARITY
    bidirectional: bool = False
    polish: bool | None = None
    device: str = "auto"
    seed: int = 0
    init: np.ndarray | None = None

    def __post_init__(self) -> None:
        for name in ("moving_modality", "fixed_modality"):
            self._set(name, catalog.get(getattr(self, name) or self.modality, auto=True).key)
        if self.transform not in geometry.TRANSFORM_KINDS:
            _unknown("transform", self.transform, geometry.TRANSFORM_KINDS)
        if self.sampler is not None and self.sampler not in SAMPLERS:
            _unknown("sampler", self.sampler, SAMPLERS)
        if self.sampler == "reference" and self.steps is not None:
            raise InputError("The reference sampler visits every timestep; leave the number of steps out.")
        self._set("search", SearchMode.of(self.search))
        for name, least in (("steps", 0), ("seed", 0)):
            self._set(name, _whole(name, getattr(self, name), least))
        for name in ("bidirectional", "polish"):
            value = getattr(self, name)
            self._set(name, value if value is None else bool(value))
        self._set("bidirectional", bool(self.bidirectional))
        if self.init is not None:
            self._set("init", geometry.as_affine(self.init, "the initial transform"))

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def to_dict(self) -> dict:
        """JSON-ready, for reports; a loaded model by its name."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        model = values["model"]
        values["model"] = model if model is None or isinstance(model, str) else str(getattr(model, "name", model))
        values["search"] = SearchMode.of(self.search).value
        values["init"] = None if self.init is None else self.init.tolist()
        return values

    def replaced(self, **changes: Any) -> RegistrationOptions:
        """The same with some fields changed."""
        return replace(self, **changes)


def _unknown(what: str, value: Any, known: Any) -> None:
    raise InputError(f"Unknown {what} {value!r}; choose one of: {', '.join(known)}.")


def _whole(name: str, value: Any, least: int) -> int | None:
    if value is None and name == "steps":
        return None
    try:
        number = int(value)
    except (TypeError, ValueError):
        number = least - 1
    if number < least or number != value:
        what = {"steps": "The number of steps", "seed": "The seed"}[name]
        raise InputError(f"{what} must be a whole number of at least {least}, got {value!r}.")
    return number


Function = TypeVar("Function", bound=Callable[..., Any])


def takes_options(function: Function) -> Function:
    """Give a function that takes **options a signature and a docstring that name each of them, for help()."""
    signature = inspect.signature(function)
    kept = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    named = [
        inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=f.type)
        for f in fields(RegistrationOptions)
    ]
    said = (inspect.getdoc(RegistrationOptions) or "").split("\n\n")
    function.__doc__ = "\n\n".join([inspect.getdoc(function) or "", "The options:", *said[1:-1]])
    function.__signature__ = signature.replace(parameters=[*kept, *named])  # type: ignore[attr-defined]
    return function
