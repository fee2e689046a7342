"""What the module needs of Slicer's application, and what takes its place in PythonSlicer without one."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any
from weakref import WeakSet

import slicer

from ..model_package import ModelPackage
from ..scene import dependencies
from ..scene.estimates import MeasuredRuns
from ..scene.session import Session
from ..scene.volumes import dicom_tags_of
from ..worker.client import WorkerClient
from ..worker.processes import worker_command, worker_environment
from ..worker.transports import QProcessTransport, SubprocessTransport, Transport


def has_application() -> bool:
    """Whether this is Slicer, with Qt's event loop, and not a plain Python."""
    return hasattr(slicer, "app")


class _Settings(dict):
    """Slicer's settings, as far as a mapping of texts is needed."""

    def get(self, key: str, default: str | None = None) -> str | None:
        return slicer.app.userSettings().value(key, default)

    def __setitem__(self, key: str, value: str) -> None:
        slicer.app.userSettings().setValue(key, value)


def settings() -> MutableMapping[str, str]:
    """Where measured runs are remembered; without an application they are forgotten."""
    return _Settings() if has_application() else {}


def transport() -> Transport:
    """A worker's process: of Qt in the application, of Python elsewhere."""
    if not has_application():
        return SubprocessTransport(worker_command(), worker_environment())
    import qt

    return QProcessTransport(qt, worker_command(), worker_environment(slicer.util.startupEnvironment()))


class SharedWorker:
    """The one worker process of the application, for the panel and all scripts; it ends with the application."""

    def __init__(self) -> None:
        self._client: WorkerClient | None = None
        self._sessions: WeakSet[Session] = WeakSet()

    @property
    def client(self) -> WorkerClient:
        """The worker's client; the process is started when it is needed."""
        if self._client is None:
            self._client = WorkerClient(transport, log=logging.getLogger(__name__).info, changed=self._tell)
            if has_application():
                slicer.app.connect("aboutToQuit()", self.shutdown)
        return self._client

    def session(self) -> Session:
        """A session of its own for a face."""
        session = Session(self.client, MeasuredRuns(settings()))
        self._sessions.add(session)
        return session

    def warm_up(self, package: ModelPackage, method: str, requirements: Path) -> None:
        """Let the process load PyTorch and the model meanwhile, so that a run starts at once; nothing is installed."""
        try:
            dependencies.ensure(requirements, packaging=None, torch_logic=None, testing=True)
        except dependencies.DependencyError:
            return  # the first run offers to install what is lacking
        if self.client.state in ("stopped", "idle"):
            import SimpleITK  # noqa: F401  needed by every run; its import would be felt after the click

            self.client.start(package.path, method)

    def pump(self) -> None:
        """Let messages through, for a script that waits."""
        if has_application():
            slicer.app.processEvents()
            time.sleep(0.005)
        self.client.poll(0.05)

    def shutdown(self) -> None:
        """End the process; the next run would start another."""
        if self._client is not None:
            self._client.shutdown()

    def _tell(self) -> None:
        for session in list(self._sessions):
            session.on_change()


worker = SharedWorker()


def ensure_dependencies(requirements: Path) -> None:
    """Install what is missing, after asking the user; PythonSlicer without an application has to have it all.

    Raises:
        SynthesisError: it was declined or failed.
    """
    if has_application():
        import slicer.packaging

        dependencies.ensure(
            requirements,
            packaging=slicer.packaging,
            torch_logic=_torch_logic(),
            confirm=slicer.util.confirmYesNoDisplay,
            testing=slicer.app.testingEnabled(),
        )


def check_installation(requirements: Path) -> tuple[dependencies.Row, ...]:
    """Rows of the check page, see ``dependencies.check``."""
    return dependencies.check(requirements, torch_extension=_torch_logic() is not None, info=worker.client.info)


def dicom_tags(node: Any) -> Mapping[str, str]:
    """The DICOM attributes of a volume that was loaded from Slicer's database."""
    return dicom_tags_of(node, getattr(slicer, "dicomDatabase", None))


def _torch_logic() -> type | None:
    """The installer of the PyTorch extension, None without the extension."""
    try:
        import PyTorchUtils
    except ModuleNotFoundError:
        return None
    return PyTorchUtils.PyTorchUtilsLogic
