"""The story of a volume whose contrast is none of the list, at the panel."""

import shutil
import sys

import pytest

from MissingModalitySynthLib.modality import MODALITIES
from MissingModalitySynthLib.scene.choices import OTHER_CHOICE

story = sys.modules["panel_story"]


@pytest.fixture
def installed(tmp_path, monkeypatch, zero_shot_packages):
    """A package that makes T2 and FLAIR from T1 and T2, and T1 and PD from any contrast, is installed as "both"."""
    shutil.copytree(zero_shot_packages.both, tmp_path / "both")
    monkeypatch.setenv("MISSING_MODALITY_SYNTH_MODELS", str(tmp_path))


def test_a_volume_of_another_contrast_is_offered_what_is_zero_shot_and_made_from(installed, panel):
    source, ui = story.add_head("scan 7"), panel.ui
    panel.settle()
    assert ui.modalityComboBox1.currentText == "?" and not ui.applyButton.enabled
    ui.modalityComboBox1.setCurrentText(OTHER_CHOICE)
    panel.tick("T1", "T2")
    panel.widget.context.parameters.package = "both"
    panel.settle()
    assert [name for name in MODALITIES if getattr(ui, f"target{name}CheckBox").visible] == ["T1", "PD"]
    assert [ui.methodComboBox.itemText(n) for n in range(ui.methodComboBox.count)] == ["MIDiffusion (zero-shot)"]
    assert "contrast like that of 'scan 7'" in ui.offerLabel.text and ui.offerLabel.visible
    panel.click("applyButton")
    (made,) = panel.finish()
    assert made.GetName() == "T1 (synthetic from unlisted contrast)"
    assert made.GetNodeReference("MissingModalitySynth.source.other") is source
    ui.modalityComboBox1.setCurrentText("T1")
    panel.settle()
    assert not ui.offerLabel.visible and ui.methodComboBox.count == 2
    panel.click("closeCompareButton")
