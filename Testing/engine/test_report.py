import base64
import io
import json
from html.parser import HTMLParser

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image
from scipy.spatial.transform import Rotation

from MissingModalitySynthLib import NOTICE
from MissingModalitySynthLib.errors import InputError, OutputError
from MissingModalitySynthLib.intensity import head_mask
from MissingModalitySynthLib.metrics import compare
from MissingModalitySynthLib.report import write_figure, write_report
from MissingModalitySynthLib.slice_images import PLANES, DisplayGrid, Panel, View
from MissingModalitySynthLib.volume import Geometry, Volume, to_sitk

VOID = {"meta", "img", "input", "br", "link", "hr"}
# World coordinates are LPS: the blob lies to the right, in front and above the centre.
BLOB = np.array([-14.0, -9.0, 11.0])
BLOB_RADIUS = 7.0


class Page(HTMLParser):
    """The elements of a page as (tag, attributes, text), with tags checked for balance."""

    def __init__(self, path):
        super().__init__()
        self.elements, self.open = [], []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append([tag, dict(attrs), ""])
        if tag not in VOID:
            self.open.append(self.elements[-1])

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        for element in self.open:
            element[2] += data

    def all(self, tag):
        return [(attrs, text) for name, attrs, text in self.elements if name == tag]

    def texts(self, tag):
        return [text for _, text in self.all(tag)]

    @property
    def slices(self):
        return next(json.loads(text) for attrs, text in self.all("script") if attrs.get("id") == "slices")

    def panel(self, title):
        """The decoded slices of the first panel with this title, by plane."""
        captions = self.texts("figcaption")
        key = self.all("img")[captions.index(title)][0]["data-panel"]
        return {plane: [decode(item) for item in stack] for plane, stack in self.slices[key].items()}


def decode(text):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB")).astype(int)


def amber(image):
    red, green, blue = np.moveaxis(np.asarray(image).astype(int), -1, 0)
    return (red > 150) & (green > 90) & (blue < 80)


def grid(direction=((1, 0, 0), (0, 1, 0), (0, 0, 1)), spacing=(2.0, 2.0, 2.0), size=(36, 36, 36)):
    """A grid centred on the world's origin."""
    centre = np.asarray(direction) @ ((np.array(size) - 1) / 2 * spacing)
    return Geometry(size, spacing, tuple(-centre), direction)


def phantom(geometry, name="", seed=0):
    """A ball of radius 28 mm with a gradient, noise and one bright blob, so that no two of its flips are alike."""
    world = geometry.index_to_world(np.moveaxis(np.indices(geometry.size), 0, -1))
    inside = np.linalg.norm(world, axis=-1) < 28
    blob = np.linalg.norm(world - BLOB, axis=-1) < BLOB_RADIUS
    texture = 60 + world @ (0.6, 0.3, 0.6) + 3 * np.random.default_rng(seed).standard_normal(geometry.size)
    return Volume((inside * texture + 100 * blob).astype(np.float32), geometry, name)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    source, synthetic, acquired = (phantom(grid(), f"{n}.nii.gz", seed=n) for n in range(3))
    deviation = Volume(np.abs(synthetic.array - acquired.array), synthetic.geometry)
    write_report(path, {"T1": source}, {"T2": synthetic}, {"T2": acquired}, {"T2": deviation}, {"seed": 7})
    return Page(path)


def test_page_needs_no_other_file_and_no_network(page):
    for tag, attrs, _ in page.elements:
        assert tag not in {"link", "iframe", "object", "embed", "base"}
        assert "href" not in attrs
        assert attrs.get("src", "data:").startswith("data:")
    assert "http://" not in page.source
    assert "https://" not in page.source
    assert "url(" not in page.source
    policies = [attrs["content"] for attrs, _ in page.all("meta") if "http-equiv" in attrs]
    assert policies[0].startswith("default-src 'none'")


def test_page_shows_source_synthetic_acquired_difference_and_deviation_in_three_planes(page):
    row = ["T1, acquired", "T2, synthetic", "T2, acquired", "Absolute difference", "Standard deviation"]
    assert page.texts("figcaption") == 3 * row
    assert page.texts("b") == ["Axial", "Coronal", "Sagittal"]


