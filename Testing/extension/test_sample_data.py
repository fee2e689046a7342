"""The simulated case: what is in its files, and how it is offered in Sample Data."""

import hashlib
import re
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image
from scipy import ndimage

from MissingModalitySynthLib.errors import InputError
from MissingModalitySynthLib.modality import guess_modality
from MissingModalitySynthLib.scene import sample_data
from training.simulation import sample_case
from training.simulation.anatomy import procedural_head

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "Resources" / "SampleData"
ICONS = ROOT / "MissingModalitySynth" / "Resources" / "Icons"
T1, LESIONS = (FOLDER / name for name, *_rest in sample_data.FILES)


class FakeSampleDataLogic:
    """Registers as ``SampleData.SampleDataLogic`` does: with its parameters, and no source twice."""

    def __init__(self):
        self.titles, self.sources = {}, []

    def registerCustomSampleDataCategory(self, category, title):
        self.titles[category] = title

    def registerCustomSampleDataSource(
        self,
        category="Custom",
        sampleName=None,
        uris=None,
        fileNames=None,
        nodeNames=None,
        customDownloader=None,
        thumbnailFileName=None,
        loadFileTypes=None,
        loadFiles=None,
        loadFileProperties={},  # noqa: B006  (as there)
        checksums=None,
        loadFileType=None,
    ):
        source = {key: value for key, value in locals().items() if key != "self"}
        if source not in self.sources:
            self.sources.append(source)


@pytest.fixture
def registered() -> FakeSampleDataLogic:
    logic = FakeSampleDataLogic()
    sample_data.register(logic, ICONS)
    sample_data.register(logic, ICONS)
    return logic


def test_the_case_is_offered_once_with_a_thumbnail_and_a_readable_category(registered):
    (source,) = registered.sources
    assert registered.titles == {source["category"]: "Missing Modality Synth"}
    with Image.open(source["thumbnailFileName"]) as thumbnail:
        assert (thumbnail.format, thumbnail.size) == ("PNG", (260, 280))


def test_the_files_come_from_the_disk_and_their_checksums_hold(registered):
    (source,) = registered.sources
    for uri, name, checksum in zip(source["uris"], source["fileNames"], source["checksums"], strict=True):
        parts = urlparse(uri)
        path = Path(url2pathname(parts.path))
        assert (parts.scheme, parts.netloc, path.name) == ("file", "", name)
        assert checksum == "SHA256:" + hashlib.sha256(path.read_bytes()).hexdigest()


def test_every_list_of_the_source_has_one_entry_per_file(registered):
    (source,) = registered.sources
    assert {len(value) for value in source.values() if isinstance(value, list)} == {2}
    assert source["loadFileTypes"] == ["VolumeFile", "SegmentationFile"]


def test_the_node_name_lets_the_modality_be_guessed():
    assert [guess_modality(node_name) for _file, node_name, _reader in sample_data.FILES] == ["T1", None]


def test_missing_files_are_named(monkeypatch, tmp_path):
    library = tmp_path / "module" / "MissingModalitySynthLib" / "scene"
    monkeypatch.setattr(sample_data, "__file__", str(library / "sample_data.py"))
    with pytest.raises(InputError, match="sample data are missing"):
        sample_data.sample_folder()


def test_all_files_together_are_small_enough_for_a_clone():
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 3_000_000


def test_lesions_are_dark_spots_in_the_white_matter_of_the_t1_on_one_grid():
    t1, lesions = sitk.ReadImage(str(T1)), sitk.ReadImage(str(LESIONS))
    assert t1.GetPixelID() == sitk.sitkInt16
    for image in (t1, lesions):
        assert image.GetSize() == (160, 192, 160)
        assert image.GetSpacing() == (1, 1, 1)
        assert image.TransformContinuousIndexToPhysicalPoint((79.5, 95.5, 79.5)) == (0, 0, 0)
    assert t1.GetDirection() == lesions.GetDirection()

    image, mask = sitk.GetArrayFromImage(t1), sitk.GetArrayFromImage(lesions) == 1
    assert 2000 < mask.sum() < 20000
    around = ndimage.binary_dilation(mask, iterations=3) & ~ndimage.binary_dilation(mask)
    assert np.median(image[mask]) < 0.9 * np.median(image[around])
    assert (image[mask] > 0).all()


def test_slicer_reads_the_lesions_as_a_segmentation():
    slicer = pytest.importorskip("slicer")
    scene = slicer.vtkMRMLScene()
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    storage = scene.AddNewNodeByClass("vtkMRMLSegmentationStorageNode")
    storage.SetFileName(str(LESIONS))
    assert storage.ReadData(node)
    segmentation = node.GetSegmentation()
    assert segmentation.GetNumberOfSegments() == 1
    segment = segmentation.GetNthSegment(0)
    assert segment.GetName() == "Lesions"
    array = segment.GetRepresentation("Binary labelmap")
    expected = np.count_nonzero(sitk.GetArrayFromImage(sitk.ReadImage(str(LESIONS))))
    image = slicer.vtkOrientedImageData()
    image.DeepCopy(array)
    values = np.asarray(image.GetPointData().GetScalars())
    assert np.count_nonzero(values) == expected


def test_the_readme_gives_the_command_that_made_the_files():
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    module, output = re.search(r"python -m (\S+) --output (\S+)", text).groups()
    assert (ROOT / (module.replace(".", "/") + ".py")).is_file()
    assert ROOT / output == FOLDER


def test_the_command_writes_what_is_registered_the_same_each_time(monkeypatch, tmp_path):
    monkeypatch.setattr(sample_case, "SHAPE", (64, 64, 64))
    monkeypatch.setattr(sample_case, "mni_anatomy", lambda: procedural_head((72, 72, 72)))
    for run in ("first", "second"):
        sample_case.main(["--output", str(tmp_path / run)])
    names = {name for name, *_rest in sample_data.FILES}
    assert {file.name for file in (tmp_path / "first").iterdir()} == names | {"SHA256SUMS"}
    for file in (tmp_path / "first").iterdir():
        assert file.read_bytes() == (tmp_path / "second" / file.name).read_bytes()
    for line in (tmp_path / "first" / "SHA256SUMS").read_text().splitlines():
        checksum, name = line.split("  ")
        assert hashlib.sha256((tmp_path / "first" / name).read_bytes()).hexdigest() == checksum
    t1 = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "first" / T1.name)))
    assert abs(np.percentile(t1[t1 > 0], 95) - 300) < 3
