"""The Slicer module: the widget only binds, every decision is in ``MissingModalitySynthLib/scene``."""

from functools import partial
from pathlib import Path
from typing import Annotated

import slicer
import vtk
from slicer import vtkMRMLScalarVolumeNode, vtkMRMLSegmentationNode
from slicer.util import VTKObservationMixin

from MissingModalitySynthLib.scene import choices, panel
from MissingModalitySynthLib.scene.compare_choices import segmenting_package
from MissingModalitySynthLib.scene.marks import SyntheticMarks
from MissingModalitySynthLib.scene.saving import SavedProvenance
from MissingModalitySynthLib.scene.segmentations import SegmentationTask
from MissingModalitySynthLib.scene.session import Message, Task
from MissingModalitySynthLib.scene.slicer_views import SlicerViews
from MissingModalitySynthLib.widgets import application
from MissingModalitySynthLib.widgets.compare_section import CompareSection
from MissingModalitySynthLib.widgets.context import Context
from MissingModalitySynthLib.widgets.installation_section import InstallationSection
from MissingModalitySynthLib.widgets.results_section import ResultsSection
from MissingModalitySynthLib.widgets.run_section import RunSection

try:
    from slicer.i18n import tr as _
    from slicer.i18n import translate
    from slicer.parameterNodeWrapper import Choice, WithinRange, parameterNodeWrapper
    from slicer.ScriptedLoadableModule import (
        ScriptedLoadableModule,
        ScriptedLoadableModuleLogic,
        ScriptedLoadableModuleWidget,
    )
except (ImportError, AttributeError):  # in PythonSlicer qt is missing or empty: the logic alone works there

    class ScriptedLoadableModule:
        pass

    ScriptedLoadableModuleLogic = ScriptedLoadableModuleWidget = ScriptedLoadableModule
    _ = parameterNodeWrapper = lambda unchanged: unchanged
    Choice = WithinRange = lambda *arguments: arguments


class MissingModalitySynth(ScriptedLoadableModule):
    """What Slicer shows of the module before it is opened."""

    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        parent.title = _("Missing Modality Synth")
        parent.categories = [translate("qSlicerAbstractCoreModule", "Image Synthesis")]
        parent.dependencies = []
        parent.contributors = ["MissingModalitySynth developers"]
        parent.helpText = _(
            "Synthesizes missing MRI contrasts (T1, T1ce, T2, FLAIR, PD) from the acquired ones, on the same grid. "
            "Choose the acquired volumes, tick what is missing, press Synthesize, then compare. "
            "Synthetic images are not for diagnosis: they show what the model expects, not what was measured."
        )
        parent.acknowledgementText = _(
            "Implements ALDM (Kim and Park, WACV 2024) and mutual-information guided diffusion with MONAI and PyTorch."
        )
        slicer.app.connect("startupCompleted()", self.registerSampleData)

    def registerSampleData(self):
        """Offer the simulated case in Sample Data."""
        import SampleData

        from MissingModalitySynthLib.scene import sample_data

        icons = Path(self.parent.path).parent / "Resources" / "Icons"
        sample_data.register(SampleData.SampleDataLogic, icons)


@parameterNodeWrapper
class MissingModalitySynthParameterNode:
    """The user's choices; see ``panel.Choices``."""

    source1: vtkMRMLScalarVolumeNode
    source2: vtkMRMLScalarVolumeNode
    source3: vtkMRMLScalarVolumeNode
    source4: vtkMRMLScalarVolumeNode
    modality1: Annotated[str, Choice(choices.MODALITY_CHOICES)] = choices.UNKNOWN
    modality2: Annotated[str, Choice(choices.MODALITY_CHOICES)] = choices.UNKNOWN
    modality3: Annotated[str, Choice(choices.MODALITY_CHOICES)] = choices.UNKNOWN
    modality4: Annotated[str, Choice(choices.MODALITY_CHOICES)] = choices.UNKNOWN
    targetT1: bool = False
    targetT1ce: bool = False
    targetT2: bool = False
    targetFLAIR: bool = False
    targetPD: bool = False
    package: str = ""
    method: str = ""
    device: str = "auto"
    reference: str = ""
    steps: Annotated[int, WithinRange(0, 1000)] = 0
    samples: Annotated[int, WithinRange(1, 100)] = 1
    seed: Annotated[int, WithinRange(0, 2**31 - 1)] = 0
    spacing: Annotated[float, WithinRange(0.0, 10.0)] = 0.0
    replace: bool = True
    compareWhenDone: bool = True
    compareSource: vtkMRMLScalarVolumeNode
    compareSynthetic: vtkMRMLScalarVolumeNode
    compareAcquired: vtkMRMLScalarVolumeNode
    compareRows: Annotated[str, Choice(choices.PLANE_CHOICES)] = choices.PLANE_CHOICES[0]
    segmentation: vtkMRMLSegmentationNode
    otherSegmentation: vtkMRMLSegmentationNode


