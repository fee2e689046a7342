"""Subjects on the canonical grid, their cache, and the training pairs made of them."""

from dataclasses import replace
from itertools import islice, repeat
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.spatial.transform import Rotation

from MissingModalitySynthLib.errors import GeometryError, InputError, OutputError
from MissingModalitySynthLib.intensity import BRIGHTEST
from MissingModalitySynthLib.model_package import load_package
from MissingModalitySynthLib.preparation import prepare
from MissingModalitySynthLib.request import Request, checked
from MissingModalitySynthLib.volume import Geometry
from MissingModalitySynthLib.volume_io import read_volume, write_volume
from training.batches import Pair
from training.data import cache as cache_module
from training.data.cache import load_subject
from training.data.pairs import in_memory, load_each, mixed_pairs, subject_pairs
from training.data.readers import find_subjects
from training.data.subjects import Subject

COARSE = {"spacing": (2.5, 2.5, 2.5), "multiple": 8}
BRATS = {"t1": "T1", "t1ce": "T1ce", "t2": "T2", "flair": "FLAIR", "seg": "segmentation"}
SHAPES = [(16, 16, 16)]


@pytest.fixture
def subjects(data_set, said):
    """Three subjects of BraTS 2021 with four contrasts and a segmentation."""
    names = [f"BraTS2021_0000{number}" for number in range(3)]
    root = data_set({f"{name}/{name}_{end}.nii.gz": contrast for name in names for end, contrast in BRATS.items()})
    return find_subjects(root, report=said.report)


def test_images_equal_what_the_engine_shows_its_networks(subjects, tiny_package):
    package = load_package(tiny_package)
    volumes = {name: read_volume(subjects[0].files[name]) for name in ("T1", "T2")}
    prepared = prepare(checked(Request(volumes, ["FLAIR"], package)), multiple=8)
    loaded = load_subject(subjects[0], spacing=package.spacing, multiple=8)
    assert loaded.geometry.matches(prepared.grid.geometry)
    for name in volumes:
        np.testing.assert_array_equal(np.minimum(loaded.images[name], 1), prepared.images[name][0, 0].numpy())


def test_images_mask_and_labels_share_one_grid_and_their_ranges(subjects):
    loaded = load_subject(subjects[0], **COARSE)
    assert list(loaded.images) == ["T1", "T1ce", "T2", "FLAIR"]
    for image in loaded.images.values():
        assert image.shape == loaded.mask.shape == loaded.segmentation.shape == loaded.geometry.size
        assert image.dtype == np.float32
        assert image.min() == -1 and 1 < image.max() <= BRIGHTEST
        assert image[loaded.mask].mean() > image[~loaded.mask].mean() + 0.3
    assert all(size % 8 == 0 for size in loaded.geometry.size)


def test_labels_stay_where_they_are_in_the_world(subjects):
    """The box of ``data_set`` on its own lattice: the same voxels, by number and by centre."""
    loaded = load_subject(subjects[0], **COARSE)
    assert set(np.unique(loaded.segmentation)) == {0, 1}
    assert loaded.segmentation.sum() == 4 * 7 * 2
    original = read_volume(subjects[0].segmentation)
    centre = original.geometry.index_to_world(np.argwhere(original.array).mean(axis=0))
    found = loaded.geometry.index_to_world(np.argwhere(loaded.segmentation).mean(axis=0))
    np.testing.assert_allclose(found, centre, atol=1e-4)


def test_a_segmentation_without_any_lesion_is_fine(subjects):
    empty = read_volume(subjects[0].segmentation)
    empty.array[:] = 0
    write_volume(empty, subjects[0].segmentation)
    assert not load_subject(subjects[0], **COARSE).segmentation.any()


