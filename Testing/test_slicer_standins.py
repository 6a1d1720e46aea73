"""The stand-ins behave as what they stand in for, as read in Slicer's and CTK's sources (named in each stand-in)."""

from __future__ import annotations

import ast
import logging
import re
from pathlib import Path
from typing import Annotated

import pytest

from SlicerHarness.fixtures import BRAIN, qt, slicer


@pytest.fixture
def selector(scene):
    """A node selector of linear transforms with None, as the .ui files make them, and what it has emitted."""
    combo = slicer.qMRMLNodeComboBox()
    combo.nodeTypes = ["vtkMRMLLinearTransformNode"]
    combo.removeEnabled = False
    combo.noneEnabled = True
    combo.setMRMLScene(scene)
    combo.emitted = []
    combo.currentNodeChanged.connect(combo.emitted.append)
    yield combo
    combo.setMRMLScene(None)


def transform(name):
    return slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", name)


def rows(combo):
    return [combo._combo.itemText(index) for index in range(combo._combo.count)]


def shown(combo):
    """The rows without those of the slice views' own transforms, which are hidden from editors."""
    return [text for text in rows(combo) if text]


def test_none_comes_first_and_actions_last(selector):
    transform("T1")
    assert shown(selector) == ["None", "T1", f"Create new {selector.nodeTypeLabel('vtkMRMLLinearTransformNode')}"]
    assert selector.currentNode() is None and selector.nodeCount() == 1


def test_another_text_for_none_makes_a_node_the_current_one(selector):
    """qMRMLNodeComboBox::setNoneDisplay takes the None row out; then no row is current, and a node is selected."""
    nodes = [transform("Mine"), transform("Other")]
    assert selector.currentNode() is None
    selector.noneDisplay = "Create a new transform"
    assert selector.currentNode() in nodes and selector.emitted[-1] in nodes


def test_the_same_text_for_none_changes_nothing(selector):
    transform("Mine")
    selector.noneDisplay = "None"
    assert selector.currentNode() is None and not selector.emitted


def test_removing_the_current_node_makes_its_neighbor_current(selector):
    mine, current = transform("Mine"), transform("Current")
    selector.setCurrentNode(current)
    slicer.mrmlScene.RemoveNode(current)
    assert selector.currentNode() is mine and selector.emitted[-1] is mine


def test_removing_another_node_keeps_the_current_one(selector):
    first, second, third = (transform(name) for name in "abc")
    selector.setCurrentNode(second)
    slicer.mrmlScene.RemoveNode(first)
    assert selector.currentNode() is second
    slicer.mrmlScene.RemoveNode(third)
    assert selector.currentNode() is second


def test_adding_nodes_keeps_none(selector):
    for name in "abc":
        transform(name)
    assert selector.currentNode() is None and not selector.emitted


def test_names_follow(selector):
    node = transform("Before")
    node.SetName("After")
    assert "After" in rows(selector) and "Before" not in rows(selector)


def test_children_of_a_type_are_shown_unless_they_are_not_to_be(scene):
    combo = slicer.qMRMLNodeComboBox()
    combo.nodeTypes = ["vtkMRMLScalarVolumeNode"]
    combo.noneEnabled = True
    combo.setMRMLScene(scene)
    for kind in ("Scalar", "LabelMap", "Vector", "DiffusionTensor"):
        scene.AddNewNodeByClass(f"vtkMRML{kind}VolumeNode", kind)
    hidden = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "Hidden")
    hidden.SetHideFromEditors(True)
    assert combo.nodeCount() >= 4 and {"Scalar", "LabelMap", "Vector", "DiffusionTensor"} <= set(rows(combo))
    combo.showChildNodeTypes = False
    assert {"LabelMap", "Vector", "DiffusionTensor"}.isdisjoint(rows(combo)) and "Scalar" in rows(combo)
    combo.setMRMLScene(None)


def test_the_end_of_an_import_begins_anew_with_none(selector, tmp_path):
    node = transform("Chosen")
    selector.setCurrentNode(node)
    other = slicer.vtkMRMLScene()
    other.SetURL(str(tmp_path / "empty.mrml"))
    assert other.Commit()
    slicer.mrmlScene.SetURL(str(tmp_path / "empty.mrml"))
    slicer.mrmlScene.Import()
    assert selector.currentNode() is None and selector.emitted[-1] is None


def test_without_none_the_first_node_becomes_current(scene):
    combo = slicer.qMRMLNodeComboBox()
    combo.nodeTypes, combo.addEnabled, combo.removeEnabled = ["vtkMRMLModelNode"], False, False
    combo.setMRMLScene(scene)
    slice_models = combo.nodeCount()
    node = scene.AddNewNodeByClass("vtkMRMLModelNode", "model")
    assert combo.nodeCount() == slice_models + 1
    assert combo.currentNode() is node or slice_models
    combo.setMRMLScene(None)


