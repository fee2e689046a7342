"""One run at a time, from volume nodes to result nodes: starts the worker, follows it, and adds all results or none."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ..errors import (
    Cancelled,
    InputError,
    ModelPackageError,
    OutOfMemoryError,
    OutputError,
    SynthesisError,
    WorkerError,
)
from ..modality import canonical_name, source_name
from ..model_package import ModelPackage
from ..worker.client import WorkerClient
from ..worker.failures import Failure
from ..worker.jobs import START, Job, TargetResult
from .estimates import Estimate, MeasuredRuns, estimate, key_of
from .results import add_results
from .run_progress import RunProgress
from .segmentations import SegmentationTask
from .translation import _
from .volumes import volumes_of

if TYPE_CHECKING:
    import slicer

    from ..volume import Geometry, Volume

_ERRORS = {
    "bad_input": InputError,
    "damaged_model": ModelPackageError,
    "disk": OutputError,
    "diverged": SynthesisError,  # a DivergenceError has what only the worker's process knows
    "out_of_memory": OutOfMemoryError,
}


@dataclass(frozen=True)
class Task:
    """What is to be made from which nodes.

    Attributes:
        sources: acquired volume nodes of one scene, by modality; "other" is of unknown or of no listed contrast.
        targets: modalities to make.
        package: the model.
        method: one of the package's; if None its default, or the one that knows the sources' modalities.
        steps: the method's default if None.
        device: "auto", "cpu", "cuda:0" or "mps".
        samples, seed: as in :class:`~..request.Request`.
        reference: modality of the source on whose grid the results are; the first one if None.
        spacing: voxel size in mm of the results; the reference's grid if None.
        replace: whether earlier results of the same target, sources and method give way.
    """

    sources: Mapping[str, slicer.vtkMRMLScalarVolumeNode]
    targets: Sequence[str]
    package: ModelPackage
    method: str | None = None
    device: str = "auto"
    steps: int | None = None
    samples: int = 1
    seed: int = 0
    reference: str | None = None
    spacing: tuple[float, float, float] | None = None
    replace: bool = False

    @property
    def chosen_reference(self) -> str:
        return self.reference or next(iter(self.sources))

    @property
    def chosen_method(self) -> str:
        return self.method or self.package.method_for(self.sources)

    def volumes(self) -> dict[str, Volume]:
        """In the coordinates of the reference, see ``volumes_of``."""
        return volumes_of(self.sources, self.chosen_reference)

    def begin(self, client: WorkerClient, volumes: Mapping[str, Volume], listener: Any) -> None:
        client.synthesize(_job(self, volumes), listener)

    def add(self, scene: slicer.vtkMRMLScene, results: Mapping[str, TargetResult]) -> list[Any]:
        return add_results(scene, self.sources, self.chosen_reference, results, replace=self.replace)

    def told(self, time: str) -> str:
        return _("{made} synthesized in {time}.").format(made=", ".join(self.targets), time=time)


@dataclass(frozen=True)
class Message:
    """A sentence about the last run; ``problem`` if it did not end as wished."""

    text: str = ""
    problem: bool = False


@dataclass
class _Run:
    task: Task | SegmentationTask
    scene: slicer.vtkMRMLScene
    progress: RunProgress
    geometry: Geometry | None  # of the reference of a synthesis
    started: float
    computing: float | None = None  # when the engine began; before, the worker may have to start and load torch
    observers: list[int] = field(default_factory=list)
    stopping: str = ""  # why it is being stopped


class Session:
    """Runs tasks in a worker and puts what they make into the scene of their sources.

    Args:
        client: the worker's client; at most one run at a time.
        measured: where the cost of finished runs is remembered.
        clock: seconds that rise steadily.

    Attributes:
        on_change: called after anything a face could show has changed.
        message: about the last run.
        results: nodes that the last run added.
        error: the last run's error, None if it succeeded.
    """

    def __init__(
        self, client: WorkerClient, measured: MeasuredRuns, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.client = client
        self.measured = measured
        self.on_change: Callable[[], None] = lambda: None
        self.message = Message()
        self.results: list[Any] = []
        self.error: SynthesisError | None = None
        self._clock = clock
        self._run: _Run | None = None

    @property
    def running(self) -> bool:
        return self._run is not None

    @property
    def cancelling(self) -> bool:
        return self._run is not None and bool(self._run.stopping)

    @property
    def progress(self) -> RunProgress | None:
        return self._run.progress if self._run else None

    def start(self, task: Task | SegmentationTask) -> None:
        """Begin; :attr:`on_change` tells of all that follows.

        Raises:
            InputError, GeometryError: the volumes cannot be used, or not together.
            ModelPackageError: the package has no such method.
            OutputError: the temporary folder cannot be written.
            WorkerError: another run is under way.
        """
        if self.running:
            raise WorkerError(_("A run is under way: wait for its end, or cancel it."))
        if not task.sources:
            raise InputError(_("At least one source volume is needed."))
        scene, *others = {node.GetScene() for node in task.sources.values()}
        if scene is None or others:
            raise InputError(_("All source volumes must be in one scene."))
        if isinstance(task, Task):
            task = _canonical(task)
        volumes = task.volumes()
        geometry = volumes[task.chosen_reference].geometry if isinstance(task, Task) else None
        self.message, self.results, self.error = Message(), [], None
        self._run = _Run(task, scene, RunProgress(task.targets), geometry, self._clock())
        try:
            task.begin(self.client, volumes, self)
        except SynthesisError:
            self._run = None
            raise
        self._observe()
        self.on_change()

    def cancel(self) -> None:
        """Stop the run; nothing of it is kept."""
        self._stop(_("Cancelled; nothing was added."))

    def wait(self, pump: Callable[[], None]) -> list[Any]:
        """The nodes that the run adds, once it has ended.

        Args:
            pump: lets the worker's messages through; called again and again.

        Raises:
            SynthesisError: why there are none.
        """
        while self.running:
            pump()
        if self.error is not None:
            raise self.error
        return self.results

    def on_progress(self, stage: str, fraction: float, target: str | None, seconds_left: float | None) -> None:
        if self._run is not None:
            if self._run.computing is None and stage != START:
                self._run.computing = self._clock()
            self._run.progress.update(stage, fraction, target, seconds_left)
            self.on_change()

    def on_result(self, results: Mapping[str, TargetResult]) -> None:
        run = self._end()
        if run.stopping:  # it came through while the run was being stopped
            self._fail(Cancelled(run.stopping))
            return
        if isinstance(run.task, Task):
            self._remember(run, results)
        try:
            self.results = run.task.add(run.scene, results)
        except SynthesisError as error:
            self._fail(error)
            return
        text = run.task.told(duration(self._clock() - run.started))
        notices = dict.fromkeys(notice for result in results.values() for notice in result.notices)
        self.tell(Message(" ".join((text, *notices))))

    def on_failure(self, failure: Failure) -> None:
        run = self._end()
        error = Cancelled(run.stopping) if run.stopping else error_of(failure)
        self._fail(error)

    def on_cancelled(self) -> None:
        self._fail(Cancelled(self._end().stopping or _("Cancelled; nothing was added.")))

    def _remember(self, run: _Run, results: Mapping[str, TargetResult]) -> None:
        """Correct later estimates for the device that computed, which need not be the one that was asked for."""
        device = next(iter(results.values())).provenance.get("device", "cpu")
        cost = cost_of(run.task, run.geometry, device)
        began = run.started if run.computing is None else run.computing
        method = run.task.chosen_method
        self.measured.add(
            key_of(run.task.package, method, device),
            (self._clock() - began) / cost.seconds,
        )

    def _stop(self, why: str) -> None:
        if self._run is not None and not self._run.stopping:
            self._run.stopping = why
            self.client.cancel()
            self.on_change()

    def _fail(self, error: SynthesisError) -> None:
        self.error = error
        self.tell(Message(str(error), problem=not isinstance(error, Cancelled)))

    def tell(self, message: Message) -> None:
        """Let every face show a sentence."""
        self.message = message
        self.on_change()

    def _observe(self) -> None:
        run = self._run
        if run is None:  # it ended at once
            return

        def removed(_scene: Any, _event: str) -> None:
            gone = [node.GetName() for node in run.task.sources.values() if node.GetScene() is None]
            if gone:
                text = _("Stopped, as the volume '{name}' was removed; nothing was added.")
                self._stop(text.format(name=gone[0]))

        def closed(_scene: Any, _event: str) -> None:
            self._stop(_("Stopped, as the scene was closed; nothing was added."))

        events = {run.scene.StartCloseEvent: closed, run.scene.NodeRemovedEvent: removed}
        run.observers = [run.scene.AddObserver(event, call) for event, call in events.items()]

    def _end(self) -> _Run:
        run, self._run = self._run, None
        for tag in run.observers:
            run.scene.RemoveObserver(tag)
        return run


def device_of(client: WorkerClient, device: str) -> str:
    """The device that a request will most likely run on: "auto" is the first that works, as far as is known."""
    if device != "auto" or client.info is None:
        return "cpu" if device == "auto" else device
    return next((each.name for each in client.info.devices if each.works), "cpu")


def cost_of(task: Task, geometry: Geometry, device: str, measured: MeasuredRuns | None = None) -> Estimate:
    """Time and memory of a task on a grid."""
    return estimate(
        task.package,
        task.chosen_method,
        device,
        geometry,
        sources=len(task.sources),
        targets=len(task.targets),
        steps=task.steps,
        samples=task.samples,
        measured=measured,
    )


def duration(seconds: float) -> str:
    """A time in words that is no more exact than it is meant."""
    if seconds < 1:
        return _("less than 1 s")
    if seconds < 100:
        return _("{count} s").format(count=round(seconds) if seconds < 20 else 5 * round(seconds / 5))
    if seconds < 5400:
        return _("{count} min").format(count=round(seconds / 60))
    return _("{count} h").format(count=round(seconds / 3600))


def error_of(failure: Failure) -> SynthesisError:
    """What the worker reports, as the error that a script can catch."""
    return _ERRORS.get(failure.kind, WorkerError)(f"{failure.message} {failure.remedy}")


def _canonical(task: Task) -> Task:
    """The task with the names of its contrasts as the engine has them."""
    return replace(
        task,
        sources={source_name(modality): node for modality, node in task.sources.items()},
        targets=tuple(dict.fromkeys(canonical_name(target) for target in task.targets)),
        reference=task.reference and source_name(task.reference),
    )


def _job(task: Task, volumes: Mapping[str, Volume]) -> Job:
    return Job(
        sources=volumes,
        targets=task.targets,
        package=task.package.path,
        method=task.method,
        device=task.device,
        steps=task.steps,
        samples=task.samples,
        seed=task.seed,
        reference=task.reference,
        spacing=task.spacing,
    )