def test_the_cache_gives_back_what_was_prepared_without_reading_again(subjects, tmp_path, monkeypatch):
    direct = load_subject(subjects[0], **COARSE)
    first = load_subject(subjects[0], cache=tmp_path / "cache", **COARSE)
    monkeypatch.setattr(cache_module, "read_volume", None)
    again = load_subject(subjects[0], cache=tmp_path / "cache", **COARSE)
    for name, image in direct.images.items():
        np.testing.assert_array_equal(first.images[name], again.images[name])
        np.testing.assert_allclose(again.images[name], image, atol=3.4e-5)
        np.testing.assert_array_equal(again.images[name] == -1, image == -1)
    np.testing.assert_array_equal(again.mask, direct.mask)
    np.testing.assert_array_equal(again.segmentation, direct.segmentation)
    assert again.geometry == direct.geometry
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_changed_files_and_settings_are_prepared_anew(subjects, tmp_path, scan):
    options = {"cache": tmp_path / "cache", **COARSE}
    before = load_subject(subjects[0], **options)
    assert load_subject(subjects[0], cache=tmp_path / "cache", spacing=(3, 3, 3)).geometry.spacing == (3, 3, 3)
    write_volume(scan("FLAIR"), subjects[0].files["T2"])
    after = load_subject(subjects[0], **options)
    assert np.abs(after.images["T2"] - before.images["T2"]).max() > 0.5
    np.testing.assert_array_equal(after.images["T1"], before.images["T1"])


def test_a_damaged_cache_file_is_made_again(subjects, tmp_path):
    options = {"cache": tmp_path / "cache", **COARSE}
    first = load_subject(subjects[0], **options)
    (file,) = (tmp_path / "cache").iterdir()
    file.write_bytes(file.read_bytes()[:1000])
    np.testing.assert_array_equal(load_subject(subjects[0], **options).images["T1"], first.images["T1"])


def test_a_cache_that_can_not_be_written_says_so_and_leaves_nothing(subjects, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="can't be written"):
        load_subject(subjects[0], cache=tmp_path / "file", **COARSE)

    def full(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache_module, "save_file", full)
    with pytest.raises(OutputError, match="No space left"):
        load_subject(subjects[0], cache=tmp_path / "cache", **COARSE)
    assert not list((tmp_path / "cache").iterdir())


def test_errors_name_the_subject(subjects):
    subjects[1].files["T2"].write_bytes(b"")
    with pytest.raises(InputError, match=r"Subject 'BraTS2021_00001': .*_t2\.nii\.gz' is truncated"):
        load_subject(subjects[1], **COARSE)


# --- registration of a subject --------------------------------------------------------------------------------------


@pytest.fixture
def ixi(tmp_path, scan, said):
    """A subject of IXI: T2 and PD on one grid and in one place, turned and shifted against the T1."""
    rotation = Rotation.from_euler("xyz", (3.0, -2.0, 4.0), degrees=True).as_matrix()
    grid = Geometry((30, 36, 26), (2.0, 2.0, 2.4), (-28.0, -34.0, -30.0))
    for contrast in ("T1", "T2", "PD"):
        volume = scan("T1") if contrast == "T1" else scan(contrast, grid, rotation, np.array((3.0, -4.0, 2.0)))
        (tmp_path / f"IXI-{contrast}").mkdir()
        write_volume(volume, tmp_path / f"IXI-{contrast}" / f"IXI002-Guys-0828-{contrast}.nii.gz")
    return find_subjects(tmp_path, report=said.report)[0]


def test_registration_aligns_t2_and_pd_with_one_cached_transform(ixi, tmp_path, scan):
    options = {"cache": tmp_path / "cache", **COARSE}
    loaded = load_subject(ixi, register=True, **options)
    crooked = load_subject(ixi, **options)
    for contrast in ("T2", "PD"):
        truth = scan(contrast, loaded.geometry).array[loaded.mask]
        aligned = np.corrcoef(truth, loaded.images[contrast][loaded.mask])[0, 1]
        assert aligned > 0.98
        assert aligned > np.corrcoef(truth, crooked.images[contrast][loaded.mask])[0, 1] + 0.05
    (transform,) = (tmp_path / "cache" / "transforms").iterdir()
    assert transform.name.startswith("IXI002-Guys-0828-T2-to-T1-")
    assert transform.suffix == ".tfm"