def test_create_new_makes_a_node_of_the_chosen_type_and_selects_it(selector):
    selector.baseName = "Registration"
    label = f"Create new {selector.nodeTypeLabel('vtkMRMLLinearTransformNode')}"
    model = selector._combo.model()
    selector._combo.view().clicked.emit(model.index(rows(selector).index(label), 0, selector._combo.rootModelIndex()))
    assert selector.currentNode().GetName() == "Registration"


def test_a_folded_section_hides_what_is_shown_meanwhile():
    """ctkCollapsibleButton.cpp: a child that is shown explicitly is seen only when the section is opened."""
    import ctk

    section = ctk.ctkCollapsibleButton()
    section.setLayout(qt.QVBoxLayout())
    label, other = qt.QLabel("a"), qt.QLabel("b")
    for each in (label, other):
        section.layout().addWidget(each)
    label.hide()
    section.show()
    section.collapsed = True
    assert other.isHidden()
    label.show()
    other.hide()
    assert label.isHidden()
    section.collapsed = False
    assert not label.isHidden() and other.isHidden()
    section.close()


# Each names what it stands in for

HARNESS = Path(__file__).resolve().parent / "SlicerHarness"
SOURCE = re.compile(r"\b(?:Base|Libs|Modules|src)/[\w/]+\.(?:cxx|cpp|py)\b")


def test_each_stand_in_names_the_source_file_whose_behavior_it_has():
    unnamed = []
    for path in sorted(HARNESS.glob("*.py")):
        if path.name in ("__init__.py", "fixtures.py", "window.py"):
            continue
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            helper = not isinstance(node, ast.ClassDef) or node.name in ("_Meta", "Loaded")
            if not helper and not SOURCE.search(ast.get_docstring(node) or ""):
                unnamed.append(f"{path.name}: {node.name}")
    for path in sorted((HARNESS / "substitutes").glob("*.py")):
        if not SOURCE.search(ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""):
            unnamed.append(path.name)
    assert not unnamed


# PythonQt


def test_properties_are_attributes_and_have_their_setters():
    """PythonQtInstanceWrapper.cpp: a property is read and written as an attribute; its setter is a method."""
    button = qt.QPushButton("a")
    button.enabled, button.text = False, "b"
    assert (button.enabled, button.text, button.isEnabled()) == (False, "b", False)
    button.setText("c")
    button.setObjectName("mine")
    assert (button.text, button.name) == ("c", "mine")


def test_signals_are_connected_by_their_signature_which_says_what_is_passed():
    """PythonQtSignalReceiver.cpp: "clicked()" passes nothing, "clicked(bool)" the state, if the slot takes it."""
    button, got = qt.QPushButton("a"), []
    button.setCheckable(True)
    nothing, state = lambda *arguments: got.append(arguments), lambda *arguments: got.append(arguments)
    button.connect("clicked()", nothing)
    button.connect("clicked(bool)", state)
    button.connect("clicked(bool)", lambda: got.append("no argument"))
    button.click()
    assert got == [(), (True,), "no argument"]
    button.disconnect("clicked()", nothing)
    button.click()
    assert got[3:] == [(False,), "no argument"]


def test_classes_are_the_same_wherever_a_widget_comes_from(tmp_path):
    """As PythonQt wraps: what a .ui file holds is an instance of the classes of qt, and is found by them."""
    ui = tmp_path / "a.ui"
    ui.write_text(
        '<ui version="4.0"><widget class="QWidget" name="top"><layout class="QVBoxLayout" name="l"><item>'
        '<widget class="QCheckBox" name="box"/></item></layout></widget></ui>'
    )
    top = slicer.util.loadUI(str(ui))
    (box,) = top.findChildren(qt.QCheckBox)
    assert (
        type(box) is qt.QCheckBox and isinstance(box, qt.QWidget) and slicer.util.childWidgetVariables(top).box is box
    )


# CTK and qMRML


def test_a_path_is_the_text_as_it_stands_and_every_change_is_told(tmp_path):
    """ctkPathLineEdit.cpp: no file needs to be there."""
    import ctk

    line, told = ctk.ctkPathLineEdit(), []
    line.connect("currentPathChanged(QString)", told.append)
    for path in (str(tmp_path / "nowhere"), str(tmp_path), str(tmp_path), ""):
        line.currentPath = path
        assert line.currentPath == path
    assert told == [str(tmp_path / "nowhere"), str(tmp_path), ""]


def test_a_slider_and_its_number_follow_each_other_within_the_range():
    """ctkSliderWidget.cpp"""
    import ctk

    slider, told = ctk.ctkSliderWidget(), []
    slider.minimum, slider.maximum, slider.decimals = 0.0, 10.0, 2
    slider.connect("valueChanged(double)", told.append)
    slider.value = 2.5
    slider.value = 99.0
    assert told == [2.5, 10.0] and slider.value == 10.0 and slider._slider.value == slider._slider.maximum


def test_a_widget_tells_of_another_scene_only(scene):
    """qMRMLWidget::setMRMLScene, qSlicerWidget::setMRMLScene"""
    for cls in (slicer.qMRMLWidget, slicer.qSlicerWidget):
        widget, told = cls(), []
        widget.mrmlSceneChanged.connect(told.append)
        for each in (scene, scene, None):
            widget.setMRMLScene(each)
        assert told == [scene, None] and widget.mrmlScene() is None