def test_sliders_reach_every_stored_slice_and_start_at_the_shown_one(page):
    sliders = {attrs["data-plane"]: attrs for attrs, _ in page.all("input")}
    for attrs, _ in page.all("img"):
        stack = page.slices[attrs["data-panel"]][attrs["data-plane"]]
        slider = sliders[attrs["data-plane"]]
        first, last, value = (int(slider[key]) for key in ("min", "max", "value"))
        assert 1 <= first <= last <= int(slider["data-total"]) == 36
        assert len(stack) == last - first + 1
        assert attrs["src"].partition(",")[2] == stack[value - first]


def test_everything_made_from_synthetic_voxels_is_marked_in_its_pixels_and_its_description(page):
    assert NOTICE in page.texts("div")
    for title in ("T2, synthetic", "Absolute difference", "Standard deviation"):
        assert all(amber(image[-18:]).sum() > 100 for stack in page.panel(title).values() for image in stack)
    for title in ("T1, acquired", "T2, acquired"):
        assert not any(amber(image[-18:]).any() for stack in page.panel(title).values() for image in stack)
    described = [attrs["alt"] for attrs, _ in page.all("img")]
    assert all((NOTICE in alt) == (", acquired," not in alt) for alt in described)


def test_metrics_are_those_of_compare_for_the_synthetic_volume_and_for_the_source_in_its_place(page):
    source, synthetic, acquired = (phantom(grid(), seed=n).array for n in range(3))
    cells = page.texts("td")
    shown = np.array([float(cell) for cell in cells[cells.index("") + 1 :][:12]]).reshape(2, 6)
    names = ("psnr", "nmse", "ssim", "psnr_mask", "ssim_mask", "mae_mask")
    for row, prediction in zip(shown, (synthetic, source), strict=True):
        expected = compare(prediction, acquired, head_mask(acquired))
        np.testing.assert_allclose(row, [expected[name] for name in names], atol=0.006)


def test_provenance_and_grid_are_listed(page):
    listed = dict(zip(page.texts("th")[-6:], page.texts("td")[-6:], strict=True))
    assert listed["seed"] == "7"
    assert listed["Source T1"] == "0.nii.gz"
    assert listed["Grid"] == "36 × 36 × 36 voxels of 2 × 2 × 2 mm"


@pytest.mark.parametrize(("share", "end"), [(0.006, "1%"), (0.03, "5%"), (0.4, "50%"), (2.0, "100%")])
def test_the_colour_bar_ends_at_the_next_round_share_of_the_range(tmp_path, share, end):
    synthetic = phantom(grid())
    low, high = np.percentile(synthetic.array[head_mask(synthetic.array)], (1.0, 99.0))
    deviation = Volume(np.full_like(synthetic.array, share * (high - low)), synthetic.geometry)
    write_report(tmp_path / "r.html", {}, {"T2": synthetic}, deviation={"T2": deviation})
    assert f"{end} of range" in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_without_an_acquired_volume_there_is_neither_difference_nor_metric(tmp_path):
    write_report(tmp_path / "a.html", {"T1": phantom(grid())}, {"T2": phantom(grid()), "FLAIR": phantom(grid())})
    page = Page(tmp_path / "a.html")
    assert page.texts("figcaption") == 3 * ["T1, acquired", "T2, synthetic", "FLAIR, synthetic"]
    assert "PSNR" not in page.source


def test_text_from_files_cannot_become_markup(tmp_path):
    attack = '"><script>alert(1)</script><img src=x onerror=alert(2)>&amp;'
    volume = phantom(grid(), attack)
    write_report(tmp_path / "a.html", {"T1": volume}, {"T2": volume}, provenance={attack: [attack], "a": {"b": attack}})
    page = Page(tmp_path / "a.html")
    assert len(page.all("script")) == 2
    assert not any("onerror" in attrs for _, attrs, _ in page.elements)
    assert page.texts("td").count(attack) == 4
    assert {attack, "a.b"} <= set(page.texts("th"))


