"""Tissues of volumes: on any grid, in windows, from packages, by the command, and their overlap."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from torch import nn

from MissingModalitySynthLib import segmentation
from MissingModalitySynthLib.canonical import canonical_grid, to_canonical
from MissingModalitySynthLib.errors import Cancelled, InputError, ModelPackageError
from MissingModalitySynthLib.intensity import head_mask, normalise, scale
from MissingModalitySynthLib.model_package import load_package
from MissingModalitySynthLib.networks.segmenter import Segmenter
from MissingModalitySynthLib.package_store import write_package
from MissingModalitySynthLib.segmentation import CLASSES, dice_by_class, label, load_segmenter, segment, segment_all
from MissingModalitySynthLib.volume import Geometry, Volume
from MissingModalitySynthLib.volume_io import read_provenance, read_volume

COSINES = ((0.96, -0.28, 0.0), (0.28, 0.96, 0.0), (0.0, 0.0, 1.0))
FLIPPED = ((0.0, -1.0, 0.0), (0.0, 0.0, 1.0), (-1.0, 0.0, 0.0))
EDGES = (-0.9, -0.2, 0.2, 0.5, 0.9)


class Thresholds(nn.Module):
    """A segmenter in closed form: the class of a voxel is the number of EDGES that its intensity exceeds."""

    def __init__(self):
        super().__init__()
        self.edges = nn.Parameter(torch.tensor(EDGES))

    def forward(self, image):
        index = (image.float() > self.edges.view(1, -1, 1, 1, 1)).sum(dim=1)
        return 50.0 * nn.functional.one_hot(index, len(CLASSES)).movedim(-1, 1).float()


def thresholded(volume, head):
    """What ``Thresholds`` tells of a volume, computed on its own grid; only the range is that of the crop."""
    grid = canonical_grid(volume, multiple=32, mask=head)
    _, found = normalise(to_canonical(volume, grid), native=volume.array)
    return sum((scale(volume.array, found) > edge).astype(np.uint8) for edge in EDGES) * head


def agreement(a, b, within):
    return np.mean(a[within] == b[within])


@pytest.mark.parametrize("direction", [np.eye(3), FLIPPED, COSINES])
def test_labels_are_told_at_the_very_voxels_of_a_volume_of_1_mm(smooth_head, direction):
    grid = Geometry((60, 70, 64), (1.0, 1.0, 1.0), -np.asarray(direction) @ (29.0, 34.0, 31.0), direction)
    volume = smooth_head(grid)
    head = head_mask(volume.array)
    found = label(Thresholds(), volume)
    assert found.array.dtype == np.uint8
    assert found.geometry == grid
    assert not found.array[~head].any()
    assert len(np.unique(found.array)) == len(CLASSES)
    np.testing.assert_array_equal(found.array, thresholded(volume, head))


def test_labels_of_other_voxel_sizes_lie_at_the_same_places(smooth_head):
    fine = smooth_head(Geometry((60, 70, 64), (1.0, 1.0, 1.0), (-29.0, -34.0, -31.0)))
    coarse = smooth_head(Geometry((40, 36, 30), (1.6, 2.0, 2.0), (-26, -40, -28), COSINES))
    labels = label(Thresholds(), coarse)
    assert labels.geometry == coarse.geometry
    index = np.rint(fine.geometry.world_to_index(coarse.geometry.index_to_world(np.argwhere(labels.array >= 0))))
    inside = ((index >= 0) & (index < fine.geometry.size)).all(axis=1)
    there = label(Thresholds(), fine).array[tuple(index[inside].astype(int).T)]
    here = labels.array.ravel()[inside]
    assert agreement(here, there, there > 0) > 0.8  # voxels of 2 mm mix what those of 1 mm keep apart
    assert abs(int(here.astype(int).sum()) - int(there.astype(int).sum())) < 0.1 * there.sum()


def test_windows_give_what_one_pass_gives_and_are_counted(smooth_head, monkeypatch):
    volume = smooth_head(Geometry((60, 70, 64), (1.0, 1.0, 1.0), (-29.0, -34.0, -31.0)))
    at_once = label(Thresholds(), volume)
    monkeypatch.setattr(segmentation, "_WINDOW", 32)
    shares = []
    in_windows = label(Thresholds(), volume, on_window=shares.append)
    np.testing.assert_array_equal(in_windows.array, at_once.array)
    assert shares[0] == 0
    np.testing.assert_allclose(np.diff(shares), 1 / len(shares))


def test_a_mask_limits_what_is_segmented(smooth_head):
    volume = smooth_head(Geometry((60, 70, 64), (1.0, 1.0, 1.0), (-29.0, -34.0, -31.0)))
    mask = np.zeros(volume.array.shape, bool)
    mask[20:40, 20:50, 20:44] = True
    found = label(Thresholds(), volume, mask=mask)
    assert found.array[mask].all()
    assert not found.array[~mask].any()


def test_the_network_tells_each_voxel_and_takes_any_size_of_32_voxels():
    network = Segmenter(8).eval()
    for shape in ((32, 32, 32), (64, 32, 96)):
        assert network(torch.zeros(1, 1, *shape)).shape == (1, len(CLASSES), *shape)
    single = torch.zeros(1, 1, 32, 32, 32)
    single[0, 0, 17, 4, 8] = 1.0
    difference = (network(single) - network(torch.zeros_like(single))).abs().sum(dim=1)[0]
    assert (difference > 0).any(dim=0).any(dim=0).any(dim=0)


# --- packages -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def package(segmenting_package):
    return load_package(segmenting_package)


@pytest.fixture(scope="module")
def volume(smooth_head):
    return smooth_head(Geometry((30, 34, 32), (2.0, 2.0, 2.1), (-30.0, -34.0, -33.0)), "Patient 7")


def test_a_packages_segmenter_is_the_one_that_was_written(package, volume):
    torch.manual_seed(0)
    written = Segmenter(8)
    read = load_segmenter(package)
    assert not read.training
    for name, tensor in written.state_dict().items():
        torch.testing.assert_close(read.state_dict()[name], tensor.half().float(), rtol=0, atol=0)
    np.testing.assert_array_equal(segment(volume, package, device="cpu").array, label(read, volume).array)


def test_each_volume_is_segmented_by_itself_and_says_where_it_came_from(package, volume):
    other = Volume(volume.array[::-1].copy(), volume.geometry, "other")
    both = segment_all({"a": volume, "b": other}, package, device="cpu")
    assert list(both.labels) == ["a", "b"]
    for key, alone in (("a", volume), ("b", other)):
        np.testing.assert_array_equal(both.labels[key].array, segment(alone, package, device="cpu").array)
        record = json.loads(json.dumps(both.provenance[key]))
        assert record["segmented"] == alone.name
        assert record["package_sha256"] == package.digest
        assert record["labels"]["3"] == "white matter"


def test_progress_rises_and_cancelling_stops_at_the_next_window(package, volume):
    told = []
    segment_all({"a": volume, "b": volume}, package, device="cpu", progress=told.append)
    fractions = [each.fraction for each in told]
    assert fractions == sorted(fractions)
    assert 0 == fractions[0] < fractions[-1] < 1
    assert [each.target for each in told if each.stage == "segment"] == ["a", "b"]
    for moment in range(len(told)):
        asked = iter(range(len(told)))
        with pytest.raises(Cancelled):
            segment_all(
                {"a": volume, "b": volume},
                package,
                device="cpu",
                cancelled=lambda: next(asked) == moment,  # noqa: B023
            )


def test_a_volume_without_an_image_is_refused(package, volume):
    constant = Volume(np.ones_like(volume.array), volume.geometry, "empty")
    with pytest.raises(InputError, match="'empty' is constant"):
        segment(constant, package)


def test_a_package_without_a_segmenter_says_so(tiny_package, volume):
    tiny = load_package(tiny_package)
    assert not tiny.has_segmenter
    with pytest.raises(ModelPackageError, match="'tiny' has no segmenter"):
        segment(volume, tiny)


def test_damaged_weights_of_the_segmenter_are_refused(segmenting_package, volume, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(segmenting_package, broken)
    weights = broken / "models" / "segmenter.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    with pytest.raises(ModelPackageError, match=r"models/segmenter\.safetensors"):
        segment(volume, load_package(broken))


@pytest.mark.parametrize(
    ("metadata", "networks", "words"),
    [
        ({"segmenter": None}, {"segmenter": {"width": 8}}, "if, and only if"),
        ({"segmenter": {"classes": ["air"]}}, {"segmenter": {"width": 8}}, "classes of segmenter"),
        ({}, {"segmenter": {"width": 16}}, "does not fit its weights"),
        ({}, {"segmenter": {"depth": 8}}, "does not fit its weights"),
    ],
)
def test_a_segmenter_that_is_described_wrongly_is_refused(package, volume, tmp_path, metadata, networks, words):
    with pytest.raises(ModelPackageError, match=words):
        made = write_package(
            tmp_path / "wrong",
            metadata={key: value for key, value in (package.metadata | metadata).items() if value is not None},
            networks={
                "default_method": "regression",
                "methods": {"regression": package.configuration("regression")},
                **networks,
            },
            tensors={name: package.weights(name) for name in ("regression", "segmenter")},
            model_card="# Wrong\n",
            licence="None\n",
        )
        segment(volume, made)


def test_importing_the_module_imports_nothing_heavy():
    code = (
        "import sys, MissingModalitySynthLib.segmentation; "
        "print(sorted({'torch', 'monai', 'SimpleITK', 'scipy'} & set(sys.modules)))"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"


# --- overlap --------------------------------------------------------------------------------------------------------


def test_dice_is_counted_by_class_and_not_defined_for_one_that_neither_has():
    grid = Geometry((4, 4, 4))
    first, second = np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8)
    first[0], first[1] = 1, 3
    second[0, :2], second[1:3] = 1, 3
    found = dice_by_class(Volume(first, grid), Volume(second, grid))
    assert list(found) == list(CLASSES[1:])
    assert found["CSF"] == pytest.approx(2 * 8 / (16 + 8))
    assert found["white matter"] == pytest.approx(2 * 16 / (16 + 32))
    assert np.isnan(found["grey matter"]) and np.isnan(found["lesion"])


def test_dice_on_another_grid_compares_what_lies_at_the_same_place():
    labels = np.random.default_rng(0).integers(0, 6, (6, 7, 8)).astype(np.uint8)
    grid = Geometry(labels.shape, (1.0, 1.0, 1.0), (3.0, -2.0, 5.0))
    turned = Geometry((7, 8, 6), (1.0, 1.0, 1.0), (3.0 + 5.0, -2.0, 5.0), ((0, 0, -1), (1, 0, 0), (0, 1, 0)))
    same = Volume(np.ascontiguousarray(labels[::-1].transpose(1, 2, 0)), turned)
    assert set(dice_by_class(Volume(labels, grid), same).values()) == {1.0}


# --- the command ----------------------------------------------------------------------------------------------------


def test_the_command_writes_label_maps_on_the_files_own_grids_and_compares_them(
    run, scans, segmenting_package, tmp_path
):
    made = run("segment", scans.t1, scans.t2, "--package", segmenting_package, "--output-dir", tmp_path, "--json")
    assert made.code == 0, made.err
    result = json.loads(made.out.splitlines()[-1])
    names = ["patient7_t1_segmentation.nii.gz", "patient7_t2_segmentation.mha"]
    assert result["files"] == [str(tmp_path / name) for name in names]
    labels = [sitk.ReadImage(str(tmp_path / name)) for name in names]
    for image, source in zip(labels, (scans.t1, scans.t2), strict=True):
        original = sitk.ReadImage(source)
        assert image.GetPixelID() == sitk.sitkUInt8
        assert image.GetSize() == original.GetSize()
        np.testing.assert_allclose(image.GetOrigin(), original.GetOrigin(), atol=1e-4)
    nearest = sitk.GetArrayFromImage(sitk.Resample(labels[1], labels[0], sitk.Transform(), sitk.sitkNearestNeighbor))
    first = sitk.GetArrayFromImage(labels[0])
    (scores,) = result["dice"].values()
    for index, name in enumerate(CLASSES[1:], start=1):
        a, b = first == index, nearest == index
        total = a.sum() + b.sum()
        assert scores[name] == (pytest.approx(2 * (a & b).sum() / total, abs=1e-3) if total else None)
    assert read_provenance(tmp_path / names[0])["quantity"] == "tissue classes"


def test_the_command_says_the_overlap_in_words(run, scans, segmenting_package, tmp_path):
    made = run("segment", scans.t1, scans.t2, "--package", segmenting_package, "--output-dir", tmp_path)
    assert made.out.splitlines() == [str(path) for path in [*tmp_path.glob("*.nii.gz"), *tmp_path.glob("*.mha")]]
    assert "grey matter" in made.err


def test_models_show_says_what_is_segmented(run, segmenting_package, tiny_package):
    assert "CSF, grey matter" in run("models", "show", segmenting_package).out
    assert json.loads(run("models", "show", segmenting_package, "--json").out)["has_segmenter"]
    assert "grey matter" not in run("models", "show", tiny_package).out


def test_what_cannot_be_segmented_leaves_nothing_behind(run, scans, segmenting_package, tiny_package, tmp_path):
    folder = tmp_path / "new"
    for arguments, code, words in (
        ((scans.t1, "--package", tiny_package), 5, "has no segmenter"),
        ((scans.t1, scans.far, "--package", segmenting_package), 4, "share only"),
        ((scans.t1, scans.t1, "--package", segmenting_package), 3, "both become"),
        (("absent.nii.gz", "--package", segmenting_package), 3, "absent.nii.gz"),
        ((scans.t1, "--package", segmenting_package, "--device", "cuda:99"), 3, "cuda:99"),
    ):
        made = run("segment", *arguments, "--output-dir", folder)
        assert made.code == code, made.err
        assert words in made.err
        assert not folder.exists()


def test_a_segmentation_is_no_input(run, scans, segmenting_package, tmp_path):
    assert run("segment", scans.t1, "--package", segmenting_package, "--output-dir", tmp_path).code == 0
    labels = tmp_path / "patient7_t1_segmentation.nii.gz"
    assert read_volume(labels).array.max() <= 5
    made = run("synthesize", "--source", labels, "--package", segmenting_package, "--output-dir", tmp_path / "out")
    assert made.code == 3
    assert "not clear" in made.err
