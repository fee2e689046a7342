"""Runs inside Slicer: a real synthesis, the real panel, the real installers and Sample Data.

ctest runs it where the extension is built for Slicer; in a running Slicer, with this folder in ``sys.path``:
``slicer.testing.runUnitTest([], "MissingModalitySynthInSlicerTest")``.
"""

import inspect
import unittest
from pathlib import Path

import panel_story
import slicer

SAMPLE_NAME = "MissingModalitySynthSimulatedT1"


def requirements_file():
    return Path(slicer.modules.missingmodalitysynth.path).parent / "Resources" / "requirements.txt"


def lacking():
    """Names of the packages without which nothing can be synthesized."""
    from MissingModalitySynthLib.scene import dependencies

    rows = dependencies.check(requirements_file(), torch_extension=True, info=None)
    return [row.name for row in rows[1:-1] if row.state != "present"]


class InstallersTest(unittest.TestCase):
    """What the extension calls is there in this version of Slicer."""

    def test_pip_ensure_takes_what_it_is_given(self):
        import slicer.packaging

        self.assertLessEqual(
            {"constraints", "requester"}, set(inspect.signature(slicer.packaging.pip_ensure).parameters)
        )
        requirements = slicer.packaging.load_requirements(requirements_file())
        self.assertIn("monai", [each.name for each in requirements])
        self.assertFalse(slicer.packaging.isPipInstallInProgress())

    def test_the_pytorch_extension_takes_what_it_is_given(self):
        try:
            import PyTorchUtils
        except ModuleNotFoundError:
            self.skipTest("the PyTorch extension is not installed")
        parameters = inspect.signature(PyTorchUtils.PyTorchUtilsLogic.installTorch).parameters
        self.assertLessEqual({"askConfirmation", "torchVersionRequirement"}, set(parameters))

    def test_nothing_is_installed_while_testing(self):
        from MissingModalitySynthLib.scene import dependencies

        if not lacking():
            self.skipTest("nothing is lacking")
        with self.assertRaises(dependencies.DependencyError):
            dependencies.ensure(requirements_file(), packaging=None, torch_logic=None, testing=True)


class SampleDataTest(unittest.TestCase):
    def setUp(self):
        slicer.mrmlScene.Clear(0)

    def load(self):
        import SampleData

        # With startup over for long, the module has registered its case.
        return SampleData.SampleDataLogic().downloadSamples(SAMPLE_NAME)

    def test_the_case_loads_from_the_extension_without_network(self):
        volume, segmentation = self.load()
        self.assertEqual(volume.GetImageData().GetDimensions(), (160, 192, 160))
        self.assertEqual(segmentation.GetSegmentation().GetNthSegment(0).GetName(), "Lesions")

    def test_a_file_that_was_damaged_in_the_cache_is_replaced(self):
        cached = Path(slicer.mrmlScene.GetCacheManager().GetRemoteCacheDirectory()) / (
            "MissingModalitySynth-simulated-T1.nrrd"
        )
        self.load()
        content = cached.read_bytes()
        cached.write_bytes(content[: len(content) // 2])
        slicer.mrmlScene.Clear(0)
        self.load()
        self.assertEqual(cached.read_bytes(), content)

    def test_the_case_is_synthesized_on_its_own_grid_by_script(self):
        if lacking():
            self.skipTest(f"not installed: {', '.join(lacking())}")
        from MissingModalitySynth import MissingModalitySynthLogic

        volume, _segmentation = self.load()
        (made,) = MissingModalitySynthLogic().synthesize({"T1": volume}, ["FLAIR"])
        self.assertEqual(made.GetImageData().GetDimensions(), volume.GetImageData().GetDimensions())
        self.assertEqual(made.GetOrigin(), volume.GetOrigin())
        self.assertGreater(slicer.util.arrayFromVolume(made).max(), 0)
        self.assertEqual(made.GetAttribute("MissingModalitySynth.synthetic"), "1")


class PanelTest(unittest.TestCase):
    """The stories of ``panel_story``, in the module's own panel."""

    def setUp(self):
        if lacking():
            self.skipTest(f"not installed: {', '.join(lacking())}")
        slicer.mrmlScene.Clear(0)
        slicer.util.selectModule("MissingModalitySynth")
        slicer.app.processEvents()

    def panel(self):
        widget = slicer.util.getModuleWidget("MissingModalitySynth")
        panel = panel_story.Panel(widget)
        panel.settle()
        return panel


def _test_of(story):
    def test(self):
        story(self.panel())

    return test


for _story in panel_story.STORIES:
    setattr(PanelTest, f"test_{_story.__name__}", _test_of(_story))
