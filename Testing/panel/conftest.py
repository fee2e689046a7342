"""The host, the module in it, and the open panel."""

import importlib.util
import os
import sys
from pathlib import Path

import pytest

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
HERE = Path(__file__).parent


def _package(name, folder):
    """A package by its folder: tests are imported without changing sys.path."""
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _module(name, file):
    spec = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


_package("panel_host", HERE / "host")
story = _module("panel_story", HERE.parent / "Python" / "panel_story.py")


@pytest.fixture(scope="session")
def application():
    """The host's application with one scene, which every test empties, as in Slicer."""
    from panel_host import application

    return application.install()


@pytest.fixture(scope="session")
def module(application):
    """The module's file, imported; its worker stays warm from test to test."""
    from panel_host.application import close, load_module, open_widget

    loaded = load_module()
    yield loaded
    close(open_widget(loaded))


@pytest.fixture
def panel(application, module, monkeypatch):
    """The open panel over an empty scene; an exception in a slot, which Qt only prints, fails the test."""
    import slicer
    from panel_host.application import open_widget

    from MissingModalitySynthLib.widgets.application import worker

    raised = []
    monkeypatch.setattr(sys, "excepthook", lambda kind, error, trace: raised.append(error))
    slicer.mrmlScene.Clear(0)
    widget = open_widget(module)
    widget.parent.show()
    widget.enter()
    opened = story.Panel(widget)
    opened.settle()
    yield opened
    if opened.logic.session.running:
        opened.logic.session.cancel()
        opened.wait(lambda: not opened.logic.session.running, "the end of a run that a test left behind")
    monkeypatch.setattr(worker, "shutdown", lambda: None)
    widget.cleanup()
    widget.parent.deleteLater()
    if raised:
        raise raised[0]
