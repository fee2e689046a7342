"""Stories of a user at the panel, told by clicking its widgets by name.

They run in Slicer's own window (``Testing/Python``) and in the host of ``Testing/panel``: nothing here depends on
either. Every story begins with an empty scene and an open panel, and uses the bundled model on a small volume.
"""

import time

import numpy as np
import slicer

PATIENCE = 120.0  # seconds; the first run starts a process that imports PyTorch


class Panel:
    """The open panel.

    Args:
        widget: the module's widget.
        process_events: lets Qt's event loop run once.
    """

    def __init__(self, widget, process_events=None):
        self.widget, self.ui, self.logic = widget, widget.ui, widget.logic
        self._process_events = process_events or slicer.app.processEvents

    def settle(self):
        """Let everything that is due happen."""
        for _ in range(5):
            self._process_events()
            time.sleep(0.002)

    def wait(self, condition, what):
        """Let Qt run until a condition holds."""
        end = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < end, f"Waited in vain for {what}; the panel says: {self.ui.messageLabel.text}"
            self._process_events()
            time.sleep(0.002)
        self.settle()

    def click(self, name):
        button = getattr(self.ui, name)
        assert button.enabled, f"{name} cannot be clicked: {self.ui.reasonLabel.text}"
        button.click()
        self.settle()

    def tick(self, *targets):
        for name in ("T1", "T1ce", "T2", "FLAIR", "PD"):
            getattr(self.ui, f"target{name}CheckBox").checked = name in targets
        self.settle()

    def begin(self, *targets):
        """Press Synthesize and see that it became Cancel."""
        self.tick(*targets)
        self.click("applyButton")
        assert self.logic.session.running, self.ui.messageLabel.text
        assert "Cancel" in self.ui.applyButton.text.replace("&", "")

    def finish(self):
        self.wait(lambda: not self.logic.session.running, "the end of the run")
        assert self.logic.session.error is None, str(self.logic.session.error)
        return self.logic.session.results


def add_head(name="Patient 7 T1", size=(40, 44, 36)):
    """A small head as a volume node, with voxels [k, j, i] and a display node, as loading a file makes it."""
    k, j, i = np.meshgrid(*(np.linspace(-1, 1, n) for n in reversed(size)), indexing="ij")
    radius = np.sqrt((i / 0.7) ** 2 + (j / 0.8) ** 2 + (k / 0.75) ** 2)
    tissue = 500 + 250 * np.sin(5 * i) * np.cos(4 * j) + 200 * (np.hypot(i - 0.2, j + 0.1) < 0.25)
    voxels = np.where(radius < 1, tissue, 0).astype(np.float32)
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", name)
    node.SetSpacing(2.0, 2.0, 2.5)
    slicer.util.updateVolumeFromArray(node, voxels)
    node.CreateDefaultDisplayNodes()
    return node


def synthetic_volumes():
    kind = "vtkMRMLScalarVolumeNode"
    nodes = [slicer.mrmlScene.GetNthNodeByClass(n, kind) for n in range(slicer.mrmlScene.GetNumberOfNodesByClass(kind))]
    return [node for node in nodes if node.GetAttribute("MissingModalitySynth.synthetic") == "1"]


def the_loaded_mri_and_its_contrast_are_already_chosen(panel):
    node = add_head("Patient 7 T1")
    panel.settle()
    assert panel.ui.sourceSelector1.currentNode() is node
    assert panel.ui.modalityComboBox1.currentText == "T1"
    assert not panel.ui.targetT1CheckBox.visible
    assert not panel.ui.applyButton.enabled
    assert "Tick" in panel.ui.reasonLabel.text
    assert panel.ui.reasonLabel.text in panel.ui.applyButton.toolTip  # which Slicer marks as rich text
    panel.tick("FLAIR")
    assert panel.ui.applyButton.enabled
    assert panel.ui.reasonLabel.text == ""
    assert "GB" in panel.ui.estimateLabel.text


def a_wrong_guess_is_corrected_by_the_user_and_stays_corrected(panel):
    add_head("Patient 7")
    panel.settle()
    assert panel.ui.modalityComboBox1.currentText == "?"
    assert "Patient 7" in panel.ui.reasonLabel.text
    panel.ui.modalityComboBox1.setCurrentText("PD")
    panel.settle()
    add_head("Another T2")
    panel.settle()
    assert panel.ui.modalityComboBox1.currentText == "PD"


