"""Packages that the user installs are kept where each system keeps a user's data, without a library to ask."""

import sys
from pathlib import Path

import platformdirs.macos
import platformdirs.unix
import pytest

from MissingModalitySynthLib.model_package import user_folder

NAME = "MissingModalitySynth"


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path) -> Path:
    for name in ("MISSING_MODALITY_SYNTH_MODELS", "LOCALAPPDATA", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("data_home", [None, "/data"])
def test_on_linux_it_is_the_folder_of_platformdirs(data_home, monkeypatch):
    if data_home:
        monkeypatch.setenv("XDG_DATA_HOME", data_home)
    expected = platformdirs.unix.Unix(NAME, appauthor=False).user_data_path / "Models"
    monkeypatch.setattr(sys, "platform", "linux")
    assert user_folder() == expected


def test_on_macos_it_is_the_folder_of_platformdirs(monkeypatch):
    expected = platformdirs.macos.MacOS(NAME, appauthor=False).user_data_path / "Models"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert user_folder() == expected


@pytest.mark.parametrize("local", [None, "/local"])
def test_on_windows_it_is_in_the_local_data_of_applications(local, monkeypatch, home):
    if local:
        monkeypatch.setenv("LOCALAPPDATA", local)
    monkeypatch.setattr(sys, "platform", "win32")
    assert user_folder() == Path(local or home / "AppData" / "Local") / NAME / "Models"
