"""Pictures of the panel in the host, in both themes and two widths, before, during and after a run.

python Testing/panel/screenshots.py --output-dir FOLDER
"""

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "Python"), str(HERE.parent / "scene")]

import slicer  # noqa: E402
from host import application, themes  # noqa: E402
from offscreen import OffscreenViews  # noqa: E402
from panel_story import Panel, add_head  # noqa: E402

from MissingModalitySynthLib.scene.compare import CompareView  # noqa: E402

WIDTHS = (320, 420)
VIEW = (300, 300)
SAMPLE = HERE.parents[1] / "Resources" / "SampleData"


def take(panel, folder, moment):
    """One picture for every theme and width."""
    top = panel.widget.parent
    for theme in themes.THEMES:
        themes.use(theme)
        for width in WIDTHS:
            panel.settle()
            top.resize(width, top.heightForWidth(width) if top.hasHeightForWidth() else top.sizeHint.height())
            panel.settle()
            themes.grab(top, width).save(str(folder / f"{moment}-{theme}-{width}.png"))


def tell_the_story(folder):
    """Every state of the panel."""
    panel = open_panel()
    take(panel, folder, "empty")
    add_head("MRHead T1", size=(96, 96, 96))
    panel.settle()
    panel.tick("T2", "FLAIR")
    take(panel, folder, "ready")
    panel.begin("T2", "FLAIR")
    panel.wait(lambda: panel.ui.progressBar.value > 40, "progress")
    take(panel, folder, "running")
    panel.finish()
    panel.ui.compareAcquiredSelector.setCurrentNode(add_head("MRHead T2", size=(96, 96, 96)))
    panel.click("startCompareButton")
    panel.wait(lambda: "PSNR" in panel.ui.metricsLabel.text, "the metrics")
    take(panel, folder, "compared")
    for name in ("inputs", "targets", "results", "compare"):
        getattr(panel.ui, f"{name}CollapsibleButton").collapsed = True
    for name in ("advanced", "installation"):
        getattr(panel.ui, f"{name}CollapsibleButton").collapsed = False
    panel.click("checkButton")
    take(panel, folder, "advanced")
    application.close(panel.widget)


def open_panel():
    widget = application.open_widget(application.load_module())
    widget.parent.show()
    widget.enter()
    panel = Panel(widget)
    panel.settle()
    return panel


def show_the_sample_case(folder):
    """The panel after a run on the sample case, and the comparison beside it."""
    from PIL import Image

    scene = slicer.mrmlScene
    t1 = load(scene, "vtkMRMLScalarVolumeNode", "vtkMRMLVolumeArchetypeStorageNode", "T1")
    lesions = load(scene, "vtkMRMLSegmentationNode", "vtkMRMLSegmentationStorageNode", "lesions.seg")
    t1.SetName("T1 (simulated case)")
    panel = open_panel()
    panel.ui.compareWhenDoneCheckBox.checked = False
    panel.begin("T2", "FLAIR")
    flair = panel.finish()[1]
    panel.ui.compareWhenDoneCheckBox.checked = True
    themes.use("light")
    panel.settle()
    themes.grab(panel.widget.parent, 360).save(str(folder / "panel.png"))

    views = OffscreenViews(slicer.app.applicationLogic(), size=VIEW)
    comparison = CompareView(scene, views.layout_node, views)
    rows = ("Axial", "Sagittal")
    lesions.CreateDefaultDisplayNodes()
    comparison.show(t1, flair, rows=rows, segmentations=[lesions])
    center_on(lesions, comparison, scene)
    picture = Image.new("RGB", (VIEW[0] * len(comparison.columns), VIEW[1] * len(rows)))
    for column, name in enumerate(comparison.columns):
        for row, view in enumerate(comparison.view_names(name)):
            picture.paste(Image.fromarray(views.screenshot(view)[..., :3]), (column * VIEW[0], row * VIEW[1]))
    picture.save(folder / "compare.png", optimize=True)
    comparison.hide()
    application.close(panel.widget)


def load(scene, kind, storage_kind, part):
    """A node from the sample case."""
    storage = scene.AddNewNodeByClass(storage_kind)
    storage.SetFileName(str(SAMPLE / f"MissingModalitySynth-simulated-{part}.nrrd"))
    node = scene.AddNewNodeByClass(kind)
    if not storage.ReadData(node):
        raise SystemExit(f"{storage.GetFileName()} cannot be read.")
    node.SetAndObserveStorageNodeID(storage.GetID())
    node.CreateDefaultDisplayNodes()
    return node


def center_on(segmentation, comparison, scene):
    """Bring the first segment into the slices, as a click in Slicer's segment list does."""
    segment = segmentation.GetSegmentation().GetNthSegmentID(0)
    center = segmentation.GetSegmentCenterRAS(segment)
    for column in comparison.columns:
        for name in comparison.view_names(column):
            scene.GetSingletonNode(name, "vtkMRMLSliceNode").JumpSliceByOffsetting(*center)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--output-dir", type=Path, help="folder of the pictures of every state")
    what.add_argument("--readme", type=Path, help="folder of panel.png and compare.png")
    chosen = parser.parse_args()
    folder = chosen.output_dir or chosen.readme
    folder.mkdir(parents=True, exist_ok=True)
    application.install()
    (tell_the_story if chosen.output_dir else show_the_sample_case)(folder)


if __name__ == "__main__":
    main()