# The application


def test_a_module_that_is_not_there_is_none():
    """qSlicerModuleManager::module"""
    assert slicer.app.moduleManager().module("NoSuchModule") is None
    assert slicer.app.moduleManager().module("Markups") is slicer.modules.markups


def test_slots_of_the_application_are_called_until_they_are_disconnected():
    """PythonQt.cpp: signals such as startupCompleted() by their signature."""
    got = []
    slot = lambda: got.append(1)  # noqa: E731
    slicer.app.connect("aboutToQuit()", slot)
    slicer.app.emitSignal("aboutToQuit()")
    slicer.app.disconnect("aboutToQuit()", slot)
    slicer.app.emitSignal("aboutToQuit()")
    assert got == [1]


def test_a_volume_that_is_read_has_display_and_storage_nodes_and_is_unchanged_since(scene, tmp_path):
    """vtkSlicerVolumesLogic::AddArchetypeVolume"""
    volume = slicer.util.loadVolume(str(BRAIN), {"show": False})
    assert volume.GetDisplayNode().GetScene() is scene and volume.GetStorageNode().GetScene() is scene
    assert volume.GetStorageNode().GetFullNameFromFileName() == str(BRAIN)
    assert not volume.GetModifiedSinceRead()


def test_what_can_not_be_read_leaves_no_node(scene, tmp_path):
    """qSlicerCoreIOManager::loadNodes"""
    count = scene.GetNumberOfNodes()
    (tmp_path / "broken.nrrd").write_bytes(b"no image")
    for name in ("broken.nrrd", "nowhere.nrrd"):
        with pytest.raises(RuntimeError):
            slicer.util.loadVolume(str(tmp_path / name))
    assert scene.GetNumberOfNodes() == count


def test_slice_views_are_singletons_that_outlive_the_scene(scene):
    """qMRMLLayoutViewFactory.cxx, qMRMLSliceWidget.cxx: the views of the layout are mapped, and stay when it is
    closed."""
    manager = slicer.app.layoutManager()
    nodes = {name: manager.sliceWidget(name).mrmlSliceNode() for name in manager.sliceViewNames()}
    assert set(nodes) == {"Red", "Yellow", "Green"}
    scene.Clear()
    for name, node in nodes.items():
        assert manager.sliceWidget(name).sliceLogic().GetSliceNode() is node and node.GetScene() is scene
        assert node.GetSingletonTag() == name and node.IsMappedInLayout()
        logic = slicer.app.applicationLogic().GetSliceLogicByLayoutName(name)
        assert logic is manager.sliceWidget(name).sliceLogic()
        assert logic.GetSliceCompositeNode() is manager.sliceWidget(name).mrmlSliceCompositeNode()


def test_no_message_box_opens_in_testing_but_its_text_is_logged(caplog):
    """_messageDisplay in Base/Python/slicer/util.py"""
    caplog.set_level(logging.INFO)
    slicer.util.confirmOkCancelDisplay("Really?")
    assert slicer.app.testingEnabled() and "Really?" in caplog.text


# ScriptedLoadableModule and parameterNodeWrapper


def test_a_logic_has_one_parameter_node_by_its_modules_name(scene):
    """ScriptedLoadableModuleLogic.getParameterNode: a singleton with the module's name as its attribute."""
    from slicer.ScriptedLoadableModule import ScriptedLoadableModuleLogic

    class SomethingLogic(ScriptedLoadableModuleLogic):
        pass

    node = SomethingLogic().getParameterNode()
    assert node.GetAttribute("ModuleName") == "Something" and node.GetSingletonTag() == "Something"
    assert SomethingLogic().getParameterNode() is node


def test_a_parameter_node_keeps_typed_values_and_refuses_others(scene):
    """parameterNodeWrapper/wrapper.py: written values are in the node, are checked, and begin with their defaults."""
    from slicer.parameterNodeWrapper import WithinRange, parameterNodeWrapper

    class Parameters:
        count = 2
        name = "a"

    # The annotations as a module without postponed ones has them.
    Parameters.__annotations__ = {
        "count": Annotated[int, WithinRange(0, 5)], "name": str, "volume": slicer.vtkMRMLScalarVolumeNode
    }  # fmt: skip
    Parameters = parameterNodeWrapper(Parameters)
    node = scene.AddNewNodeByClass("vtkMRMLScriptedModuleNode")
    one = Parameters(node)
    assert (one.count, one.name, one.volume) == (2, "a", None)
    volume = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode")
    one.count, one.name, one.volume = 5, "b", volume
    again = Parameters(node)
    assert (again.count, again.name, again.volume) == (5, "b", volume)
    for name, value, error in (("count", 6, ValueError), ("count", "x", TypeError), ("name", 1, TypeError)):
        with pytest.raises(error):
            setattr(one, name, value)
    assert one.count == 5 and one.name == "b"
