from types import SimpleNamespace

import numpy as np
import pytest
import slicer

from MissingModalitySynthLib import NOTICE
from MissingModalitySynthLib.scene.compare import CompareView
from MissingModalitySynthLib.scene.marks import SyntheticMarks
from MissingModalitySynthLib.scene.provenance import mark, refer
from MissingModalitySynthLib.scene.slicer_views import SlicerViews
from Testing.scene.conftest import array_of, head
from Testing.scene.offscreen import OffscreenViews, need_opengl

SIZE = (40, 48, 36)


@pytest.fixture
def views(application):
    views = OffscreenViews(application.application, size=(260, 200))
    views.slice_logic("Red")
    return views


@pytest.fixture
def acquired(add_scan):
    return add_scan("T2", head(SIZE, seed=1))


@pytest.fixture
def synthetic(add_scan):
    node = add_scan("T2 (synthetic from T1)", head(SIZE, seed=1))
    mark(node, {"target": "T2"})
    return node


@pytest.fixture
def marks(scene, views):
    marks = SyntheticMarks(scene, views)
    marks.start()
    yield marks
    marks.stop()


def amber(picture):
    red, green, blue = (picture[..., channel].astype(int) for channel in range(3))
    return (red > 200) & (abs(green - 0.7 * red) < 30) & (blue < 60)


def test_a_view_is_marked_while_a_synthetic_volume_can_be_seen_in_it(marks, views, synthetic, acquired):
    composite = views.composite("Red")
    assert marks.texts == {}
    composite.SetBackgroundVolumeID(synthetic.GetID())
    assert marks.texts == {"Red": NOTICE}
    composite.SetForegroundVolumeID(acquired.GetID())
    for opacity, text in ((0.0, NOTICE), (0.7, NOTICE), (1.0, None)):
        composite.SetForegroundOpacity(opacity)
        assert marks.texts.get("Red") == text
    composite.SetBackgroundVolumeID(acquired.GetID())
    composite.SetForegroundVolumeID(synthetic.GetID())
    assert marks.texts == {"Red": NOTICE}
    composite.SetForegroundOpacity(0.0)
    assert marks.texts == {}


def test_a_volume_that_covers_only_a_part_hides_no_mark(marks, views, synthetic, add_scan):
    composite = views.composite("Red")
    composite.SetBackgroundVolumeID(synthetic.GetID())
    composite.SetForegroundVolumeID(add_scan("slab", head((20, 24, 18))).GetID())
    composite.SetForegroundOpacity(1.0)
    assert marks.texts == {"Red": NOTICE}


def test_views_that_come_later_are_marked_and_deleted_volumes_take_their_mark_along(marks, views, scene, synthetic):
    composite = views.composite("Yellow")
    composite.SetBackgroundVolumeID(synthetic.GetID())
    assert marks.texts == {"Yellow": NOTICE}
    scene.RemoveNode(synthetic)
    assert marks.texts == {}


def test_closing_the_scene_removes_all_marks(marks, views, scene, synthetic):
    views.composite("Red").SetBackgroundVolumeID(synthetic.GetID())
    scene.Clear(False)
    assert marks.texts == {}


def test_stopping_removes_the_text_and_every_observer(scene, views, synthetic):
    marks = SyntheticMarks(scene, views)
    composite = views.composite("Red")
    composite.SetBackgroundVolumeID(synthetic.GetID())
    marks.start()
    assert views.renderer("Red").GetViewProps().GetNumberOfItems() == 1
    marks.stop()
    assert views.renderer("Red").GetViewProps().GetNumberOfItems() == 0
    composite.SetForegroundOpacity(0.3)
    assert views.renderer("Red").GetViewProps().GetNumberOfItems() == 0


def test_a_view_without_a_widget_is_left_alone(scene, views, synthetic, monkeypatch):
    monkeypatch.setattr(views, "renderer", lambda name: None)
    marks = SyntheticMarks(scene, views)
    marks.start()
    views.composite("Red").SetBackgroundVolumeID(synthetic.GetID())
    assert marks.texts == {}
    marks.stop()


@pytest.mark.parametrize(
    ("declared", "loaded", "title"),
    [
        ("other", False, "Source: unlisted contrast"),
        ("PD", False, "Source: PD"),
        ("PD", True, "Source: PD"),
        (None, False, "Source: T1"),
    ],
)
def test_a_source_is_called_by_the_contrast_that_it_was_declared_as(
    scene, views, add_scan, synthetic, declared, loaded, title
):
    source = add_scan("Patient 7 T1", head(SIZE))
    if declared:
        mark(synthetic, {"target": "T2", "sources": {declared: source.GetName()}})
        if not loaded:  # a file keeps no references to nodes
            refer(synthetic, {declared: source}, declared)
    compare = CompareView(scene, views.layout_node, views)
    compare.show(source, synthetic)
    props = views.renderer(compare.view_names("source")[0]).GetViewProps()
    texts = [props.GetItemAsObject(n) for n in range(props.GetNumberOfItems())]
    assert [actor.GetInput() for actor in texts if actor.IsA("vtkTextActor")] == [title]
    compare.hide()


