"""Start a pretend Slicer: real MRML (the slicer-core wheel), the module's real code, stand-in Qt.

slicer = application.start()
loaded = application.loadModule(path)      # .widget .instance .pymodule .container
"""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
import types
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
SUBSTITUTES = HERE / "substitutes"
MODULE = HERE.parents[1] / "SpatialDiffusionRegistration" / "SpatialDiffusionRegistration.py"


class _Signals:
    """As PythonQt's src/PythonQt.cpp: signals such as ``startupCompleted()`` are connected by their signature."""

    def __init__(self):
        self._slots = {}

    def connect(self, signal, slot):
        self._slots.setdefault(signal, []).append(slot)

    def disconnect(self, signal, slot):
        self._slots[signal].remove(slot)

    def emitSignal(self, signal, *arguments):
        for slot in list(self._slots.get(signal, ())):
            slot(*arguments)


class ModuleManager(_Signals):
    """As Base/QTCore/qSlicerModuleManager.cxx: modules by name; none for a name that is not there."""

    def module(self, name):
        import slicer

        return getattr(slicer.modules, name.lower(), None)


class CoreIOManager:
    """Reads and writes what the tests need, through MRML's own storage nodes.

    As Base/QTCore/qSlicerCoreIOManager.cxx: a node is in the scene only if it could be read; a volume that is read has
    display and storage nodes (Modules/Loadable/Volumes/Logic/vtkSlicerVolumesLogic.cxx).
    """

    _VOLUME_ENDINGS = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd")
    _TRANSFORM_ENDINGS = (".tfm", ".h5", ".txt", ".mat")

    def fileType(self, path):
        path = str(path).lower()
        if path.endswith(self._VOLUME_ENDINGS):
            return "VolumeFile"
        if path.endswith(self._TRANSFORM_ENDINGS):
            return "TransformFile"
        return "SceneFile" if path.endswith(".mrml") else "Unknown"

    def fileWriterFileType(self, node):
        return node.GetClassName()

    def loadNodes(self, fileType, properties, loadedNodes, userMessages):
        import slicer

        path = Path(properties["fileName"])
        if fileType == "VolumeFile":
            kind, storage = "vtkMRMLScalarVolumeNode", slicer.vtkMRMLVolumeArchetypeStorageNode()
            if properties.get("labelmap"):
                kind = "vtkMRMLLabelMapVolumeNode"
            storage.SetCenterImage(0)
        elif fileType == "TransformFile":
            kind, storage = "vtkMRMLLinearTransformNode", slicer.vtkMRMLTransformStorageNode()
        else:
            return False
        if not path.is_file():
            return False
        node = slicer.mrmlScene.CreateNodeByClass(kind)
        node.UnRegister(None)
        stem = path.name
        for ending in (".gz", ".nii", path.suffix):
            stem = stem[: -len(ending)] if ending and stem.endswith(ending) else stem
        node.SetName(slicer.mrmlScene.GenerateUniqueName(properties.get("name") or stem))
        storage.SetFileName(str(path))
        if not storage.ReadData(node):
            return False
        slicer.mrmlScene.AddNode(storage)
        node.SetAndObserveStorageNodeID(storage.GetID())
        slicer.mrmlScene.AddNode(node)
        node.CreateDefaultDisplayNodes()
        loadedNodes.AddItem(node)
        return True

    def saveNodes(self, fileType, properties, userMessages):
        import slicer

        node = slicer.mrmlScene.GetNodeByID(properties["nodeID"])
        storage = node.GetStorageNode()
        if storage is None:
            node.AddDefaultStorageNode(properties["fileName"])
            storage = node.GetStorageNode()
        storage.SetFileName(properties["fileName"])
        return bool(storage.WriteData(node))


class SliceWidget:
    """As Libs/MRML/Widgets/qMRMLSliceWidget.cxx: gives the logic and the nodes of one view."""

    def __init__(self, logic):
        self._logic = logic

    def sliceLogic(self):
        return self._logic

    def mrmlSliceNode(self):
        return self._logic.GetSliceNode()

    def mrmlSliceCompositeNode(self):
        return self._logic.GetSliceCompositeNode()


class LayoutManager:
    """Three slice views on real slice logics; :func:`application.sliceImage` draws them without a window.

    As Libs/MRML/Widgets/qMRMLLayoutManager.cxx and Libs/MRML/Widgets/qMRMLLayoutViewFactory.cxx: views of the
    layout that is on are singletons by their names, and are marked as mapped.
    """

    VIEWS = {"Red": "Axial", "Yellow": "Sagittal", "Green": "Coronal"}

    def __init__(self, scene, applicationLogic):
        import slicer
        import vtk

        self._widgets, self._logics = {}, vtk.vtkCollection()
        for name, orientation in self.VIEWS.items():
            logic = slicer.vtkMRMLSliceLogic()
            logic.SetMRMLApplicationLogic(applicationLogic)
            logic.SetMRMLScene(scene)
            node = logic.AddSliceNode(name)
            node.SetSingletonTag(name)
            node.SetOrientation(orientation)
            node.SetMappedInLayout(1)
            node.SetDimensions(330, 330, 1)
            node.SetFieldOfView(260, 260, 1)
            self._widgets[name] = SliceWidget(logic)
            self._logics.AddItem(logic)
        applicationLogic.SetSliceLogics(self._logics)

    def sliceViewNames(self):
        return tuple(self._widgets)

    def sliceWidget(self, name):
        return self._widgets[name]

    def mrmlSliceLogics(self):
        return self._logics