# --- pairs ----------------------------------------------------------------------------------------------------------


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def cached(tmp_path):
    return {"cache": tmp_path / "cache", **COARSE}


def test_pairs_are_crops_of_one_subject_in_the_range_of_the_networks(subjects, cached):
    pairs = list(islice(subject_pairs(subjects, generator(), shapes=SHAPES, **cached), 40))
    for pair in pairs:
        assert isinstance(pair, Pair)
        assert pair.target not in pair.sources
        assert pair.subject in {subject.name for subject in subjects}
        assert 1 <= len(pair.sources) <= 3
        for image, brightest in ((pair.image, BRIGHTEST), *((source, 1) for source in pair.sources.values())):
            assert image.shape == (1, 1, *SHAPES[0])
            assert image.dtype == torch.float32
            assert -1 <= image.min() < image.max() <= brightest + 1e-4  # of rounding in the cache
    assert {pair.target for pair in pairs} == {"T1", "T1ce", "T2", "FLAIR"}
    assert {len(pair.sources) for pair in pairs} == {1, 2, 3}


def test_crops_are_pieces_of_the_scan_flipped_at_most_from_left_to_right(subjects, cached):
    """Every crop is found, voxel by voxel, in the scan or in its mirror image, and both occur."""
    loaded = load_subject(subjects[0], **cached)
    whole = loaded.images
    seen, lesion_voxels = set(), 0
    for pair in islice(subject_pairs(subjects[:1], generator(), shapes=[(16, 8, 16)], **cached), 16):
        crop = pair.image[0, 0].numpy()
        for flipped in (False, True):
            step = -1 if flipped else 1
            windows, lesions = (
                np.lib.stride_tricks.sliding_window_view(array[::step], crop.shape)
                for array in (whole[pair.target], loaded.segmentation)
            )
            if len(place := np.argwhere((windows == crop).all(axis=(3, 4, 5)))):
                np.testing.assert_array_equal(pair.lesions[0, 0], lesions[tuple(place[0])] > 0)
                seen.add(flipped)
                lesion_voxels += int(pair.lesions.sum())
                break
        else:
            pytest.fail("a crop that is no piece of the scan")
    assert seen == {False, True}
    assert lesion_voxels > 0


def test_artefacts_change_the_sources_alone_and_leave_the_background_but_for_soft_edges(subjects, cached):
    """With the same draws until the first source, the same crop: its target is the acquired one to the bit."""
    options = {"shapes": [(24, 24, 24)], "pairs_per_case": 1, **cached}
    plain = next(subject_pairs(subjects, generator(3), **options))
    again = next(subject_pairs(subjects, generator(3), artefacts=1.0, **options))
    assert again.target == plain.target and torch.equal(again.image, plain.image)
    for name, image in plain.sources.items():
        changed = again.sources[name]
        assert -1 <= changed.min() and changed.max() <= 1
        away = torch.from_numpy(ndimage.distance_transform_edt(image[0, 0] == -1))[None, None]
        assert (changed[away > 10] == -1).all() and (changed[image == -1] == -1).float().mean() > 0.3
        assert 0.01 < (changed - image).abs().mean() < 0.5
        inside = image > -1
        assert torch.corrcoef(torch.stack([image[inside], changed[inside]]))[0, 1] > 0.7


