"""The host behaves as PythonQt does in Slicer, where a plain PySide6 would let mistakes pass."""

import sys

import numpy as np
import pytest
import slicer

pytestmark = pytest.mark.usefixtures("application")


@pytest.fixture
def qt(application):
    import qt

    return qt


def test_properties_are_attributes_and_cannot_be_called(qt):
    label = qt.QLabel("text")
    assert label.text == "text"
    with pytest.raises(TypeError):
        label.text()
    label.text = None
    assert label.text == "None"


def test_setters_and_questions_are_methods(qt):
    box = qt.QCheckBox()
    box.setChecked(True)
    assert box.isChecked()
    assert box.checked


def test_unknown_names_are_refused_on_reading_and_writing(qt):
    label = qt.QLabel()
    with pytest.raises(AttributeError):
        label.txet  # noqa: B018
    with pytest.raises(AttributeError):
        label.txet = "x"
    with pytest.raises(AttributeError):
        qt.QLable  # noqa: B018


def test_classes_do_not_inherit_but_objects_know_what_they_are(qt):
    button = qt.QPushButton()
    assert type(button) is qt.QPushButton
    assert not isinstance(button, qt.QWidget)
    assert button.inherits("QWidget")


def test_keywords_and_wrong_arguments_raise_value_errors(qt):
    with pytest.raises(ValueError, match="keyword"):
        qt.QLabel(text="x")
    box = qt.QSpinBox()
    with pytest.raises(ValueError, match="overload"):
        box.setValue("3")
    with pytest.raises(ValueError, match="overload"):
        box.setValue(np.float64(3))
    box.setValue(np.int64(3))
    assert box.value == 3


def test_lists_come_back_as_tuples(qt):
    combo = qt.QComboBox()
    combo.addItem("x")
    parent = qt.QWidget()
    qt.QLabel(parent)
    assert isinstance(parent.findChildren(qt.QLabel), tuple)


def test_signals_connect_by_signature_and_by_name(qt, capsys):
    box, seen = qt.QCheckBox(), []
    assert box.connect("toggled(bool)", seen.append)
    assert box.toggled.connect(lambda: seen.append("by name"))
    assert box.connect("toggled(int)", seen.append) is False
    assert "No such signal" in capsys.readouterr().err
    box.checked = True
    assert seen == [True, "by name"]


def test_connecting_twice_calls_twice_and_surplus_arguments_are_dropped(qt):
    box, seen = qt.QSpinBox(), []

    def slot():
        seen.append(1)

    box.valueChanged.connect(slot)
    box.valueChanged.connect(slot)
    box.setValue(5)
    assert seen == [1, 1]


def test_enumerations_are_numbers_without_a_name(qt):
    assert qt.Qt.Checked == 2
    assert not hasattr(qt.Qt.Checked, "name")
    assert qt.Qt.ItemIsEnabled | qt.Qt.ItemIsSelectable == 33


def test_bytes_of_a_process_come_in_chunks_with_data(qt, application):
    process, done = qt.QProcess(), []
    process.finished.connect(done.append)
    process.start(sys.executable, ["-c", "print('hello')"])
    while not done:
        application.processEvents()
    output = process.readAllStandardOutput()
    assert output.data().strip() == b"hello"
    with pytest.raises(TypeError):
        bytes(output)
    assert done == [0]
    assert not hasattr(process, "pid")


def test_a_node_selector_has_a_method_for_its_node_and_a_property_for_its_id(qt):
    selector = slicer.qMRMLNodeComboBox()
    selector.nodeTypes = ["vtkMRMLScalarVolumeNode"]
    selector.setMRMLScene(slicer.mrmlScene)
    seen = []
    assert selector.connect("currentNodeChanged(vtkMRMLNode*)", seen.append)
    assert selector.connect("currentNodeChanged()", seen.append) is False
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "T1")
    selector.setCurrentNode(node)
    assert selector.currentNode() is node
    assert selector.currentNodeID == node.GetID()
    assert seen[-1] is node
    slicer.mrmlScene.RemoveNode(node)


def test_a_timer_fires_once_from_the_event_loop(qt, application):
    fired = []
    timer = qt.QTimer()
    timer.singleShot = True
    timer.timeout.connect(lambda: fired.append(1))
    timer.start()
    for _ in range(20):
        application.processEvents()
    assert fired == [1]


def test_a_ui_file_that_is_missing_raises_a_runtime_error():
    with pytest.raises((RuntimeError, OSError)):
        slicer.util.loadUI("/nowhere/panel.ui")