class Application(_Signals):
    """As Base/QTCore/qSlicerCoreApplication.cxx and Base/QTGUI/qSlicerApplication.cxx, as far as the module asks: the
    scene, managers and logics, settings, the queue of events, the stack of wait cursors.  It runs as in testing, so no
    message box opens (`_messageDisplay` in Base/Python/slicer/util.py)."""

    applicationName, applicationVersion, majorVersion, minorVersion = "Slicer", "5.13-stand-in", 5, 13
    documentationBaseUrl = "https://slicer.readthedocs.io/en/latest/"

    def __init__(self, scene):
        super().__init__()
        import qt
        import slicer

        self._scene, self._moduleManager, self._ioManager = scene, ModuleManager(), CoreIOManager()
        self.temporaryPath = tempfile.mkdtemp(prefix="slicer-stand-in-")
        self._settings = qt.QSettings(os.path.join(self.temporaryPath, "settings.ini"), qt.QSettings.IniFormat)
        self._settings.setValue("Developer/DeveloperMode", "false")
        self._settings.setValue("Developer/SelfTestDisplayMessageDelay", 0)
        self.cursorDepth = 0
        self._logic = slicer.vtkSlicerApplicationLogic()
        self._logic.SetMRMLScene(scene)
        self._logic.GetColorLogic().SetMRMLScene(scene)
        self._logic.GetColorLogic().AddDefaultColorNodes()
        self._layoutManager = LayoutManager(scene, self._logic)

    def mrmlScene(self):
        return self._scene

    def moduleManager(self):
        return self._moduleManager

    def coreIOManager(self):
        return self._ioManager

    def layoutManager(self):
        return self._layoutManager

    def applicationLogic(self):
        return self._logic

    def testingEnabled(self):
        return True

    def settings(self):
        return self._settings

    def userSettings(self):
        return self._settings

    def moduleDocumentationUrl(self, name):
        return self.documentationBaseUrl + name

    def translate(self, context, text):
        return text

    def topLevelWidgets(self):
        return []

    def commandOptions(self):
        return types.SimpleNamespace(testingEnabled=True, noMainWindow=True)

    def processEvents(self):
        import qt

        qt.QtWidgets.QApplication.processEvents()

    def setOverrideCursor(self, cursor):
        self.cursorDepth += 1

    def restoreOverrideCursor(self):
        self.cursorDepth -= 1

    def pauseRender(self):
        pass

    def resumeRender(self):
        pass

    def restart(self):
        pass

    def thread(self):
        import qt

        return qt.QThread.currentThread()


class _Module:
    """As Base/QTCore/qSlicerAbstractCoreModule.cxx: what ``slicer.modules.<name>`` is for a module of the
    application itself."""

    def __init__(self, logic):
        self._logic = logic

    def logic(self):
        return self._logic


def usesSlicersOwnFiles() -> bool:
    """Whether Slicer's own Base/Python is used rather than our substitutes."""
    return bool(os.environ.get("SLICER_BASE_PYTHON"))


def start():
    """Return the ``slicer`` module, ready for scripted modules.  A second call returns the same."""
    os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
    if str(HERE) not in sys.path:
        sys.path.insert(0, str(HERE))
    import slicer
    import slicer.util

    if getattr(slicer, "app", None) is not None:
        return slicer
    # After slicer-core's own files: ScriptedLoadableModule, parameterNodeWrapper, i18n (and packaging, if Slicer's).
    base = os.environ.get("SLICER_BASE_PYTHON")
    slicer.__path__.append(os.path.join(base, "slicer") if base else str(SUBSTITUTES))

    import qmrml

    for name, cls in vars(qmrml).items():
        if name.startswith(("qMRML", "qSlicer")):
            setattr(slicer, name, cls)
    scene = slicer.mrmlScene = slicer.vtkMRMLScene()
    slicer.modules = types.ModuleType("slicer.modules")
    slicer.moduleNames = types.ModuleType("slicer.moduleNames")
    sys.modules["slicer.modules"], sys.modules["slicer.moduleNames"] = slicer.modules, slicer.moduleNames
    slicer.app = Application(scene)
    for name, cls in (
        ("segmentations", slicer.vtkSlicerSegmentationsModuleLogic),
        ("sequences", slicer.vtkSlicerSequencesLogic),
        ("markups", slicer.vtkSlicerMarkupsLogic),
    ):
        logic = cls()
        logic.SetMRMLApplicationLogic(slicer.app.applicationLogic())
        logic.SetMRMLScene(scene)
        setattr(slicer.modules, name, _Module(logic))

    class qSlicerScriptedLoadableModule:
        pass

    slicer.qSlicerScriptedLoadableModule = qSlicerScriptedLoadableModule
    return slicer