@pytest.mark.parametrize(
    "direction",
    [
        ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
        ((-1, 0, 0), (0, -1, 0), (0, 0, 1)),
        ((0, 0, 1), (1, 0, 0), (0, -1, 0)),
        ((0, -1, 0), (0, 0, 1), (-1, 0, 0)),
    ],
)
def test_patient_right_anterior_and_superior_are_where_the_letters_say(direction, tmp_path):
    geometry = grid(direction, spacing=(2.0, 2.5, 1.5), size=(36, 30, 44))
    write_report(tmp_path / "a.html", {}, {"T2": phantom(geometry)})
    page = Page(tmp_path / "a.html")
    sliders = {attrs["data-plane"]: attrs for attrs, _ in page.all("input")}
    right, anterior, superior = BLOB * (-1, -1, 1)
    towards = {
        "axial": (superior, right, anterior),
        "coronal": (anterior, right, superior),
        "sagittal": (right, anterior, superior),
    }
    thickness = dict(zip(("sagittal", "coronal", "axial"), np.abs(direction) @ geometry.spacing, strict=True))
    for name, stack in page.panel("T2, synthetic").items():
        depth, left, up = towards[name]
        # Without the borders, in which the letters are. The ball's centre is the middle of the box.
        bright = np.array([image[18:-36, 18:-18].min(axis=-1) > 150 for image in stack])
        areas = bright.sum(axis=(1, 2))
        here = areas.argmax()
        rows, columns = np.nonzero(bright[here])
        per_mm = np.sqrt(areas[here] / np.pi) / BLOB_RADIUS
        assert len(stack) == int(sliders[name]["max"]) - int(sliders[name]["min"]) + 1
        assert np.ptp(columns) / np.ptp(rows) == pytest.approx(1, abs=0.2)  # round in spite of the spacing
        assert ((bright.shape[2] - 1) / 2 - columns.mean()) / per_mm == pytest.approx(left, abs=2)
        assert ((bright.shape[1] - 1) / 2 - rows.mean()) / per_mm == pytest.approx(up, abs=2)
        middle = np.average(np.arange(len(stack)), weights=areas) - (len(stack) - 1) / 2
        assert middle * thickness[name] == pytest.approx(depth, abs=2)


def test_slices_are_those_of_the_volume_reoriented_by_simpleitk():
    rotation = Rotation.from_euler("xyz", (100, 12, -170), degrees=True).as_matrix()
    volume = phantom(grid(tuple(map(tuple, rotation)), spacing=(1.0, 2.0, 1.5), size=(64, 34, 44)))
    expected = sitk.GetArrayFromImage(sitk.DICOMOrient(to_sitk(volume), "RAS")).T
    shown = DisplayGrid(volume.geometry, [np.ones(volume.array.shape, bool)])
    assert shown.shape == expected.shape
    levels = shown.levels(volume.array, 0, 255)
    np.testing.assert_array_equal(levels, np.rint(np.clip(expected, 0, 255)))
    axial, coronal, sagittal = PLANES
    np.testing.assert_array_equal(axial.slice(levels, 9)[0], levels[::-1, -1, 9])
    np.testing.assert_array_equal(coronal.slice(levels, 9)[0], levels[::-1, 9, -1])
    np.testing.assert_array_equal(sagittal.slice(levels, 9)[0], levels[9, ::-1, -1])
    assert shown.angle > 5


def test_encoded_slice_is_the_rendered_one_and_leaves_no_voxel_behind_letters():
    volume = phantom(grid())
    shown = DisplayGrid(volume.geometry, [volume.array > 0])
    panel = Panel("T2", shown.levels(volume.array, 0, 140))
    for plane in PLANES:
        view = View(shown, plane)
        encoded = [decode(text) for text in view.encode_all(panel)]
        assert len(encoded) == view.count == shown.box[plane.axis].stop - shown.box[plane.axis].start
        expected = Image.fromarray(np.ascontiguousarray(plane.slice(panel.levels, view.middle)))
        expected = np.asarray(expected.resize(view.slice_size, Image.Resampling.BICUBIC)).astype(int)
        (x, y), (width, height) = view.corner, view.slice_size
        got = encoded[view.middle][y : y + height, x : x + width]
        assert np.abs(got - expected[..., None]).mean() < 3
        assert max(view.slice_size) <= 256


