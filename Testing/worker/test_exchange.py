"""Voxels through files, and the folders that hold them."""

import os
import stat
import subprocess
import sys

import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from MissingModalitySynthLib.errors import InputError, OutputError
from MissingModalitySynthLib.volume import Geometry, Volume
from MissingModalitySynthLib.worker import exchange
from MissingModalitySynthLib.worker.protocol import decode, encode

DTYPES = st.sampled_from(["u1", "<i2", ">i2", "<u4", "<i8", "<f2", "<f4", ">f4", "<f8", "?"])


def drain(steps):
    """What a generator returns, and after how many steps."""
    count = 0
    while True:
        try:
            next(steps)
        except StopIteration as finished:
            return finished.value, count
        count += 1


@settings(max_examples=60, deadline=None)
@given(
    DTYPES.flatmap(lambda dtype: arrays(dtype, array_shapes(min_dims=3, max_dims=3, max_side=7))),
    st.permutations((0, 1, 2)),
    st.sampled_from((1, 2)),
)
def test_numpy_reads_what_was_written_and_the_other_way_round_in_any_layout(tmp_path_factory, array, axes, step):
    array = array.transpose(axes)[:, ::step]
    folder = tmp_path_factory.mktemp("arrays")
    drain(exchange.write_array(array, folder / "ours.npy"))
    np.save(folder / "theirs.npy", array)
    for found in (np.load(folder / "ours.npy"), drain(exchange.read_array(folder / "theirs.npy"))[0]):
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_large_array_takes_several_steps_each_of_a_part_of_it(tmp_path, monkeypatch, order):
    monkeypatch.setattr(exchange, "_SLAB_BYTES", 1000)
    array = np.asarray(np.arange(10 * 20 * 30, dtype=np.int16).reshape(10, 20, 30), order=order)
    _, written = drain(exchange.write_array(array, tmp_path / "a.npy"))
    found, read = drain(exchange.read_array(tmp_path / "a.npy"))
    np.testing.assert_array_equal(found, array)
    assert written == read >= 10


def test_voxels_that_are_no_real_numbers_are_refused(tmp_path):
    for array in (np.zeros((2, 2, 2), complex), np.full((2, 2, 2), None), np.zeros((2, 2, 2), "f4,f4")):
        with pytest.raises(InputError, match="plain numbers"):
            drain(exchange.write_array(array, tmp_path / "a.npy"))


def test_a_file_that_was_cut_off_is_noticed(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((4, 5, 6)))
    os.truncate(tmp_path / "a.npy", 500)
    with pytest.raises(OSError, match="incomplete"):
        drain(exchange.read_array(tmp_path / "a.npy"))


@settings(max_examples=50, deadline=None)
@given(
    st.tuples(*[st.floats(1e-3, 1e3)] * 3),
    st.tuples(*[st.floats(-1e4, 1e4)] * 3),
    st.floats(0, 6.3, allow_nan=False),
)
def test_geometry_and_name_arrive_bit_for_bit(spacing, origin, angle):
    direction = ((np.cos(angle), -np.sin(angle), 0), (np.sin(angle), np.cos(angle), 0), (0, 0, 1))
    array = np.zeros((2, 3, 4))
    sent = Volume(array, Geometry(array.shape, spacing, origin, direction), "Zoë's scan")
    message = decode(encode("result", volume=exchange.describe(sent, exchange.Path("a.npy"))))
    found = exchange.restore(message["volume"], array)
    assert (found.geometry, found.name) == (sent.geometry, sent.name)


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps the user's temporary folder private by other means")
def test_only_the_user_can_open_the_folder(tmp_path):
    before = os.umask(0)
    try:
        folder = exchange.create_folder(tmp_path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_temporary_folder_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(OutputError, match=r"absent.*TMPDIR"):
        exchange.create_folder(tmp_path / "absent")


def test_folders_of_dead_processes_are_swept_and_no_others(tmp_path):
    code = (
        "from MissingModalitySynthLib.worker.exchange import Path, create_folder\n"
        f"folder = create_folder(Path({str(tmp_path)!r}))\n"
        "(folder / 'job-1').mkdir()\n(folder / 'job-1' / 'a.npy').touch()\nprint(folder)"
    )
    command = [sys.executable, "-c", code]
    dead = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    own = exchange.create_folder(tmp_path)
    other_host = tmp_path / "mms-00000000-999999999-abc"
    other_host.mkdir()
    reused = tmp_path / own.name.replace(own.name.split("-")[-1], "older")
    reused.mkdir()
    before = psutil.Process().create_time() - 100
    os.utime(reused, (before, before))  # as if another process had made it before this one got its number
    assert os.path.isdir(dead)
    exchange.sweep(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([own, other_host])


def test_a_link_with_the_name_of_a_folder_is_left_alone(tmp_path):
    target = tmp_path / "precious"
    target.mkdir()
    link = tmp_path / f"mms-{exchange._HOST}-999999999-link"
    try:
        link.symlink_to(target, target_is_directory=True)
    except OSError:
        pytest.skip("this system does not allow links")
    exchange.sweep(tmp_path)
    assert link.is_symlink() and target.is_dir()
