"""Fixtures that the engine's tests share."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

from MissingModalitySynthLib.volume import Volume


@pytest.fixture(scope="session")
def head_signal():
    """Function: world positions (..., 3) in mm -> a smooth head there, in closed form.

    An ellipsoid around the world's origin with 22 x 30 x 26 mm half axes, of 0 to about 1200, without any symmetry.
    """

    def signal(world):
        radius = np.linalg.norm(world / np.array([22.0, 30.0, 26.0]), axis=-1)
        texture = 1 + 0.2 * np.sin(world @ np.array([0.12, 0.09, 0.07]))
        return 1000 / (1 + np.exp((radius - 1) * 12)) * texture

    return signal


@pytest.fixture(scope="session")
def smooth_head(head_signal):
    """Function: geometry -> the smooth head sampled on it; centre the field of view near the world's origin."""

    def sample(geometry, name="head"):
        index = np.stack(np.meshgrid(*(np.arange(n) for n in geometry.size), indexing="ij"), axis=-1)
        return Volume(head_signal(geometry.index_to_world(index)).astype(np.float32), geometry, name)

    return sample


@pytest.fixture(scope="session")
def write_dicom_series():
    """Function that writes a DICOM series of an integer array [i, j, k] into a folder and returns its UID."""

    def write(folder, array, spacing=(1.0, 1.0, 2.0), origin=(0, 0, 0), axes=(1, 0, 0, 0, 1, 0), depths=None, **tags):
        folder.mkdir(exist_ok=True)
        series = generate_uid()
        normal = np.cross(axes[:3], axes[3:])
        for k in range(array.shape[2]):
            meta = FileMetaDataset()
            meta.MediaStorageSOPClassUID = MRImageStorage
            meta.MediaStorageSOPInstanceUID = generate_uid()
            meta.TransferSyntaxUID = ExplicitVRLittleEndian
            slice_ = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
            slice_.SOPClassUID, slice_.SOPInstanceUID = MRImageStorage, meta.MediaStorageSOPInstanceUID
            slice_.StudyInstanceUID, slice_.SeriesInstanceUID = "1.2.3", series
            slice_.Modality, slice_.PatientName, slice_.PatientID = "MR", "Nobody^Known", "secret"
            slice_.InstanceNumber = k + 1
            slice_.Columns, slice_.Rows = array.shape[:2]
            slice_.PixelSpacing, slice_.SliceThickness = [spacing[1], spacing[0]], spacing[2]
            slice_.ImageOrientationPatient = list(axes)
            depth = k * spacing[2] if depths is None else depths[k]
            slice_.ImagePositionPatient = [round(float(x), 8) for x in np.array(origin) + normal * depth]
            slice_.BitsAllocated, slice_.BitsStored, slice_.HighBit, slice_.PixelRepresentation = 16, 16, 15, 0
            slice_.SamplesPerPixel, slice_.PhotometricInterpretation = 1, "MONOCHROME2"
            slice_.PixelData = np.ascontiguousarray(array[:, :, k].T.astype(np.uint16)).tobytes()
            for keyword, value in tags.items():
                setattr(slice_, keyword, value[k] if isinstance(value, list) else value)
            # file names in another order than space
            pydicom.dcmwrite(
                folder / f"{k * 7 % array.shape[2]:03d}-{series[-6:]}.dcm", slice_, enforce_file_format=True
            )
        return series

    return write


@pytest.fixture
def small_model() -> SimpleNamespace:
    """What ``write_package`` takes for a model of a few random tensors, which a test may change as it likes; and
    ``write``, a function: folder, what takes the place of the model's own -> the package written there.
    """
    import torch

    from MissingModalitySynthLib.package_store import write_package

    generator = torch.Generator().manual_seed(7)
    aldm = {f"block.{i}.weight": torch.randn(10, 12, generator=generator) for i in range(5)}
    content = {
        "metadata": {
            "version": "0.1.0",
            "changelog": {"0.1.0": "first"},
            "name": "A small model",
            "task": "synthesis of T2 and FLAIR from T1",
            "description": "For tests.",
            "authors": "The makers",
            "copyright": "The makers",
            "license": "Apache-2.0",
            "intended_use": "Tests only.",
            "data_source": "Random numbers.",
            "network_data_format": {"inputs": {}, "outputs": {}},
            "sources": ["T1"],
            "targets": ["T2", "FLAIR"],
            "spacing_mm": [1, 1, 1.5],
            "intensity_range": [-1, 1],
            "percentiles": [0.5, 99.5],
        },
        "networks": {
            "default_method": "aldm",
            "methods": {"aldm": {"channels": [8, 16], "norm": {"eps": 1e-5}}, "regression": {"depth": 3}},
        },
        "tensors": {
            "aldm": aldm | {"steps": torch.arange(4)},
            "regression": {"bias": torch.randn(6, generator=generator)},
        },
        "model_card": "# A small model\n",
        "licence": "Apache-2.0\n",
    }

    def write(folder, **changes):
        return write_package(folder, **content | changes)

    return SimpleNamespace(**content, write=write)


@pytest.fixture
def micro(tmp_path, small_model) -> Path:
    """Folder of the small model's package, named "micro"."""
    return small_model.write(tmp_path / "micro").path


@pytest.fixture
def user_models(tmp_path, monkeypatch) -> Path:
    """The folder for the user's packages, which is not there yet."""
    monkeypatch.setenv("MISSING_MODALITY_SYNTH_MODELS", str(tmp_path / "user"))
    return tmp_path / "user"