class MissingModalitySynthLogic(ScriptedLoadableModuleLogic):
    """Synthesis from Slicer's Python console, from the panel, and from PythonSlicer without a window.

    All instances share one worker process, which ends with the application.
    """

    def __init__(self):
        ScriptedLoadableModuleLogic.__init__(self)
        self.session = application.worker.session()
        self.requirements = Path(__file__).parent / "Resources" / "requirements.txt"

    def getParameterNode(self):
        return MissingModalitySynthParameterNode(ScriptedLoadableModuleLogic.getParameterNode(self))

    def start(self, task):
        """Begin a run; ``session.on_change`` tells of all that follows.

        Raises:
            SynthesisError: what is needed is not installed, or see ``Session.start``.
        """
        application.ensure_dependencies(self.requirements)
        self.session.start(task)

    def synthesize(self, sources, targets, *, package=None, replace=False, wait=True, **options):
        """Synthesize missing contrasts. No view is changed.

        Args:
            sources: acquired volume nodes by contrast, such as {"T1": node}; "other" is one that is not listed.
            targets: contrasts to make, such as ["FLAIR", "T2"].
            package: name or folder of a model package; the bundled one if None.
            replace: whether earlier results of the same contrasts, sources and method give way.
            wait: whether to return when it is done. If not, follow ``session``.
            options: method, device, steps, samples, seed, reference and spacing, see ``session.Task``.

        Returns:
            The new volume nodes in the order of the targets; None without ``wait``.

        Raises:
            SynthesisError: why there are none.
        """
        package = choices.package_named(package)
        self.start(Task(sources, targets, package, replace=replace, **options))
        return self.session.wait(application.worker.pump) if wait else None

    def segment(self, volumes, *, package=None, device="auto", replace=False, wait=True):
        """Segment the tissues of acquired or synthetic volumes. No view is changed.

        Args:
            volumes: volume nodes.
            package: name or folder of a model package with a segmenter; the first one that has one if None.
            device: "auto", "cpu", "cuda:0" or "mps".
            replace: whether earlier segmentations of the same volumes give way.
            wait: whether to return when it is done. If not, follow ``session``.

        Returns:
            The new segmentation nodes in the order of the volumes; None without ``wait``.

        Raises:
            SynthesisError: why there are none.
        """
        sources = {str(number): node for number, node in enumerate(volumes, 1)}
        if package is None:
            found = segmenting_package(choices.Choices(), choices.available_packages())
        else:
            found = choices.package_named(package)
        self.start(SegmentationTask(sources, found, device, replace))
        return self.session.wait(application.worker.pump) if wait else None

    @staticmethod
    def shutdownWorker():
        """End the worker's process and free its memory; the next run starts another."""
        application.worker.shutdown()


class MissingModalitySynthWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    """Connects the panel's sections with the scene; choices are in the parameter node."""

    def __init__(self, parent=None):
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
        self._known, self._guiTag = {}, None
        self._offerDefault, self._settling = True, False

    def setup(self):
        ScriptedLoadableModuleWidget.setup(self)
        import qt

        scene = slicer.mrmlScene
        uiWidget = slicer.util.loadUI(self.resourcePath("UI/MissingModalitySynth.ui"))
        self.layout.addWidget(uiWidget)
        self.ui = slicer.util.childWidgetVariables(uiWidget)
        uiWidget.setMRMLScene(scene)
        self.logic = MissingModalitySynthLogic()
        self.logic.session.on_change = self.scheduleRender
        self.context = Context(self.logic, choices.available_packages(), partial(qt.QTimer.singleShot, 50))
        self.compareSection = CompareSection(self.ui, self.context)
        self.runSection = RunSection(self.ui, self.context, self.onMade)
        self.resultsSection = ResultsSection(self.ui, self.context, self.compareSection.compare)
        self.installationSection = InstallationSection(self.ui, self.context)
        self.keepers = (SyntheticMarks(scene, SlicerViews()), SavedProvenance(scene))
        for keeper in self.keepers:
            keeper.start()
        # Several changes at once are shown once, as soon as Qt has nothing more urgent to do.
        self._timer = qt.QTimer()
        self._timer.setSingleShot(True)
        self._timer.setInterval(0)
        self._timer.timeout.connect(self.render)
        self.addObserver(scene, scene.StartCloseEvent, self.onSceneStartClose)
        self.addObserver(scene, scene.EndCloseEvent, self.onSceneEndClose)
        for event in (scene.NodeAddedEvent, scene.NodeRemovedEvent, scene.EndImportEvent):
            self.addObserver(scene, event, self.onNodesChanged)
        self.initializeParameterNode()
        self.render()

    def cleanup(self):
        """The module is unloaded or reloaded, or Slicer ends."""
        self._timer.stop()
        self._disconnectParameterNode()
        self.removeObservers()
        self.logic.session.on_change = lambda: None
        self.compareSection.close()
        for keeper in self.keepers:
            keeper.stop()
        application.worker.shutdown()

    def enter(self):
        """The module is opened: choose what is likely, and let the worker start meanwhile."""
        import qt

        self.context.packages = choices.available_packages()
        self.initializeParameterNode()
        self.render()
        qt.QTimer.singleShot(0, self.warmUp)

    def exit(self):
        """A run, its progress and a comparison go on while another module is open."""

    def warmUp(self):
        if self.context.parameters is None:  # unloaded meanwhile
            return
        found = choices.chosen_package(self.context.choices, self.context.packages)
        if found is not None and found.package is not None:
            application.worker.warm_up(found.package, self.context.view.method, self.logic.requirements)

    def onSceneStartClose(self, caller, event):
        self._disconnectParameterNode()

    def onSceneEndClose(self, caller, event):
        self.logic.session.tell(Message())  # what it tells of is gone
        self.initializeParameterNode()
        self.onNodesChanged()

    def onNodesChanged(self, caller=None, event=None):
        self._offerDefault = True
        self.scheduleRender()

    def initializeParameterNode(self):
        """Connect the scene's parameter node; a scene that was loaded brings its own choices."""
        parameters = self.logic.getParameterNode()
        current = self.context.parameters
        if current is not None and parameters.parameterNode is current.parameterNode:
            return
        self._disconnectParameterNode()
        self.context.parameters, self._known = parameters, {}
        self._guiTag = parameters.connectGui(self.ui)
        self.addObserver(parameters.parameterNode, vtk.vtkCommand.ModifiedEvent, self.onChoicesChanged)
        self.onChoicesChanged()

    def _disconnectParameterNode(self):
        parameters = self.context.parameters
        if parameters is not None:
            parameters.disconnectGui(self._guiTag)
            self.removeObserver(parameters.parameterNode, vtk.vtkCommand.ModifiedEvent, self.onChoicesChanged)
            self.context.parameters = None

    def onChoicesChanged(self, caller=None, event=None):
        if self._settling:
            return
        self._settling = True
        try:
            self._known = choices.settle(self.context.parameters, self._known, application.dicom_tags)
        finally:
            self._settling = False
        self.scheduleRender()

    def onMade(self, nodes):
        if self.context.parameters.compareWhenDone and slicer.app.layoutManager() is not None:
            self.compareSection.compare(nodes[0])
        else:
            self.compareSection.replaced(nodes)

    def scheduleRender(self, *_):
        self._timer.start()

    def render(self):
        """Show the state as it is now."""
        if self.context.parameters is None:  # the scene is being closed
            return
        if self._offerDefault:
            self._offerDefault = False
            with self.context.problems():
                choices.recognise_synthetic(slicer.mrmlScene)
            choices.offer_default(slicer.mrmlScene, self.context.parameters, application.dicom_tags)
        before, context = self.context.view, self.context
        view = panel.view_of(slicer.mrmlScene, context.choices, context.packages, self.logic.session)
        context.view = view
        self.resultsSection.show(view, before)
        self.runSection.show(view, before)
        self.compareSection.refresh()
