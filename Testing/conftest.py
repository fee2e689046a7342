"""Fixtures that all tests share."""

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

MODALITIES = ("T1", "T2", "FLAIR")
METADATA = {
    "version": "0.0.1",
    "changelog": {"0.0.1": "first"},
    "name": "A tiny model with random weights",
    "task": "synthesis",
    "description": "For tests.",
    "authors": "The makers",
    "copyright": "The makers",
    "license": "Apache-2.0",
    "intended_use": "Tests only.",
    "data_source": "None.",
    "network_data_format": {"inputs": {}, "outputs": {}},
    "sources": ["T1", "T2"],
    "targets": ["T2", "FLAIR"],
    "spacing_mm": [2, 2, 2],
    "intensity_range": [-1, 1],
    "percentiles": [0.5, 99.5],
}


@pytest.fixture(scope="module")
def one_thread():
    """For networks this small, threads that wait for each other take longer than the work."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def real_data():
    """The folder of real scans for development; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("MMS_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("no real scans: set MMS_DATA to their folder")
    return folder


@pytest.fixture(scope="session")
def tiny_package(tmp_path_factory) -> Path:
    """Folder of a package named "tiny" with the real networks in miniature and random weights.

    From T1 and T2 to T2 and FLAIR, by "aldm" (a noisy bridge, so that samples differ) and "regression".
    """
    import torch

    from MissingModalitySynthLib.package_store import write_package
    from MissingModalitySynthLib.translators import METHODS

    unet = {"channels": [8, 8], "attention": [False, False], "num_head_channels": 4, "norm_num_groups": 4}
    stage = {"modalities": list(MODALITIES), "first_stage": {"kind": "haar", "levels": 1}}
    spade = {"stem": 8, "residual": [8], "spade": [8], "hidden": 4}
    methods = {
        "aldm": stage | {"spade": spade, "denoiser": unet, "sigma": 0.5},
        "regression": stage | {"unet": {"features": [16] * 6}},
    }
    torch.manual_seed(0)
    networks = {name: METHODS[name](**options) for name, options in methods.items()}
    for parameter in networks["aldm"].denoiser.parameters():  # MONAI starts its last layer at 0: nothing would happen
        torch.nn.init.normal_(parameter, std=0.1)
    package = write_package(
        tmp_path_factory.mktemp("models") / "tiny",
        metadata=METADATA,
        networks={"default_method": "aldm", "methods": methods},
        tensors={name: network.state_dict() for name, network in networks.items()},
        model_card="# Tiny\n",
        licence="Apache-2.0\n",
    )
    return package.path


@pytest.fixture(scope="session")
def zero_shot_packages(tmp_path_factory) -> SimpleNamespace:
    """Folders of two packages with random weights: ``both`` makes T2 and FLAIR from T1 and T2 by "regression", and T1
    and PD from any contrast by "midiffusion"; ``alone``, trained on T1 alone, has the latter for T1 and nothing else.
    """
    import torch

    from MissingModalitySynthLib.package_store import write_package
    from MissingModalitySynthLib.translators import METHODS

    stage, unet = {"first_stage": {"kind": "haar", "levels": 1}}, {"unet": {"features": [16] * 6}}
    guidance = {"guidance": 0.05, "guidance_range": [0.2, 0.8], "bins": 8}
    regression = stage | unet | {"modalities": list(MODALITIES)}

    def write(name, targets, paired, **methods):
        unets = {"unet": {"features": [16] * 6, "tissues": 16}}
        methods |= {"midiffusion": stage | unets | guidance | {"modalities": targets, "steps": 2}}
        torch.manual_seed(0)
        networks = {method: METHODS[method](**options) for method, options in methods.items()}
        return write_package(
            tmp_path_factory.mktemp("models") / name,
            metadata=METADATA | paired | {"name": f"Zero-shot, {name}", "zero_shot": {"targets": targets}},
            networks={"default_method": next(iter(methods)), "methods": methods},
            tensors={method: network.state_dict() for method, network in networks.items()},
            model_card="# Tiny\n",
            licence="Apache-2.0\n",
        ).path

    return SimpleNamespace(
        both=write("both", ["T1", "PD"], {}, regression=regression),
        alone=write("alone", ["T1"], {"sources": [], "targets": []}),
    )


@pytest.fixture
def packages(tmp_path_factory, monkeypatch, tiny_package) -> SimpleNamespace:
    """The tiny package is bundled as "micro", the default; the user's folder is empty."""
    from MissingModalitySynthLib import model_package

    folders = tmp_path_factory.mktemp("packages")
    shutil.copytree(tiny_package, folders / "bundled" / "micro")
    monkeypatch.setattr(model_package, "bundled_folder", lambda: folders / "bundled")
    monkeypatch.setenv("MISSING_MODALITY_SYNTH_MODELS", str(folders / "user"))
    return SimpleNamespace(micro=folders / "bundled" / "micro", user=folders / "user")


@pytest.fixture(scope="session")
def scans(tmp_path_factory, smooth_head) -> SimpleNamespace:
    """A T1, a T2 of the same head on an oblique grid, and a T2 far away."""
    from MissingModalitySynthLib.volume import Geometry, Volume
    from MissingModalitySynthLib.volume_io import write_volume

    folder = tmp_path_factory.mktemp("scans of Zoë")
    grid = Geometry((30, 34, 32), (2.0, 2.0, 2.1), (-30.0, -34.0, -33.0))
    cosines = ((0.96, -0.28, 0), (0.28, 0.96, 0), (0, 0, 1))
    oblique = Geometry((40, 36, 30), (1.6, 2.0, 2.0), (-26, -40, -28), cosines)
    away = Geometry(grid.size, grid.spacing, (500.0, 0.0, 0.0))
    write_volume(smooth_head(grid), folder / "patient7_t1.nii.gz")
    write_volume(smooth_head(oblique), folder / "patient7_t2.mha")
    write_volume(Volume(smooth_head(grid).array, away), folder / "far_t2.nii.gz")
    return SimpleNamespace(
        folder=folder,
        grid=grid,
        t1=str(folder / "patient7_t1.nii.gz"),
        t2=str(folder / "patient7_t2.mha"),
        far=str(folder / "far_t2.nii.gz"),
    )


@pytest.fixture
def run(capsys):
    """Function: arguments -> exit code, stdout, stderr of a run in this process."""

    from MissingModalitySynthLib.cli import main

    def call(*arguments):
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return SimpleNamespace(code=code, **dict(zip(("out", "err"), capsys.readouterr(), strict=True)))

    return call


@pytest.fixture(scope="session")
def segmenting_package(tmp_path_factory, tiny_package) -> Path:
    """Folder of the tiny package with a segmenter of random weights, named "segmenting"."""
    import torch

    from MissingModalitySynthLib.model_package import load_package
    from MissingModalitySynthLib.networks.segmenter import Segmenter
    from MissingModalitySynthLib.package_store import write_package
    from MissingModalitySynthLib.segmentation import CLASSES

    tiny = load_package(tiny_package)
    torch.manual_seed(0)
    return write_package(
        tmp_path_factory.mktemp("models") / "segmenting",
        metadata=tiny.metadata | {"segmenter": {"classes": list(CLASSES), "contrasts": None}},
        networks={
            "default_method": tiny.default_method,
            "methods": {method: tiny.configuration(method) for method in tiny.methods},
            "segmenter": {"width": 8},
        },
        tensors={method: tiny.weights(method) for method in tiny.methods} | {"segmenter": Segmenter(8).state_dict()},
        model_card="# Segmenting\n",
        licence="Apache-2.0\n",
    ).path
