"""What must be installed: PyTorch, found without importing it, installed only when asked; and a Slicer that serves."""

from __future__ import annotations

import importlib.metadata
import re
from dataclasses import dataclass

import slicer
from slicer.i18n import tr as _

from .cursor import waitCursor
from .problem import Problem

MINIMUM = "2.1"
OLDEST_SLICER = 5, 8


@dataclass(frozen=True)
class State:
    version: str
    """Installed version, or ""."""
    sentence: str
    """What is wrong and what to do, or "" if nothing is."""
    action: str = ""
    """Text of the button that would help."""

    @property
    def ready(self):
        return not self.sentence


def state() -> State:
    """Whether PyTorch is there and new enough, from its metadata alone (importing it takes seconds)."""
    try:
        version = importlib.metadata.version("torch") or ""
    except importlib.metadata.PackageNotFoundError:
        version = ""
    if not version:
        return State("", _("Registration needs PyTorch, which is not installed yet."), _("Install PyTorch…"))
    if _numbers(version) < _numbers(MINIMUM):
        return State(
            version,
            _("PyTorch {version} is installed, but {minimum} or newer is needed.").format(
                version=version, minimum=MINIMUM
            ),
            _("Update PyTorch…"),
        )
    return State(version, "")


def brokenSentence(version: str) -> str:
    return _(
        "PyTorch {version} is installed but does not load: uninstall and reinstall it in the “PyTorch Utils” "
        "module, then restart Slicer."
    ).format(version=version)


def install() -> bool:
    """Ask, then install or update PyTorch.  Return whether that was done; raise Problem if it can not be done."""
    try:
        import PyTorchUtils
    except ModuleNotFoundError as error:
        raise Problem(
            _(
                "PyTorch is installed by the “PyTorch” extension: install it in the Extensions Manager, "
                "restart Slicer, and press the button again."
            )
        ) from error
    # The extension asks (it says what will be downloaded and how large it is) and returns None when declined.
    torch = PyTorchUtils.PyTorchUtilsLogic().installTorch(askConfirmation=True, torchVersionRequirement=f">={MINIMUM}")
    return torch is not None and state().ready


def tooOld(major, minor) -> str:
    """One sentence in a Slicer that is older than what the module serves, or ""."""
    if (int(major), int(minor)) >= OLDEST_SLICER:
        return ""
    return _(
        "This module needs Slicer {oldest} or newer. In this one ({this}) choices may change when you leave the "
        "module: check them before you register."
    ).format(oldest=".".join(map(str, OLDEST_SLICER)), this=f"{major}.{minor}")


class SetupFrame:
    """The line at the top of the window that says what is missing, and its button."""

    def __init__(self, ui, requirements):
        self._ui, self._requirements = ui, requirements
        self._restart = False
        """Whether something was installed since the application started."""
        ui.setupButton.connect("clicked(bool)", self.onButton)

    def update(self):
        """Say what is missing, from what is installed; nothing is imported."""
        missing = state()
        if missing.ready and self._restart:
            self._show(
                _("PyTorch {version} is installed. Restart Slicer before you register.").format(
                    version=missing.version
                ),
                _("Restart Slicer"),
            )
        else:
            self._show(missing.sentence, missing.action)

    def _show(self, sentence, action):
        self._ui.setupFrame.setVisible(bool(sentence))
        self._ui.setupLabel.text = sentence
        self._ui.setupButton.text = action
        self._ui.setupButton.setVisible(bool(action))

    def onButton(self, *_ignored):
        """Install or update PyTorch after asking, or restart."""
        if self._restart and state().ready:
            slicer.util.restart()
            return
        self._show(_("PyTorch is being installed. This takes some minutes; Slicer does not react meanwhile."), "")
        slicer.app.processEvents()  # so that it is seen
        try:
            with waitCursor():
                ensureRequirements(self._requirements)
                self._restart = install() or self._restart
        except Problem as problem:
            self._show(str(problem), state().action or _("Set up PyTorch…"))
            return
        except Exception as error:
            slicer.util.errorDisplay(_("PyTorch could not be installed: {reason}").format(reason=error))
        self.update()


def missingRequirements(path) -> list[str]:
    """Names in a requirements.txt that are not installed (all of them come with Slicer, so normally none)."""
    missing = []
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            name = re.match(r"[\w.-]*", line.strip()).group()
            if name:
                try:
                    importlib.metadata.version(name)
                except importlib.metadata.PackageNotFoundError:
                    missing.append(line.strip())
    return missing


def ensureRequirements(path) -> None:
    """Install what is missing after asking; raise Problem if the user says no."""
    missing = missingRequirements(path)
    if not missing:
        return
    declined = Problem(
        _("Registration needs the Python packages {names}, which were not installed.").format(names=", ".join(missing))
    )
    try:
        from slicer.packaging import pip_ensure
    except ImportError:  # Slicer before 5.11
        if not slicer.util.confirmOkCancelDisplay(
            _("Install the Python packages {names}?").format(names=", ".join(missing))
        ):
            raise declined from None
        slicer.util.pip_install(" ".join(missing))
        return
    try:
        pip_ensure(missing, requester="Spatial Diffusion Registration")
    except RuntimeError as error:
        raise declined from error


def _numbers(version):
    return tuple(int(n) for n in re.findall(r"\d+", version.split("+")[0])[:2])
