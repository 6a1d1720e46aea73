"""The optimizer and its learning rate."""

from __future__ import annotations

import math

import torch

from .settings import Settings

#: The warm-up takes at most this share of a run that ends by the clock.
WARM_SHARE = 0.05


def learning_rate(settings: Settings, step: int, minutes: float) -> float:
    """The rate of a step (from 0): linear warm-up, then a cosine over the larger fraction of steps and time.

    Where the clock ends the run, the warm-up ends with WARM_SHARE of the time at the latest.
    """
    o = settings.optimization
    warm = (step + 1) / o.warmup if step < o.warmup else 1.0
    done = 0.0
    if o.max_minutes > 0:
        done = minutes / o.max_minutes
        warm = max(warm, min(1.0, done / WARM_SHARE))
    if o.steps > 0:
        done = max(done, (step - o.warmup) / max(1, o.steps - o.warmup))
    return o.lr * warm * (o.final_lr + (1 - o.final_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, done)))))


def make_optimizer(settings: Settings, network: torch.nn.Module) -> torch.optim.Optimizer:
    """Adam as published, or AdamW."""
    o = settings.optimization
    if o.optimizer == "adamw":
        return torch.optim.AdamW(network.parameters(), lr=o.lr, weight_decay=o.weight_decay)
    return torch.optim.Adam(network.parameters(), lr=o.lr)