def test_only_the_contrasts_that_are_asked_for_are_targets_and_all_are_sources(subjects, cached):
    pairs = list(islice(subject_pairs(subjects, generator(), shapes=SHAPES, targets=["T2", "FLAIR"], **cached), 40))
    assert {pair.target for pair in pairs} == {"T2", "FLAIR"}
    assert {name for pair in pairs for name in pair.images} == {"T2", "FLAIR"}
    assert {name for pair in pairs for name in pair.sources} == {"T1", "T1ce", "T2", "FLAIR"}
    with pytest.raises(InputError, match=r"Subject 'BraTS\w+' has none of the contrasts to learn: PD\."):
        next(subject_pairs(subjects, generator(), shapes=SHAPES, targets=["PD"], **cached))


def test_scans_smaller_than_the_crop_are_padded_with_background(subjects):
    pair = next(subject_pairs(subjects, generator(), shapes=[(48, 48, 48)], **COARSE))
    assert pair.image.shape == (1, 1, 48, 48, 48)
    assert (pair.image == -1).float().mean() > 0.5
    assert pair.image.max() > 0.9


def test_a_crop_in_which_the_head_is_tiny_is_taken_all_the_same(subjects):
    pair = next(subject_pairs(subjects, generator(), shapes=[(96, 96, 96)], **COARSE))
    assert 0 < (pair.image > -1).float().mean() < 0.05


def test_the_same_generator_gives_the_same_pairs(subjects, tmp_path):
    options = {"shapes": [(16, 16, 16), (8, 16, 24)], "cache": tmp_path / "cache", **COARSE}
    one, two = (islice(subject_pairs(subjects, generator(5), **options), 8) for _ in range(2))
    for a, b in zip(one, two, strict=True):
        assert (a.target, list(a.sources)) == (b.target, list(b.sources))
        assert torch.equal(a.image, b.image)
        assert all(torch.equal(a.sources[name], b.sources[name]) for name in a.sources)


def test_a_file_that_breaks_in_an_epoch_is_skipped_with_one_warning(subjects, said, cached):
    pairs = subject_pairs(subjects, generator(), shapes=SHAPES, report=said.report, **cached)
    next(pairs)
    said.lines.clear()
    subjects[1].files["FLAIR"].write_bytes(b"")
    assert len(list(islice(pairs, 40))) == 40
    assert len(said.lines) == 1
    assert said.lines[0].startswith("Skipped (1 so far): Subject 'BraTS2021_00001': ")


def test_a_file_that_breaks_in_an_epoch_stops_it_where_that_is_asked_for(subjects, said, cached):
    subjects[1].files["FLAIR"].write_bytes(b"")
    pairs = subject_pairs(subjects, generator(), shapes=SHAPES, policy="stop", report=said.report, **cached)
    with pytest.raises(InputError, match="BraTS2021_00001"):
        list(islice(pairs, 100))
    with pytest.raises(InputError, match="'ignore' is no policy"):
        next(subject_pairs(subjects, generator(), shapes=SHAPES, policy="ignore", **cached))


def test_pairs_end_with_an_error_when_no_subject_is_left(subjects, said):
    for subject in subjects:
        subject.files["T1"].unlink()
    with pytest.raises(InputError, match="None of the 3 subjects can be used"):
        next(subject_pairs(subjects, generator(), shapes=SHAPES, report=said.report, **COARSE))
    assert len(said.lines) == 3 + 1  # and what find_subjects said
    with pytest.raises(InputError, match="None of the 0 subjects"):
        next(subject_pairs([], generator(), shapes=SHAPES))
    with pytest.raises(InputError, match="'x' has fewer than two contrasts"):
        next(subject_pairs([Subject("x", {"T1": Path("t1.nii")})], generator(), shapes=SHAPES))


def test_what_was_skipped_does_not_change_the_pairs_that_follow(subjects, said, cached):
    """A resumed run, that has not met the broken subject yet, draws the same pairs as one that has."""
    subjects[2].files["T1"].write_bytes(b"")
    options = {"shapes": SHAPES, "report": said.report, "pairs_per_case": 1, **cached}
    source = generator(1)
    pairs = subject_pairs(subjects, source, **options)
    list(islice(pairs, 10))
    assert "BraTS2021_00002" in said.lines[-1]
    resumed = generator()
    resumed.set_state(source.get_state())
    for a, b in islice(zip(pairs, subject_pairs(subjects, resumed, **options), strict=True), 6):
        assert torch.equal(a.image, b.image)


