"""The table of tasks. To add one, write a module with ``TASKS`` (cases.Task says what a task is) and name it here."""

from __future__ import annotations

from . import anatomies, brains, contrast, hard, heads, hopeless, models, retinas, severity, steps

MODULES = brains, heads, hard, contrast, severity, steps, hopeless, models, retinas, anatomies

TASKS = {task.name: task for module in MODULES for task in module.TASKS}
