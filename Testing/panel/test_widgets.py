"""The panel's widgets: what Slicer needs of the .ui file, narrow panels, the keyboard, both themes."""

import os
import re
import signal
import sys
import xml.etree.ElementTree as ET
from itertools import pairwise
from pathlib import Path

import pytest
import slicer
from PySide6.QtCore import Qt
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QAbstractButton, QApplication, QLabel, QWidget

story = sys.modules["panel_story"]
UI = Path(__file__).parents[2] / "MissingModalitySynth" / "Resources" / "UI" / "MissingModalitySynth.ui"


@pytest.fixture
def top(panel):
    """The panel's outermost widget, of Qt itself, with everything unfolded."""
    for name, child in vars(panel.ui).items():
        if name.endswith("CollapsibleButton"):
            child.visible = True
            child.collapsed = False
    panel.settle()
    return panel.widget.parent._qt


def widgets(kind=None):
    return [each for each in ET.parse(UI).iter("widget") if kind is None or each.get("class") == kind]


def test_every_node_selector_gets_the_scene():
    selectors = {each.get("name") for each in widgets("qMRMLNodeComboBox")}
    connected = {each.findtext("receiver") for each in ET.parse(UI).iter("connection")}
    assert selectors == connected


def test_every_bound_widget_has_a_parameter_of_that_name(module):
    bound = [
        each.findtext("string")
        for widget in widgets()
        for each in widget.findall("property")
        if each.get("name") == "SlicerParameterName"
    ]
    assert set(bound) <= set(module.MissingModalitySynthParameterNode.allParameters)
    assert len(bound) == len(set(bound))


def test_every_control_can_be_named_by_a_screen_reader():
    controls = {"QComboBox", "qMRMLNodeComboBox", "QSpinBox", "QDoubleSpinBox", "QSlider", "ctkSliderWidget"}
    controls |= {"QListWidget", "QProgressBar"}
    for widget in widgets():
        names = {each.get("name") for each in widget.findall("property")}
        if widget.get("class") in controls:
            assert "accessibleName" in names, widget.get("name")
        elif widget.get("class") in {"QPushButton", "QCheckBox"}:
            assert "text" in names, widget.get("name")


def test_every_control_explains_itself():
    explained = {"QComboBox", "qMRMLNodeComboBox", "QSpinBox", "QDoubleSpinBox", "QSlider", "ctkSliderWidget"}
    explained |= {"QCheckBox", "QListWidget"}
    for widget in widgets():
        if widget.get("class") in explained:
            assert "toolTip" in {each.get("name") for each in widget.findall("property")}, widget.get("name")


def test_the_caution_is_always_there(panel, top):
    label = top.findChild(QLabel, "cautionLabel")
    assert label.isVisible()
    assert "not for diagnosis" in label.text()
    assert "Synthetic" in label.text()


def test_nothing_is_wider_than_a_panel_of_320_pixels(panel, top):
    story.add_head("A volume with quite a long name, as exported from some archive T1 MPRAGE sagittal")
    panel.settle()
    top.resize(320, 1200)
    panel.settle()
    assert top.minimumSizeHint().width() <= 320
    for child in top.findChildren(QWidget):
        if child.isVisible():
            right = child.mapTo(top, child.rect().topRight()).x()
            assert right < 320, child.objectName() or type(child).__name__
    assert top.width() == 320


def test_mnemonics_of_what_can_be_seen_at_once_are_different(panel, top):
    used = {}
    for child in top.findChildren(QWidget):
        if isinstance(child, (QAbstractButton, QLabel)) and child.isVisible():
            for letter in re.findall(r"&(\w)", child.text()):
                assert letter.lower() not in used, f"{child.objectName()} and {used[letter.lower()]}: {letter}"
                used[letter.lower()] = child.objectName()
    assert "s" in used


def test_the_tab_key_goes_through_the_panel_from_top_to_bottom(panel, top):
    story.add_head()
    panel.settle()
    panel.tick("T2")
    top.resize(320, 1600)
    panel.settle()
    top.activateWindow()
    panel.ui.sourceSelector1.setFocus()
    panel.settle()
    visited = []
    for _ in range(60):
        widget = QApplication.focusWidget()
        if widget is None or (visited and widget is visited[0]):
            break
        visited.append(widget)
        QTest.keyClick(widget, Qt.Key.Key_Tab)
    heights = [widget.mapTo(top, widget.rect().topLeft()).y() for widget in visited]
    descents = sum(later < earlier - 30 for earlier, later in pairwise(heights))
    assert descents <= 1  # from the bottom back to the top
    names = {each.objectName() for widget in visited for each in (widget, widget.parentWidget())}
    for name in ("modalityComboBox1", "targetT2CheckBox", "packageComboBox", "samplesSpinBox", "applyButton"):
        assert name in names


