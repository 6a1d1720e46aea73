"""What a person sees while a registration runs."""

from __future__ import annotations

import sys
from typing import Any


class Progress:
    """A progress bar on a terminal, made when the first step arrives."""

    def __init__(self, silent: bool):
        self.silent = silent
        self.bar: Any = None
        #: What stands before the stage, such as "3 of 6: ".
        self.place = ""

    def __call__(self, step: Any) -> None:
        """Show a Step."""
        if self.silent:
            return
        if self.bar is None:
            from tqdm import tqdm

            self.bar = tqdm(total=step.count, leave=False, file=sys.stderr, bar_format="{desc:32}|{bar}| {n}/{total}")
        self.bar.total = step.count  # grows when the search goes on
        self.bar.set_description_str(self.place + step.stage)
        self.bar.update(step.index - self.bar.n)

    def close(self) -> None:
        """Take the bar away."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None
