"""The stand-ins behave as what they stand in for, as read in Slicer's and CTK's sources (named in each stand-in)."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))
from SlicerHarness.fixtures import exceptionsFail, qt, scene, slicer  # noqa: E402, F401


@pytest.fixture
def selector(scene):  # noqa: F811
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


def test_children_of_a_type_are_shown_unless_they_are_not_to_be(scene):  # noqa: F811
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


def test_without_none_the_first_node_becomes_current(scene):  # noqa: F811
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
