"""Errors whose message is written for the person in front of the screen."""

from __future__ import annotations


class InputError(ValueError):
    """Something given by the user cannot be used; the message is one sentence that says what and what to do."""


class ModelError(InputError):
    """A model or checkpoint file cannot be used; the message says which key, shape or setting is wrong."""