def test_every_column_says_what_it_shows_and_what_is_synthetic(scene, views, marks, add_scan, synthetic, acquired):
    compare = CompareView(scene, views.layout_node, views)
    source = add_scan("T1", head(SIZE))
    compare.show(source, synthetic, acquired=acquired)
    renderers = {column: views.renderer(compare.view_names(column)[0]) for column in compare.columns}

    def texts():
        props = {column: renderer.GetViewProps() for column, renderer in renderers.items()}
        found = {
            column: [each.GetItemAsObject(n) for n in range(each.GetNumberOfItems())] for column, each in props.items()
        }
        return {
            column: [actor.GetInput() for actor in actors if actor.IsA("vtkTextActor")]
            for column, actors in found.items()
        }

    (difference,) = texts()["difference"]
    assert texts() == {
        "source": ["Source: T1"],
        "synthetic": [f"Synthetic: T2\n{NOTICE}"],  # once, although all views are marked
        "acquired": ["Acquired: T2"],
        "difference": [difference],
    }
    assert difference.startswith("Absolute difference to acquired\n0 to ")
    assert difference.endswith(NOTICE)
    compare.set_fade(0.4)
    assert texts()["synthetic"] == [f"Synthetic: T2, 60 %\nAcquired: T2, 40 %\n{NOTICE}"]
    compare.flicker()
    assert texts()["synthetic"] == ["Acquired: T2"]
    compare.show(source, synthetic)
    (difference,) = texts()["difference"]
    assert "scaled" in difference
    assert "not error" in difference
    compare.hide()
    assert not any(texts().values())


def test_the_mark_is_drawn_in_the_upper_right_corner_of_what_is_synthetic(scene, views, add_scan, synthetic, acquired):
    need_opengl()
    compare = CompareView(scene, views.layout_node, views)
    compare.show(add_scan("T1", head(SIZE)), synthetic, acquired=acquired)
    for column in compare.columns:
        rows, columns = np.nonzero(amber(views.screenshot(compare.view_names(column)[0])))
        if column in ("synthetic", "difference"):
            assert rows.size > 300
            assert rows.max() < 60
            assert columns.max() > 245
        else:
            assert rows.size == 0


def test_the_crosshair_is_drawn_at_one_point_in_all_columns(scene, views, add_scan, synthetic):
    need_opengl()
    crosshair = scene.GetFirstNodeByClass("vtkMRMLCrosshairNode") or scene.AddNewNodeByClass("vtkMRMLCrosshairNode")
    compare = CompareView(scene, views.layout_node, views)
    compare.show(add_scan("T1", head(SIZE)), synthetic)
    names = [compare.view_names(column)[0] for column in compare.columns]
    to_world = array_of(views.node(names[0]).GetXYToRAS())
    for name in names:
        views.screenshot(name)
    crosshair.SetCrosshairMode(crosshair.NoCrosshair)
    before = [views.screenshot(name).astype(int) for name in names]
    crosshair.SetCrosshairMode(crosshair.ShowBasic)
    crosshair.SetCrosshairRAS((to_world @ (100, 60, 0, 1))[:3])
    for name, without in zip(names, before, strict=True):
        drawn = np.abs(views.screenshot(name) - without).sum(axis=2) > 30
        assert np.argmax(drawn.sum(axis=0)) == pytest.approx(100, abs=1)
        assert np.argmax(drawn.sum(axis=1)) == pytest.approx(views.size[1] - 1 - 60, abs=1)


def test_slicer_without_a_main_window_has_no_views_and_marks_nothing(scene, views, synthetic, monkeypatch):
    monkeypatch.setattr(slicer, "app", SimpleNamespace(layoutManager=lambda: None), raising=False)
    views.composite("Red").SetBackgroundVolumeID(synthetic.GetID())
    without = SlicerViews()
    assert without.slice_logic("Red") is None
    assert without.renderer("Red") is None
    without.render("Red")
    without.allow_narrow("Red")
    marks = SyntheticMarks(scene, without)
    marks.start()
    assert marks.texts == {}
    marks.stop()


def test_a_view_of_slicers_may_be_narrower_than_its_bar(monkeypatch):
    widths = {"Red": 327, "Yellow": 327}
    manager = SimpleNamespace(
        sliceWidget=lambda name: SimpleNamespace(setMinimumWidth=lambda pixels: widths.update({name: pixels}))
    )
    monkeypatch.setattr(slicer, "app", SimpleNamespace(layoutManager=lambda: manager), raising=False)
    SlicerViews().allow_narrow("Red")
    assert widths["Red"] <= 200  # four columns beside the panel, on a screen of 1280
    assert widths["Yellow"] == 327