def test_only_the_head_and_a_margin_are_shown_but_slices_are_counted_over_the_whole_grid():
    array = np.zeros((40, 50, 60), np.float32)
    array[10:20, 15:30, 25:50] = 100
    shown = DisplayGrid(Geometry(array.shape, (2.0, 1.0, 1.0)), [array > 0])
    # R and A run against the axes of an LPS grid; the margin is 4 mm.
    assert shown.box == (slice(40 - 22, 40 - 8), slice(50 - 34, 50 - 11), slice(21, 54))


def test_volumes_on_other_grids_are_shown_on_the_grid_of_the_synthetic_one(tmp_path):
    other = grid(((-1, 0, 0), (0, 0, 1), (0, 1, 0)), spacing=(1.5, 1.5, 1.5), size=(48, 48, 48))
    write_report(tmp_path / "a.html", {"T1": phantom(other)}, {"T1ce": phantom(grid())})
    page = Page(tmp_path / "a.html")
    source, synthetic = (
        np.array(page.panel(title)["axial"])[:, 18:-36, 18:-18, 0] for title in ("T1, acquired", "T1ce, synthetic")
    )
    assert np.corrcoef(source.ravel(), synthetic.ravel())[0, 1] > 0.9
    # Without the resampling, the other grid's axes and voxel size would show.
    assert np.corrcoef(source.ravel(), synthetic[::-1].ravel())[0, 1] < 0.8


def test_oblique_grids_are_named_as_such(tmp_path):
    rotation = Rotation.from_euler("z", 15, degrees=True).as_matrix()
    write_report(tmp_path / "a.html", {}, {"PD": phantom(grid(tuple(map(tuple, rotation))))})
    assert "oblique by up to 15°" in (tmp_path / "a.html").read_text(encoding="utf-8")


def test_figure_shows_every_panel_and_marks_the_synthetic_ones(tmp_path):
    volume = phantom(grid())
    write_figure(tmp_path / "a.png", {"T1": volume}, {"T2": phantom(grid(), seed=1)}, {"T2": volume}, dpi=100)
    image = np.asarray(Image.open(tmp_path / "a.png").convert("RGB"))
    columns = np.split(image, 4, axis=1)
    assert image.shape[1] == 4 * 240
    assert all((column.max(axis=-1) > 60).mean() > 0.05 for column in columns)
    assert [int(amber(column).sum()) > 300 for column in columns] == [False, True, False, True]


def test_a_report_needs_something_synthetic_to_show(tmp_path):
    volume = phantom(grid())
    with pytest.raises(InputError, match="at least one synthetic"):
        write_report(tmp_path / "a.html", {"T1": volume}, {})
    with pytest.raises(InputError, match="no synthetic FLAIR"):
        write_figure(tmp_path / "a.png", {"T1": volume}, {"T2": volume}, {"FLAIR": volume})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("write", [write_report, write_figure])
def test_a_report_that_cannot_be_written_leaves_nothing_behind(write, tmp_path):
    volume = phantom(grid(spacing=(4.0, 4.0, 4.0), size=(18, 18, 18)))
    with pytest.raises(OutputError, match="missing"):
        write(tmp_path / "missing" / "report", {}, {"T2": volume})
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="folder"):
        write(tmp_path / "folder", {}, {"T2": volume})
    assert [item.name for item in tmp_path.iterdir()] == ["folder"]


def test_a_new_report_replaces_the_old_one(tmp_path):
    path = tmp_path / "Bericht für Frau Ünal.html"
    path.write_text("old", encoding="utf-8")
    write_report(path, {}, {"T2": phantom(grid(spacing=(4.0, 4.0, 4.0), size=(18, 18, 18)))})
    assert NOTICE in path.read_text(encoding="utf-8")
    assert list(tmp_path.iterdir()) == [path]
