"""Scans in closed form and data sets in the layouts of the field, for the tests of training."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import training
from MissingModalitySynthLib.volume import Geometry, Volume
from MissingModalitySynthLib.volume_io import write_volume
from training.__main__ import main

SMOKE = Path(training.__file__).parent / "configs" / "smoke.yaml"

# Intensities of brain, fluid and nuclei; the scalp has that of the brain.
TISSUES = {"T1": (700, 150, 900), "T1ce": (700, 150, 1000), "T2": (400, 1000, 250), "FLAIR": (600, 90, 500)}
TISSUES["PD"] = (700, 900, 600)
BOXES = (
    ((-5, 4, 6), (4, 9, 5), 1),
    ((7, -6, -4), (5, 4, 6), 2),
    ((-9, -12, 2), (4, 5, 4), 2),
    ((4, 14, -8), (6, 3, 4), 1),
)
GRID = Geometry((24, 28, 24), (2.5, 2.5, 2.5), (-28.0, -34.0, -29.0))


@pytest.fixture(scope="session")
def same_tensors():
    """Function: two safetensors files -> nothing, when they hold the same tensors to the bit."""

    def check(*paths):
        one, other = (load_file(path) for path in paths)
        assert one.keys() == other.keys()
        for name, tensor in one.items():
            assert torch.equal(tensor, other[name]), name

    return check


def _step(distance_mm, width_mm=1.0):
    return 1 / (1 + np.exp(np.clip(distance_mm / width_mm, -50, 50)))


@pytest.fixture(scope="session")
def scan():
    """Function: contrast, geometry, optional rotation and shift of the head -> a head of 22 x 30 x 26 mm half axes."""

    def sample(contrast="T1", geometry=GRID, rotation=None, shift=(0, 0, 0)):
        index = np.stack(np.meshgrid(*map(np.arange, geometry.size), indexing="ij"), axis=-1)
        world = geometry.index_to_world(index)
        if rotation is not None:  # where the tissue, now at `world`, has come from
            world = (world - shift) @ rotation
        values = TISSUES[contrast]
        radius = np.linalg.norm(world / (22.0, 30.0, 26.0), axis=-1)
        image = values[0] * (1 + 0.1 * np.sin(world @ (0.12, 0.09, 0.07)))
        for centre, half, tissue in BOXES:
            weight = _step((np.linalg.norm((world - centre) / half, axis=-1) - 1) * min(half))
            image = image + weight * (values[tissue] - image)
        return Volume((image * _step((radius - 1) * 22)).astype(np.float32), geometry, contrast)

    return sample


@pytest.fixture
def data_set(tmp_path, scan):
    """Function: names of files by contrast ("segmentation" is a box of 1) -> folder that holds them."""

    def write(files, folder="data", geometry=GRID):
        root = tmp_path / folder
        for name, contrast in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            if contrast == "segmentation":
                array = np.zeros(geometry.size, np.float32)
                array[10:14, 8:15, 11:13] = 1
                volume = Volume(array, geometry)
            else:
                volume = scan(contrast, geometry)
            write_volume(volume, root / name)
        return root

    return write


@pytest.fixture(scope="session")
def zero_shot_run(tmp_path_factory):
    """Folder of a run of the stages of zero-shot translation in miniature."""
    run = tmp_path_factory.mktemp("runs") / "zero-shot"
    for stage in ("segmenter", "midiffusion"):
        assert main([stage, "--config", str(SMOKE), "--run", str(run), "machine.tensorboard=false"]) == 0
    return run


@pytest.fixture
def said():
    """A `report` that remembers: `said.report`, `said.lines`."""
    lines = []
    return SimpleNamespace(report=lines.append, lines=lines)
