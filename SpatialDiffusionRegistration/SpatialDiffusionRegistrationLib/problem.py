"""Errors told to the person: one sentence, details apart, and what can be done about it."""

from __future__ import annotations

import traceback
from dataclasses import dataclass

from slicer.i18n import tr as _


class Problem(ValueError):
    """Something that the user can put right; the message is one sentence that says what and how."""

    def __init__(self, sentence, details="", remedy=""):
        super().__init__(sentence)
        self.details, self.remedy = details, remedy


REMEDY_CPU = "cpu"
"""Running on the CPU would help."""
REMEDY_TORCH = "torch"
"""Installing or updating PyTorch would help."""


@dataclass(frozen=True)
class Explanation:
    sentence: str
    details: str
    remedy: str = ""


def explain(error: BaseException, untouched: bool = True) -> Explanation:
    """What to say about an exception of any kind; `untouched`: whether the scene is as it was before."""
    details = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    if isinstance(error, Problem):
        return Explanation(str(error), error.details or details, error.remedy)
    if any(cls.__name__ == "InputError" for cls in type(error).__mro__):  # the core's errors are sentences already
        sentence = str(error)
        onGpu = "cuda" in sentence.lower() or "mps" in sentence.lower()
        return Explanation(sentence, details, REMEDY_CPU if onGpu else "")
    if type(error).__name__ == "OutOfMemoryError" or "CUDA out of memory" in str(error):
        return Explanation(
            _("The graphics card ran out of memory; nothing in the scene was changed."), details, REMEDY_CPU
        )
    if isinstance(error, MemoryError):
        return Explanation(_("The computer ran out of memory; nothing in the scene was changed."), details)
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    failed = (
        _("The registration failed and nothing in the scene was changed: {reason}")
        if untouched
        else _("The program failed; what is done stays: {reason}")
    )
    return Explanation(failed.format(reason=first), details)