def test_subjects_kept_in_memory_are_loaded_once_and_give_the_same_pairs(subjects, said):
    fresh = list(islice(subject_pairs(subjects, generator(5), shapes=SHAPES, **COARSE), 8))
    load = in_memory(subjects, len(subjects), **COARSE)
    kept = list(islice(subject_pairs(subjects, generator(5), shapes=SHAPES, load=load), 8))
    assert all(torch.equal(a.image, b.image) and str(a) == str(b) for a, b in zip(fresh, kept, strict=True))
    assert load(subjects[0]) is load(subjects[0])


def test_a_broken_subject_is_named_through_the_memory_cache_too(subjects, said, tmp_path):
    (tmp_path / "t1.nii.gz").write_bytes(b"no image")
    broken = replace(subjects[0], name="broken", files={**subjects[0].files, "T1": tmp_path / "t1.nii.gz"})
    everyone = [*subjects, broken]
    skipped = {}
    loaded = list(load_each(everyone, load=in_memory(everyone, 8, **COARSE), skipped=skipped, report=said.report))
    assert [case.name for case in loaded] == [subject.name for subject in subjects]
    assert "'broken'" in skipped["broken"]


def test_load_each_counts_what_it_skips(subjects, said):
    subjects[0].files["T1"].write_bytes(b"")
    skipped = {}
    loaded = list(load_each([*subjects, *subjects], skipped=skipped, report=said.report, **COARSE))
    assert [subject.name for subject in loaded] == ["BraTS2021_00001", "BraTS2021_00002"] * 2
    assert list(skipped) == ["BraTS2021_00000"]


def test_streams_that_share_what_they_skip_warn_once(subjects, said, cached):
    subjects[0].files["T1"].write_bytes(b"")
    said.lines.clear()
    skipped = {}
    for seed in range(6):
        next(subject_pairs(subjects, generator(seed), shapes=SHAPES, skipped=skipped, report=said.report, **cached))
    assert list(skipped) == ["BraTS2021_00000"]
    assert len(said.lines) == 1


def test_streams_are_mixed_in_their_shares():
    a, b = Pair({}, "T1", torch.zeros(1)), Pair({}, "T2", torch.zeros(1))
    rows = list(islice(mixed_pairs([repeat(a), repeat(b)], [1, 1], generator(), in_a_row=3), 60))
    assert all(rows[i] is rows[i + 1] is rows[i + 2] for i in range(0, 60, 3))
    assert {pair.target for pair in rows} == {"T1", "T2"}
    mixed = islice(mixed_pairs([repeat(a), repeat(b)], [3, 1], generator()), 2000)
    assert sum(pair is a for pair in mixed) / 2000 == pytest.approx(0.75, abs=0.04)


def test_real_scans_become_canonical_subjects(real_data, said):
    subject = next(s for s in find_subjects(real_data / "subjects", report=said.report) if s.name == "open-ms-07")
    loaded = load_subject(Subject(subject.name, {"T1": subject.files["T1"]}, subject.segmentation), spacing=(3, 3, 3))
    lesions = loaded.segmentation > 0
    assert lesions.any()
    assert loaded.mask[lesions].mean() > 0.95


def test_grids_in_other_places_are_a_geometry_error_of_the_subject(subjects, scan):
    away = Geometry((24, 28, 24), (2.5, 2.5, 2.5), (300.0, 0.0, 0.0))
    write_volume(scan("T2", away, np.eye(3), np.add(away.origin, 30.0)), subjects[0].files["T2"])
    with pytest.raises(GeometryError, match="Subject 'BraTS2021_00000': "):
        load_subject(subjects[0], **COARSE)