def a_click_makes_new_volumes_on_the_same_grid(panel):
    source = add_head()
    before = slicer.util.arrayFromVolume(source).copy()
    panel.settle()
    panel.begin("T2", "FLAIR")
    made = panel.finish()
    assert [node.GetName() for node in made] == ["T2 (synthetic from T1)", "FLAIR (synthetic from T1)"]
    for node in made:
        assert node.GetImageData().GetDimensions() == source.GetImageData().GetDimensions()
        assert node.GetSpacing() == source.GetSpacing()
        assert node.GetOrigin() == source.GetOrigin()
        assert slicer.util.arrayFromVolume(node).max() > 0
    assert (slicer.util.arrayFromVolume(source) == before).all()
    assert panel.ui.resultsList.count == 2
    assert "Synthesize" in panel.ui.applyButton.text.replace("&", "")
    assert "synthesized" in panel.ui.messageLabel.text
    assert not panel.ui.progressBar.visible


def a_synthetic_volume_is_offered_for_comparing_only_and_gone_with_its_message_when_the_scene_is_closed(panel):
    source = add_head()
    panel.settle()
    panel.begin("T2")
    made = panel.finish()
    ui = panel.ui
    for selector in (ui.sourceSelector1, ui.sourceSelector2, ui.compareSourceSelector, ui.compareAcquiredSelector):
        assert [selector.nodeFromIndex(n) for n in range(selector.nodeCount())] == [source]
    offered = [ui.compareSyntheticSelector.nodeFromIndex(n) for n in range(ui.compareSyntheticSelector.nodeCount())]
    assert offered == made
    slicer.mrmlScene.RemoveNode(source)
    panel.settle()
    assert ui.sourceSelector1.currentNode() is None
    slicer.mrmlScene.Clear(0)
    panel.settle()
    assert ui.messageLabel.text == ""
    assert not ui.modalityComboBox1.visible


def another_run_replaces_the_result_or_adds_one(panel):
    add_head()
    panel.settle()
    for replace, expected in ((True, 1), (True, 1), (False, 2)):
        panel.ui.replaceCheckBox.checked = replace
        panel.begin("T2")
        panel.finish()
        assert len(synthetic_volumes()) == expected


def cancel_adds_nothing_and_the_next_run_works(panel):
    large = add_head(size=(96, 96, 96))
    panel.settle()
    panel.begin("T2", "FLAIR", "PD")
    panel.wait(lambda: panel.ui.progressBar.value > 0, "the first progress")
    started = time.monotonic()
    panel.click("applyButton")
    panel.wait(lambda: not panel.logic.session.running, "the end of cancelling")
    assert time.monotonic() - started < 2.0
    assert synthetic_volumes() == []
    assert "Cancelled" in panel.ui.messageLabel.text
    assert panel.ui.applyButton.enabled
    slicer.mrmlScene.RemoveNode(large)
    add_head()
    panel.settle()
    panel.begin("T2")
    assert len(panel.finish()) == 1


def removing_the_source_during_a_run_adds_nothing(panel):
    node = add_head(size=(96, 96, 96))
    panel.settle()
    panel.begin("T2")
    slicer.mrmlScene.RemoveNode(node)
    panel.wait(lambda: not panel.logic.session.running, "the end of the run")
    assert synthetic_volumes() == []
    assert "Patient 7 T1" in panel.ui.messageLabel.text
    assert not panel.ui.applyButton.enabled


def closing_the_scene_during_a_run_adds_nothing(panel):
    add_head(size=(96, 96, 96))
    panel.settle()
    panel.begin("T2")
    slicer.mrmlScene.Clear(0)
    panel.wait(lambda: not panel.logic.session.running, "the end of the run")
    assert synthetic_volumes() == []
    assert "scene was closed" in panel.ui.messageLabel.text
    add_head("A new T2")
    panel.settle()
    assert panel.ui.modalityComboBox1.currentText == "T2"


def a_result_is_compared_with_its_source_and_the_layout_comes_back(panel):
    source = add_head()
    panel.settle()
    panel.ui.compareWhenDoneCheckBox.checked = False
    layout = slicer.app.layoutManager().layoutLogic().GetLayoutNode()
    layout.SetViewArrangement(layout.SlicerLayoutFourUpView)
    panel.begin("T2")
    made = panel.finish()
    assert layout.GetViewArrangement() == layout.SlicerLayoutFourUpView
    panel.click("compareButton")
    assert layout.GetViewArrangement() > layout.SlicerLayoutUserView
    assert panel.ui.compareSourceSelector.currentNode() is source
    assert panel.ui.compareSyntheticSelector.currentNode() is made[0]
    panel.ui.fadeSlider.value = 0.5
    panel.settle()
    panel.click("flickerButton")
    assert panel.ui.fadeSlider.value in (0.0, 1.0)
    panel.click("closeCompareButton")
    assert layout.GetViewArrangement() == layout.SlicerLayoutFourUpView
    assert not panel.ui.closeCompareButton.enabled