def test_space_ticks_a_contrast_and_starts_the_run(panel, top):
    story.add_head()
    panel.settle()
    box = top.findChild(QAbstractButton, "targetPDCheckBox")
    QTest.keyClick(box, Qt.Key.Key_Space)
    panel.settle()
    assert panel.ui.applyButton.text.replace("&", "") == "Synthesize PD"
    QTest.keyClick(top.findChild(QAbstractButton, "applyButton"), Qt.Key.Key_Space)
    assert panel.logic.session.running
    assert [node.GetName() for node in panel.finish()] == ["PD (synthetic from T1)"]


def test_a_worker_that_dies_is_told_in_a_sentence_and_the_next_run_works(panel):
    story.add_head(size=(96, 96, 96))
    panel.settle()
    panel.begin("T2")
    panel.wait(lambda: panel.ui.progressBar.value > 0, "the first progress")
    os.kill(panel.logic.session.client.info.pid, signal.SIGKILL)
    panel.wait(lambda: not panel.logic.session.running, "the end of the run")
    assert "worker ended unexpectedly" in panel.ui.messageLabel.text
    assert "Run again" in panel.ui.messageLabel.text
    assert story.synthetic_volumes() == []
    slicer.mrmlScene.Clear(0)
    story.add_head()
    panel.settle()
    panel.begin("T2")
    assert len(panel.finish()) == 1


def test_a_volume_that_cannot_be_used_is_told_in_a_sentence(panel):
    node = story.add_head("thin T1")
    panel.settle()
    slicer.util.updateVolumeFromArray(node, slicer.util.arrayFromVolume(node)[:5])
    panel.tick("T2")
    panel.click("applyButton")
    panel.wait(lambda: not panel.logic.session.running, "the end of the run")
    assert "thin T1" in panel.ui.messageLabel.text
    assert "5 voxels" in panel.ui.messageLabel.text


def test_two_sources_and_their_grid(panel):
    story.add_head("Patient 7 T1")
    second = story.add_head("Patient 7 T2", size=(36, 40, 32))
    panel.settle()
    panel.ui.sourceSelector2.setCurrentNode(second)
    panel.settle()
    assert panel.ui.modalityComboBox2.currentText == "T2"
    assert panel.ui.sourceSelector3.visible
    assert not panel.ui.targetT2CheckBox.visible
    combo = panel.ui.referenceComboBox._qt
    combo.setCurrentIndex(1)
    combo.activated.emit(1)
    panel.begin("FLAIR")
    (made,) = panel.finish()
    assert made.GetImageData().GetDimensions() == second.GetImageData().GetDimensions()
    assert "T1" in made.GetName()
    assert "T2" in made.GetName()


def test_a_volume_that_is_chosen_away_leaves_no_gap(panel):
    story.add_head("Patient 7 T1")
    second = story.add_head("Patient 7 T2")
    panel.settle()
    panel.ui.sourceSelector2.setCurrentNode(second)
    panel.settle()
    panel.ui.sourceSelector1.setCurrentNode(None)
    panel.settle()
    assert panel.ui.sourceSelector1.currentNode() is second
    assert panel.ui.modalityComboBox1.currentText == "T2"
    assert panel.ui.sourceSelector2.currentNode() is None


def test_choices_outlive_the_panel(panel, module):
    from panel_host.application import open_widget

    story.add_head("Patient 7")
    panel.settle()
    panel.ui.modalityComboBox1.setCurrentText("PD")
    panel.tick("T1")
    panel.ui.seedSpinBox.value = 11
    panel.settle()
    again = open_widget(module)
    again.enter()
    assert again.ui.modalityComboBox1.currentText == "PD"
    assert again.ui.targetT1CheckBox.checked
    assert again.ui.seedSpinBox.value == 11
    again.cleanup()


def test_the_check_page_names_what_is_installed(panel):
    panel.click("checkButton")
    assert "torch" in panel.ui.installationLabel.text


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_stands_out_in_both_themes(panel, top, theme):
    from panel_host import themes

    themes.use(theme)
    panel.settle()
    for child in top.findChildren(QLabel):
        palette = child.palette()
        text, ground = palette.color(child.foregroundRole()), palette.color(top.backgroundRole())
        assert abs(text.lightness() - ground.lightness()) > 100, child.objectName()
    picture = themes.grab(panel.widget.parent, 320).toImage()
    assert picture.width() == 320
    colors = {picture.pixelColor(x, y).lightness() for x in range(0, 320, 3) for y in range(0, 200, 3)}
    assert max(colors) - min(colors) > 150
    themes.use("light")
