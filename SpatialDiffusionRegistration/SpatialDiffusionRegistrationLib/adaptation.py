"""A model adapted to a folder of scans: the training package's own program, as a process in the background."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from slicer.i18n import tr as _

from . import engine, torchsetup
from .problem import Problem

MINUTES = 30
"""Of training, as the program's own default."""
REPORT = "report.html"
PATIENCE_SECONDS = 15.0
"""So long a process that was asked to end may take to save what it has."""


def folderOf(scans, outputFolder) -> str:
    """Where the adapted model and its report are written."""
    name = os.path.basename(os.path.abspath(str(scans)))
    return os.path.join(os.path.abspath(str(outputFolder)), f"adapted-{name}")


def problem(scans, outputFolder) -> str:
    """One sentence on what is missing, or ""; quick, nothing is imported and nothing installed."""
    if not scans:
        return _("Choose the folder of scans above.")
    if not os.path.isdir(scans):
        return _("There is no folder “{folder}”.").format(folder=scans)
    if not outputFolder:
        return _("Choose an output folder: the adapted model and its report are written there.")
    if not os.path.isdir(outputFolder):
        return _("There is no output folder “{folder}”.").format(folder=outputFolder)
    return torchsetup.state().sentence or _missing()


def _missing() -> str:
    missing = engine.missingForTraining()
    if not missing:
        return ""
    return _(
        "Adapting needs the training package, which is not part of the extension ({names} missing): enter "
        "slicer.util.pip_install({package}) in the Python console, then open this module again."
    ).format(names=", ".join(missing), package=repr(engine.trainingPackage()))


def interpreter() -> str:
    """The Python that runs the program: Slicer's own, whose `sys.executable` is the application."""
    return shutil.which("PythonSlicer") or sys.executable


class Adaptation:
    """One run of the program.  `poll` from time to time until `ended`; nothing here waits for it."""

    def __init__(self, scans, outputFolder):
        self.scans, self.folder = os.path.abspath(str(scans)), folderOf(scans, outputFolder)
        self.log = self.folder + ".log"
        self.ended = self.stopped = False
        self.code = None
        self._process = self._output = None
        self._lines, self._asked = [], 0.0
        self._begun = time.monotonic()

    @property
    def report(self) -> str:
        """Path of the report, if this run has written it."""
        return os.path.join(self.folder, REPORT) if self.code == 0 else ""

    def start(self):
        """Begin, or go on with what was stopped before; raises Problem."""
        sentence = problem(self.scans, os.path.dirname(self.folder))
        if sentence:
            raise Problem(sentence)
        command = [interpreter(), *engine.adaptCommand(self.scans, self.folder, MINUTES)]
        environment = dict(os.environ, PYTHONUNBUFFERED="1", PYTHONIOENCODING="utf-8")
        paths = [*engine.trainingPaths(), environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
        # A group of its own: so it can be ended with all that it started.
        own = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP} if os.name == "nt" else {"start_new_session": True}
        try:
            self._output = open(self.log, "w", encoding="utf-8")  # noqa: SIM115  (closed when the process has ended)
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=self._output, stderr=subprocess.STDOUT, env=environment, **own
            )
        except OSError as error:
            self._close()
            raise Problem(_("The training program could not be started: {reason}.").format(reason=error)) from error

    def poll(self) -> None:
        """Read what was said, and see whether it has ended."""
        if self.ended:
            return
        code = self._process.poll()
        if code is None and self.stopped and time.monotonic() - self._asked > PATIENCE_SECONDS:
            self._signal(getattr(signal, "SIGKILL", signal.SIGTERM))
        self._lines = Path(self.log).read_text(encoding="utf-8", errors="replace").splitlines()
        if code is not None:
            self.code, self.ended = code, True
            self._close()

    def stop(self):
        """Ask it to end; what it has is kept, and the next start goes on from there."""
        if not self.ended and not self.stopped:
            self.stopped, self._asked = True, time.monotonic()
            self._signal(signal.SIGTERM)

    def _signal(self, number):
        if self._process is None or self._process.poll() is not None:
            return
        if os.name == "nt":
            subprocess.call(["taskkill", "/F", "/T", "/PID", str(self._process.pid)])
        else:
            try:
                os.killpg(self._process.pid, number)
            except ProcessLookupError:  # it has just ended
                return

    def _close(self):
        if self._output is not None:
            self._output.close()

    # For people

    @property
    def minutes(self) -> float:
        return (time.monotonic() - self._begun) / 60

    def line(self) -> str:
        """The last thing that it said."""
        return next((line.strip() for line in reversed(self._lines) if line.strip()), "")

    def outcome(self) -> str:
        """What came of it, a sentence or two, once it has ended."""
        if self.code == 0:
            # The last lines: what was measured, what was done with the model, and where the report is.
            said = [line.strip() for line in self._lines if line.strip()]
            return " ".join(said[-3:-1]) if len(said) > 2 else self.line()
        if self.stopped or self.code in (130, 143):
            return _("Stopped; the same button goes on from there.")
        return _("The model was not adapted: {reason} (all that was said is in {log})").format(
            reason=self.line().partition(": ")[2] or self.line(), log=self.log
        )