@dataclass
class Loaded:
    pymodule: types.ModuleType
    instance: object
    container: object

    @property
    def widget(self):
        import slicer

        return getattr(slicer.modules, self.pymodule.__name__ + "Widget")

    def enter(self):
        self.container.isEntered = True
        self.widget.enter()

    def exit(self):
        self.container.isEntered = False
        self.widget.exit()


def loadModule(path) -> Loaded:
    """Find, load and open a scripted module as the application does."""
    import qt
    import slicer

    name = Path(path).stem
    sys.path.insert(0, str(Path(path).parent))
    spec = importlib.util.spec_from_file_location(name, path)
    pymodule = importlib.util.module_from_spec(spec)
    sys.modules[name] = pymodule
    spec.loader.exec_module(pymodule)

    parent = types.SimpleNamespace(path=str(path), title="", icon=None, name=name)
    setattr(slicer.modules, name.lower(), parent)
    instance = getattr(pymodule, name)(parent)
    setattr(slicer.modules, name + "Instance", instance)

    container = slicer.qSlicerWidget()
    container.setLayout(qt.QVBoxLayout())
    container.setMRMLScene(slicer.mrmlScene)
    container.isEntered = False

    def open_():
        widget = getattr(sys.modules[name], name + "Widget")(container)
        setattr(slicer.modules, name + "Widget", widget)
        widget.setup()
        container.isEntered = True
        widget.enter()

    container.reload = open_
    parent.widgetRepresentation = lambda: container
    open_()
    return Loaded(pymodule, instance, container)


def sliceImage(name, size=(330, 330)):
    """What a slice view shows (background and foreground blended by MRML's own pipeline) as a QImage."""
    import numpy as np
    import qt
    import slicer
    from vtk.util.numpy_support import vtk_to_numpy

    logic = slicer.app.layoutManager().sliceWidget(name).sliceLogic()
    node = logic.GetSliceNode()
    if tuple(node.GetDimensions()[:2]) != tuple(size):
        node.SetDimensions(size[0], size[1], 1)
        logic.FitSliceToBackground()
    logic.UpdatePipeline()
    connection = logic.GetImageDataConnection()
    if connection is None:
        image = qt.QtGui.QImage(size[0], size[1], qt.QtGui.QImage.Format_RGB888)
        image.fill(qt.QtGui.QColor("black"))
        return image
    connection.GetProducer().Update()
    data = connection.GetProducer().GetOutputDataObject(connection.GetIndex())
    width, height, _ = data.GetDimensions()
    pixels = vtk_to_numpy(data.GetPointData().GetScalars()).reshape(height, width, -1)[::-1, :, :3]
    pixels = np.ascontiguousarray(pixels.astype(np.uint8))
    return qt.QtGui.QImage(pixels.tobytes(), width, height, 3 * width, qt.QtGui.QImage.Format_RGB888).copy()


def grabPanel(container, path, width=440):
    """Write a picture of the module's panel, as high as it needs to be."""
    import slicer

    container.resize(width, 100)
    container.show()
    for _ in range(3):
        slicer.app.processEvents()
        container.resize(
            width,
            max(
                container.sizeHint().height(),
                container.minimumSizeHint().height(),
                container.layout().totalHeightForWidth(width),
            ),
        )
    slicer.app.processEvents()
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    picture = container.grab()
    picture.save(str(path))
    return picture


def grabWindow(container, path, panelWidth=440, view=330, caption=""):
    """Write a picture of the panel beside the three slice views, as they stand in the application."""
    import qt
    import slicer

    panel = grabPanel(container, path, panelWidth).toImage()
    for name in LayoutManager.VIEWS:
        slicer.app.layoutManager().sliceWidget(name).sliceLogic().FitSliceToBackground()
    height = max(panel.height(), 2 * view + 6)
    picture = qt.QtGui.QImage(panel.width() + 2 * view + 12, height, qt.QtGui.QImage.Format_RGB888)
    picture.fill(qt.QtGui.QColor(36, 36, 40))
    painter = qt.QtGui.QPainter(picture)
    painter.fillRect(0, 0, panel.width(), height, container.palette.color(qt.QtGui.QPalette.Window))
    painter.drawImage(0, 0, panel)
    for index, name in enumerate(("Red", "Yellow", "Green")):
        x = panel.width() + 6 + (index % 2) * (view + 6)
        y = (index // 2) * (view + 6)
        painter.drawImage(x, y, sliceImage(name, (view, view)))
        painter.fillRect(
            x,
            y,
            view,
            4,
            {
                "Red": qt.QtGui.QColor(243, 74, 51),
                "Yellow": qt.QtGui.QColor(237, 213, 76),
                "Green": qt.QtGui.QColor(110, 176, 75),
            }[name],
        )
    if caption:
        painter.setPen(qt.QtGui.QColor("white"))
        box = qt.QtCore.QRectF(panel.width() + view + 24, view + 20, view - 30, view - 40)
        painter.drawText(box, int(qt.Qt.TextWordWrap.value), caption)
    painter.end()
    picture.save(str(path))