def the_comparison_opens_by_itself_when_the_user_wants_it(panel):
    add_head()
    panel.settle()
    layout = slicer.app.layoutManager().layoutLogic().GetLayoutNode()
    layout.SetViewArrangement(layout.SlicerLayoutFourUpView)
    panel.ui.compareWhenDoneCheckBox.checked = True
    panel.begin("T2")
    panel.finish()
    assert layout.GetViewArrangement() > layout.SlicerLayoutUserView
    panel.click("closeCompareButton")


def an_acquired_volume_brings_metrics(panel):
    add_head()
    panel.settle()
    panel.begin("T2")
    made = panel.finish()
    acquired = add_head("Patient 7 T2")
    panel.settle()
    panel.ui.compareAcquiredSelector.setCurrentNode(acquired)
    panel.click("startCompareButton")
    assert panel.ui.compareSyntheticSelector.currentNode() is made[0]
    panel.wait(lambda: "PSNR" in panel.ui.metricsLabel.text, "the metrics")
    for name in ("NMSE", "SSIM"):
        assert name in panel.ui.metricsLabel.text
    panel.click("closeCompareButton")


def a_new_result_takes_the_place_of_the_old_one_in_an_open_comparison(panel):
    source = add_head()
    panel.settle()
    panel.begin("T2")
    panel.finish()
    difference = hidden_difference()
    assert difference is not None
    panel.ui.compareWhenDoneCheckBox.checked = False
    voxels = slicer.util.arrayFromVolume(source)
    voxels[:, :, : voxels.shape[2] // 2] = 0
    slicer.util.arrayFromVolumeModified(source)
    before = slicer.util.arrayFromVolume(difference).copy()
    panel.begin("T2")
    panel.finish()
    assert (slicer.util.arrayFromVolume(hidden_difference()) != before).any()
    panel.click("closeCompareButton")
    assert hidden_difference() is None


def hidden_difference():
    """The volume that the comparison adds while it is shown."""
    kind = "vtkMRMLScalarVolumeNode"
    nodes = [slicer.mrmlScene.GetNthNodeByClass(n, kind) for n in range(slicer.mrmlScene.GetNumberOfNodesByClass(kind))]
    return next((node for node in nodes if node.GetHideFromEditors()), None)


def a_result_is_removed_by_its_button(panel):
    add_head()
    panel.settle()
    panel.begin("T2", "PD")
    panel.finish()
    panel.ui.resultsList.currentRow = 0
    panel.click("removeButton")
    assert [node.GetName() for node in synthetic_volumes()] == ["PD (synthetic from T1)"]
    assert panel.ui.resultsList.count == 1


def a_script_synthesizes_without_touching_the_views(panel):
    source = add_head()
    layout = slicer.app.layoutManager().layoutLogic().GetLayoutNode()
    layout.SetViewArrangement(layout.SlicerLayoutFourUpView)
    made = type(panel.logic)().synthesize({"T1": source}, ["FLAIR"], seed=3)
    assert [node.GetName() for node in made] == ["FLAIR (synthetic from T1)"]
    assert layout.GetViewArrangement() == layout.SlicerLayoutFourUpView


STORIES = (
    the_loaded_mri_and_its_contrast_are_already_chosen,
    a_wrong_guess_is_corrected_by_the_user_and_stays_corrected,
    a_click_makes_new_volumes_on_the_same_grid,
    a_synthetic_volume_is_offered_for_comparing_only_and_gone_with_its_message_when_the_scene_is_closed,
    another_run_replaces_the_result_or_adds_one,
    cancel_adds_nothing_and_the_next_run_works,
    removing_the_source_during_a_run_adds_nothing,
    closing_the_scene_during_a_run_adds_nothing,
    a_result_is_compared_with_its_source_and_the_layout_comes_back,
    the_comparison_opens_by_itself_when_the_user_wants_it,
    an_acquired_volume_brings_metrics,
    a_new_result_takes_the_place_of_the_old_one_in_an_open_comparison,
    a_result_is_removed_by_its_button,
    a_script_synthesizes_without_touching_the_views,
)
