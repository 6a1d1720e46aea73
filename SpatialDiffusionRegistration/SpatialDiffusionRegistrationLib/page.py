"""The review page of a batch: one folder that opens in any browser, with every pair to accept or reject."""

from __future__ import annotations

import logging
import os

from slicer.i18n import tr as _

from . import engine
from .cursor import waitCursor
from .problem import explain

PAGE_NAME = "index.html"


class ReviewPage:
    """Pairs are drawn one by one, as they are done.  A page that can not be written stops no registration.

    `folder` "" for none.  After `finish`, `path` is that of the page; `problem`: a sentence on what first could not be
    written.
    """

    def __init__(self, folder, items):
        self.folder = os.path.abspath(str(folder)) if str(folder) else ""
        self.path = self.problem = ""
        self._keys = _keys(items)
        self._fixed = ""

    def begin(self):
        """Make the folder; raises the core's InputError if it can not be used."""
        if self.folder:
            engine.preparePage(self.folder)

    def add(self, item, registration):
        self._write(lambda: engine.addToPage(self.folder, self._key(item), registration))

    def addFailure(self, item):
        fixed = item.fixed.GetName() if item.fixed is not None else ""
        self._write(lambda: engine.addFailureToPage(self.folder, self._key(item), item.name, fixed, item.error))

    def finish(self):
        """Put the page together of what was added, in this batch or before it."""
        if self._fixed:
            self._write(self._finish)

    def _finish(self):
        self.path = engine.finishPage(self.folder, _("Registrations to {fixed}").format(fixed=self._fixed))

    def _key(self, item):
        """By the fixed volume, too: another batch to another one may share the folder."""
        self._fixed = item.fixed.GetName() if item.fixed is not None else self._fixed
        return f"{self._keys[id(item)]}_to_{self._fixed}"

    def _write(self, work):
        if not self.folder:
            return
        try:
            with waitCursor():
                work()
        except Exception as error:  # a full disk, a format that can not be drawn: the registrations go on
            explained = explain(error)
            logging.error("%s", explained.details)
            self.problem = self.problem or _("The review page could not be written: {reason}").format(
                reason=str(error) or repr(error)
            )


def _keys(items) -> dict:
    """{id(item): name in the folder}, each another one."""
    found, taken = {}, set()
    for item in items:
        name, number = item.name, 1
        while name in taken:
            number += 1
            name = f"{item.name}_{number}"
        taken.add(name)
        found[id(item)] = name
    return found
