"""The bundled weights on a real scan: the contrasts that they make look like what they are called."""

import numpy as np
import pytest
from nilearn.datasets import (
    load_mni152_brain_mask,
    load_mni152_gm_template,
    load_mni152_template,
    load_mni152_wm_template,
)
from scipy import ndimage

from MissingModalitySynthLib.model_package import verify
from MissingModalitySynthLib.package_format import ZERO_SHOT
from MissingModalitySynthLib.request import Request
from MissingModalitySynthLib.segmentation import CLASSES, segment
from MissingModalitySynthLib.synthesis import synthesize
from MissingModalitySynthLib.volume_io import read_volume

PACKAGE = verify("micro")


@pytest.fixture(scope="module")
def mni_t1(tmp_path_factory):
    path = tmp_path_factory.mktemp("mni") / "mni152_T1.nii.gz"
    load_mni152_template(resolution=1).to_filename(path)
    return read_volume(path)


@pytest.fixture(scope="module")
def tissues():
    """Masks of what is surely grey matter, white matter and ventricles, from maps that the program never sees."""
    grey, white, brain = (
        np.asarray(load(resolution=1).dataobj, dtype=np.float32)
        for load in (load_mni152_gm_template, load_mni152_wm_template, load_mni152_brain_mask)
    )
    fluid = (brain > 0) & (grey + white < 0.1)
    fluid = ndimage.binary_erosion(fluid)  # the inside of the ventricles, not the thin sulci
    return {"grey": grey > 0.8, "white": white > 0.9, "fluid": fluid}


@pytest.mark.parametrize("method", [method for method in PACKAGE.methods if method != ZERO_SHOT])
def test_the_t2_and_the_flair_from_the_mni_t1_order_the_tissues_as_real_ones_do(mni_t1, tissues, method):
    result = synthesize(Request({"T1": mni_t1}, ["T2", "FLAIR"], PACKAGE, method=method, device="cpu"))
    t2, flair = (
        {name: float(np.median(result.volumes[target].array[mask])) for name, mask in tissues.items()}
        for target in ("T2", "FLAIR")
    )
    assert t2["fluid"] > 1.3 * t2["grey"], t2
    assert t2["grey"] > 1.05 * t2["white"], t2
    assert flair["fluid"] < 0.6 * flair["white"], flair
    assert flair["grey"] > 1.02 * flair["white"], flair


def test_the_segmenter_finds_what_is_surely_a_tissue_of_the_mni_t1(mni_t1, tissues):
    labels = segment(mni_t1, PACKAGE, device="cpu").array
    for name, right in (("fluid", ["CSF"]), ("grey", ["grey matter", "deep grey matter"]), ("white", ["white matter"])):
        found = np.isin(labels[tissues[name]], [CLASSES.index(each) for each in right]).mean()
        assert found > 0.75, name


def test_every_bundled_weights_file_is_at_most_16_mb():
    assert all(path.stat().st_size <= 16_000_000 for path in PACKAGE.path.rglob("*.safetensors"))
