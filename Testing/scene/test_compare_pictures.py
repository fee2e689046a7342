"""Pictures of a comparison of the MNI152 head, kept in ``golden/``; ``MMS_UPDATE_GOLDEN=1`` writes them anew."""

import os
from functools import cache
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nilearn import datasets
from PIL import Image
from scipy import ndimage

from MissingModalitySynthLib.scene.compare import CompareView
from MissingModalitySynthLib.scene.provenance import mark
from Testing.scene.offscreen import OffscreenViews, need_opengl
from Testing.scene.segmenting import add_segmentation

GOLDEN = Path(__file__).parent / "golden"
PLANES = ("Axial", "Sagittal", "Coronal")
SPACING = 2
STRAIGHT = ((1, 0, 0), (0, 1, 0), (0, 0, 1))
# Steps in mm from the middle of the volume to the lesion.
OFFSETS = {"Axial": 10, "Sagittal": -26, "Coronal": 0}


@cache
def anatomy():
    """A T1, a T2 with a lesion, a synthetic T2 that misses most of it and is smooth, and the lesion; on one grid."""
    t1, grey, white = (
        nib.as_closest_canonical(load(resolution=SPACING)).get_fdata().astype(np.float32)
        for load in (datasets.load_mni152_template, datasets.load_mni152_gm_template, datasets.load_mni152_wm_template)
    )
    brain = t1 > 0.1
    water = np.clip(brain - grey - white, 0, 1)
    centre = np.array(t1.shape) * (0.36, 0.5, 0.55)
    lesion = brain & (np.sum(((np.indices(t1.shape).T - centre) / (4, 6, 4)) ** 2, axis=-1).T < 1)
    contrast = (300 * white + 480 * grey + 900 * water) * brain

    def with_lesion(share):
        return contrast + share * ndimage.gaussian_filter(lesion.astype(np.float32), 0.6) * (850 - contrast)

    noise = np.random.default_rng(0).normal(0, 12, t1.shape) * brain
    arrays = {
        "source": 1000 * t1 * brain,
        "synthetic": 1.7 * ndimage.gaussian_filter(with_lesion(0.3), 0.6),
        "acquired": with_lesion(1.0) + noise,
    }
    return {name: array.astype(np.float32) for name, array in arrays.items()}, lesion


@pytest.fixture
def show(application, add_scan):
    """Function: size of a view, where the volumes lie, what is to be shown -> comparison and its views."""
    made = {}

    def show(size, directions=STRAIGHT, transform=None, acquired=True, **options):
        arrays, lesion = anatomy()
        names = {"source": "T1", "synthetic": "T2 (synthetic from T1)", "acquired": "T2"}
        # The middle of the volume lies in the middle of the world, however it is turned.
        origin = -np.array(directions) @ (np.array(lesion.shape) - 1) * SPACING / 2
        place = {"spacing": (SPACING,) * 3, "origin": origin, "directions": directions}
        nodes = {role: add_scan(names[role], array, **place) for role, array in arrays.items()}
        mark(nodes["synthetic"], {"target": "T2"})
        segmentation = add_segmentation(application, "lesion", {"lesion": lesion}, **place)
        for node in (*nodes.values(), segmentation):
            node.SetAndObserveTransformNodeID(transform)
        if not acquired:
            del nodes["acquired"]
        if size not in made:
            made[size] = OffscreenViews(application.application, size)
        views = made[size]
        compare = CompareView(views.scene, views.layout_node, views)
        compare.show(**nodes, segmentations=[segmentation], **options)
        for name in views.mapped:
            node = views.node(name)
            node.SetSliceOffset(node.GetSliceOffset() + next(mm for row, mm in OFFSETS.items() if name.endswith(row)))
        return compare, views

    return show


def sheet(compare, draw):
    """All views in one picture, as the layout has them."""
    columns = [np.vstack([draw(name) for name in compare.view_names(column)]) for column in compare.columns]
    return np.hstack(columns)


def assert_as_kept(picture, name, tolerance):
    """The picture is the one that was kept, but for a mean difference of ``tolerance`` grey levels."""
    path = GOLDEN / name
    if os.environ.get("MMS_UPDATE_GOLDEN"):
        GOLDEN.mkdir(exist_ok=True)
        Image.fromarray(picture).convert("P", palette=Image.Palette.ADAPTIVE, colors=96).save(path, optimize=True)
    kept = np.asarray(Image.open(path).convert("RGB")).astype(int)
    assert picture.shape == kept.shape
    differences = np.abs(picture - kept)
    assert differences.mean() < tolerance
    assert np.percentile(differences, 99) < 12 * tolerance


def test_composed_slices_of_all_planes_and_columns_are_as_kept(show):
    compare, views = show((80, 92), rows=PLANES)
    assert_as_kept(sheet(compare, views.picture), "slices.png", tolerance=2.0)


def test_without_an_acquired_volume_slices_are_as_kept(show):
    compare, views = show((80, 92), rows=("Coronal",), acquired=False)
    assert_as_kept(sheet(compare, views.picture), "slices_without_acquired.png", tolerance=2.0)


def test_the_drawn_row_with_outlines_and_texts_is_as_kept(show):
    need_opengl()
    compare, views = show((190, 164), rows=("Axial",))
    assert_as_kept(sheet(compare, views.screenshot), "row.png", tolerance=3.0)


def test_a_fade_halfway_is_the_mean_of_both(show):
    compare, views = show((80, 92))
    (name,) = compare.view_names("synthetic")
    synthetic = views.picture(name).astype(float)
    compare.flicker()
    acquired = views.picture(name).astype(float)
    compare.set_fade(0.5)
    assert np.abs(views.picture(name) - (synthetic + acquired) / 2).max() <= 2


def test_a_head_that_is_turned_and_moved_looks_the_same_in_views_that_follow_it(show, add_transform):
    straight, views = show((80, 92), rows=PLANES)
    expected = sheet(straight, views.picture).astype(int)
    straight.hide()
    oblique = ((0.96, -0.28, 0.0), (0.28, 0.96, 0.0), (0.0, 0.0, 1.0))
    moved = np.eye(4)
    moved[1:3, 1:3] = (0.96, -0.28), (0.28, 0.96)
    moved[:3, 3] = 11, -8, 5
    turned, views = show((80, 92), oblique, add_transform("moved", moved).GetID(), rows=PLANES)
    differences = np.abs(sheet(turned, views.picture).astype(int) - expected)
    assert np.median(differences) <= 1
    assert differences.mean() < 4
