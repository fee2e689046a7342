"""The button "Segment both and compare": when it can be pressed, what it makes, and how it ends."""

import sys

import pytest
import slicer

from MissingModalitySynthLib.model_package import ListedPackage, load_package
from MissingModalitySynthLib.scene.provenance import segmented_volume_of

story = sys.modules["panel_story"]


@pytest.fixture
def segmenting(panel, segmenting_package):
    """The panel with a model that has a segmenter, and a synthetic T2 that is compared with its T1."""
    source = story.add_head()
    panel.settle()
    panel.begin("T2")
    (made,) = panel.finish()
    package = load_package(segmenting_package)
    panel.widget.context.packages = (ListedPackage(package.name, package.path, False, package),)
    panel.widget.render()
    panel.settle()
    panel.source, panel.made = source, made
    return panel


def segmentations():
    kind = "vtkMRMLSegmentationNode"
    return [slicer.mrmlScene.GetNthNodeByClass(n, kind) for n in range(slicer.mrmlScene.GetNumberOfNodesByClass(kind))]


def test_where_no_model_has_a_segmenter_the_button_is_grey(segmenting, tiny_package):
    assert segmenting.ui.segmentButton.enabled
    package = load_package(tiny_package)
    segmenting.widget.context.packages = (ListedPackage(package.name, package.path, False, package),)
    segmenting.widget.render()
    assert not segmenting.ui.segmentButton.enabled


def test_without_volumes_the_button_is_grey(segmenting):
    assert segmenting.ui.segmentButton.enabled
    segmenting.ui.compareSyntheticSelector.setCurrentNode(None)
    segmenting.settle()
    assert not segmenting.ui.segmentButton.enabled


def test_both_volumes_are_segmented_outlined_and_compared(segmenting):
    panel = segmenting
    panel.click("segmentButton")
    assert panel.logic.session.running and not panel.ui.segmentButton.enabled
    assert "Cancel" in panel.ui.applyButton.text.replace("&", "")
    synthetic, source = panel.finish()
    assert [segmented_volume_of(node) for node in (synthetic, source)] == [panel.made, panel.source]
    assert segmentations() == [synthetic, source]
    assert panel.ui.segmentationSelector.currentNode() is synthetic
    assert panel.ui.otherSegmentationSelector.currentNode() is source
    assert "segmented in" in panel.ui.messageLabel.text
    panel.wait(lambda: "Dice" in panel.ui.metricsLabel.text, "the overlap")
    for name in ("CSF", "grey matter", "white matter", "deep grey matter", "lesion"):
        assert f"Dice {name}" in panel.ui.metricsLabel.text
    assert "PSNR" not in panel.ui.metricsLabel.text  # nothing was acquired
    panel.click("segmentButton")
    assert panel.finish() == [synthetic, source]  # the earlier ones give way
    panel.click("closeCompareButton")


def test_the_acquired_volume_comes_before_the_source(segmenting):
    panel = segmenting
    acquired = story.add_head("Patient 7 T2")
    panel.settle()
    panel.ui.compareAcquiredSelector.setCurrentNode(acquired)
    panel.settle()
    panel.click("segmentButton")
    synthetic, other = panel.finish()
    assert [segmented_volume_of(node) for node in (synthetic, other)] == [panel.made, acquired]
    panel.wait(lambda: "Dice" in panel.ui.metricsLabel.text, "the overlap")
    assert "PSNR" in panel.ui.metricsLabel.text
    panel.click("closeCompareButton")


def segment_both(panel):
    panel.click("segmentButton")
    nodes = panel.finish()
    panel.wait(lambda: "Dice" in panel.ui.metricsLabel.text, "the overlap")
    return nodes


def chosen(panel):
    return [panel.ui.segmentationSelector.currentNode(), panel.ui.otherSegmentationSelector.currentNode()]


def outlined():
    """The segmentations that have more than their own display."""
    return [node for node in segmentations() if node.GetNumberOfDisplayNodes() > 1]


def test_dice_and_outlines_of_another_image_go_with_it_and_come_back(segmenting):
    panel = segmenting
    tissues = segment_both(panel)
    assert outlined() == tissues
    assert "T2" not in panel.ui.compareSourceSelector.currentNode().GetName()
    (other,) = panel.logic.synthesize({"T1": panel.source}, ["FLAIR"], package="micro")
    panel.settle()
    panel.ui.resultsList.currentRow = 1
    panel.click("compareButton")
    assert panel.ui.compareSyntheticSelector.currentNode() is other
    assert chosen(panel) == [tissues[1], None]
    assert outlined() == tissues[1:]
    assert panel.ui.metricsLabel.text == ""
    panel.ui.resultsList.currentRow = 0
    panel.click("compareButton")
    panel.wait(lambda: "Dice" in panel.ui.metricsLabel.text, "the overlap")
    assert chosen(panel) == tissues and outlined() == tissues
    panel.click("closeCompareButton")
    assert not any(node.GetDisplayNode().GetVisibility() for node in tissues)


def test_the_tissues_of_the_acquired_volume_go_when_it_is_not_compared_any_more(segmenting):
    panel = segmenting
    acquired = story.add_head("Patient 7 T2")
    panel.settle()
    panel.ui.compareAcquiredSelector.setCurrentNode(acquired)
    panel.settle()
    tissues = segment_both(panel)
    panel.ui.compareAcquiredSelector.setCurrentNode(None)
    panel.settle()
    assert chosen(panel) == [tissues[0], None] and outlined() == tissues[:1]
    assert panel.ui.metricsLabel.text == ""
    panel.click("closeCompareButton")


def test_a_new_synthesis_in_its_place_takes_its_tissues_along(segmenting):
    panel = segmenting
    _synthetic, of_source = segment_both(panel)
    panel.logic.synthesize({"T1": panel.source}, ["T2"], package="micro", replace=True, seed=3)
    panel.settle()
    assert segmentations() == [of_source]
    assert "Dice" not in panel.ui.metricsLabel.text
    panel.click("closeCompareButton")


def test_tissues_of_volumes_that_are_not_compared_any_more_are_not_outlined(segmenting):
    panel = segmenting
    panel.click("segmentButton")
    other = story.add_head("Patient 8 T1")
    panel.ui.compareSourceSelector.setCurrentNode(other)
    panel.finish()
    panel.settle()
    assert chosen(panel) == [None, None] and outlined() == []
    panel.click("closeCompareButton")


def test_cancelling_adds_nothing_and_another_run_works(segmenting):
    panel = segmenting
    panel.click("segmentButton")
    panel.click("applyButton")
    panel.wait(lambda: not panel.logic.session.running, "the end of cancelling")
    assert segmentations() == []
    assert "Cancelled" in panel.ui.messageLabel.text
    panel.click("segmentButton")
    assert len(panel.finish()) == 2


def test_a_volume_that_is_removed_meanwhile_adds_nothing(segmenting):
    panel = segmenting
    panel.click("segmentButton")
    slicer.mrmlScene.RemoveNode(panel.source)
    panel.wait(lambda: not panel.logic.session.running, "the end of the run")
    assert segmentations() == []
    assert "Patient 7 T1" in panel.ui.messageLabel.text


def test_a_script_segments_volumes(segmenting, segmenting_package):
    logic = type(segmenting.logic)()
    made = logic.segment([segmenting.source, segmenting.made], package=segmenting_package)
    assert [segmented_volume_of(node) for node in made] == [segmenting.source, segmenting.made]
