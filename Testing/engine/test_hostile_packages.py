"""Model packages: nothing damaged, malformed, unsafe or executable gets past the reader."""

import hashlib
import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from MissingModalitySynthLib.errors import ModelPackageError
from MissingModalitySynthLib.model_package import load_package, verify
from MissingModalitySynthLib.package_format import is_safe_path
from MissingModalitySynthLib.package_store import install_package

pytestmark = pytest.mark.usefixtures("user_models")

FILES = ["configs/metadata.json", "configs/networks.json", "docs/README.md", "LICENSE", "models/aldm.safetensors"]


def seal(folder: Path) -> Path:
    """Write SHA256SUMS anew, as whoever makes a hostile package would."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "SHA256SUMS")
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(folder).as_posix()}" for path in files
    ]
    (folder / "SHA256SUMS").write_text("\n".join(lines) + "\n")
    return folder


def edit_json(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# Damage


@pytest.mark.parametrize("path", FILES)
def test_one_changed_byte_in_any_file_is_found_and_the_file_named(micro, path):
    data = bytearray((micro / path).read_bytes())
    data[len(data) // 2] ^= 1
    (micro / path).write_bytes(data)
    with pytest.raises(ModelPackageError, match=f'"micro" is damaged, as {path} .*reinstall it'):
        verify(micro)


@pytest.mark.parametrize("change", ["changed", "removed", "truncated"])
def test_weights_damaged_after_loading_are_found_when_they_are_read(micro, change):
    package, path = load_package(micro), micro / "models" / "aldm.safetensors"
    if change == "removed":
        path.unlink()
    else:
        data = path.read_bytes()
        path.write_bytes(data[:-1] if change == "truncated" else data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ModelPackageError, match=r"aldm\.safetensors"):
        package.weights()
    assert package.weights("regression").keys() == {"bias"}


@pytest.mark.parametrize("path", [*FILES, "SHA256SUMS"])
def test_a_missing_file_is_found_and_named(micro, path):
    (micro / path).unlink()
    with pytest.raises(ModelPackageError, match=path):
        load_package(micro)


@pytest.mark.parametrize("path", FILES)
def test_a_file_that_neither_exists_nor_is_listed_is_missed_all_the_same(micro, path):
    (micro / path).unlink()
    with pytest.raises(ModelPackageError, match=path):
        load_package(seal(micro))


@pytest.mark.parametrize("path", ["notes.txt", "models/more.safetensors", ".hidden/x.txt"])
def test_a_file_that_is_not_listed_is_refused(micro, path):
    (micro / path).parent.mkdir(exist_ok=True)
    (micro / path).write_text("extra")
    with pytest.raises(ModelPackageError, match=path):
        load_package(micro)


@pytest.mark.parametrize("path", [".DS_Store", "models/Thumbs.db", "._LICENSE"])
def test_what_file_managers_leave_behind_is_ignored(micro, path):
    (micro / path).write_bytes(b"\0")
    assert load_package(micro).name == "micro"


@pytest.mark.parametrize(
    "line",
    ["no checksum", "0" * 64 + "  ../outside.txt", "0" * 64 + "  /etc/passwd", "0" * 63 + "  short.txt", "\xff\n\x00"],
)
def test_a_line_of_the_checksums_that_is_not_valid_is_refused(micro, line):
    with open(micro / "SHA256SUMS", "a") as file:
        file.write(line + "\n")
    with pytest.raises(ModelPackageError, match="SHA256SUMS has a line that is not valid"):
        load_package(micro)


@given(position=st.integers(0, 10_000), bit=st.integers(0, 7))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_flipped_bit_of_the_checksums_is_found(micro, position, bit):
    original = (micro / "SHA256SUMS").read_bytes()
    data = bytearray(original)
    data[position % len(data)] ^= 1 << bit
    (micro / "SHA256SUMS").write_bytes(data)
    try:
        package = verify(micro)
    except ModelPackageError:
        return
    finally:
        (micro / "SHA256SUMS").write_bytes(original)
    # A space may turn into the star of binary mode, and \n into another line break: the same checksums all the same.
    assert package.checksums == load_package(micro).checksums


def test_a_newer_format_asks_for_a_newer_program(micro):
    edit_json(micro / "configs" / "metadata.json", format_version=2, sources="no list any more")
    with pytest.raises(ModelPackageError, match="update the program"):
        load_package(seal(micro))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("sources", []),
        ("sources", ["T1", "T1"]),
        ("sources", ["t1w"]),
        ("targets", [["T2"]]),
        ("spacing_mm", [1, 1]),
        ("spacing_mm", [1, 1, 0]),
        ("spacing_mm", [1, 1, float("nan")]),
        ("intensity_range", [1, -1]),
        ("percentiles", [0.5, 101]),
        ("shading", "kept"),
        ("format_version", "1"),
        ("license", ""),
        ("intended_use", None),
        ("network_data_format", []),
    ],
)
def test_metadata_that_cannot_be_used_is_refused_with_the_key_named(micro, key, value):
    edit_json(micro / "configs" / "metadata.json", **{key: value})
    with pytest.raises(ModelPackageError, match=key):
        load_package(seal(micro))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"zero_shot": ["T1"]}, "zero_shot .* must be an object"),
        ({"zero_shot": {}}, "targets of zero_shot .* must be a list of different names"),
        ({"zero_shot": {"targets": ["other"]}}, "targets of zero_shot"),
        ({"zero_shot": {"targets": []}}, "targets of zero_shot"),
        ({"sources": []}, "sources .* must be a list"),
        ({"sources": [], "targets": []}, "sources .* must be a list"),
        ({"zero_shot": {"targets": ["T1"]}, "sources": []}, "sources .* must be a list"),
        ({"zero_shot": {"targets": ["T1"]}}, 'must have the method "midiffusion" if, and only if'),
        ({"zero_shot": {"targets": ["T1"]}, "sources": [], "targets": []}, 'must have the method "midiffusion"'),
    ],
)
def test_what_is_made_zero_shot_must_fit_the_methods(micro, changes, sentence):
    edit_json(micro / "configs" / "metadata.json", **changes)
    with pytest.raises(ModelPackageError, match=sentence):
        load_package(seal(micro))


@pytest.mark.parametrize("text", ["", "[]", "{", "\ufeff{}", "[" * 200_000, '{"a": ' * 5000 + "1" + "}" * 5000])
@pytest.mark.parametrize("path", ["configs/metadata.json", "configs/networks.json"])
def test_json_that_cannot_be_used_is_refused(micro, path, text):
    (micro / path).write_text(text, encoding="utf-8")
    with pytest.raises(ModelPackageError, match=path):
        load_package(seal(micro))


def test_json_larger_than_a_megabyte_is_refused(micro):
    edit_json(micro / "configs" / "networks.json", padding="x" * (1 << 20))
    with pytest.raises(ModelPackageError, match="larger"):
        load_package(seal(micro))


# Hostile content


@pytest.mark.parametrize(
    "settings_of_method",
    [
        {"network": {"_target_": "os.system", "command": "true"}},
        {"size": "$__import__('os').getpid()"},
        {"deep": [[{"reference": "@other"}]]},
        {"$key": 1},
    ],
)
def test_networks_that_ask_for_code_to_be_run_are_refused(micro, settings_of_method):
    methods = json.loads((micro / "configs" / "networks.json").read_text())["methods"]
    methods["aldm"] |= settings_of_method
    edit_json(micro / "configs" / "networks.json", methods=methods)
    with pytest.raises(ModelPackageError, match="asks for code to be run"):
        load_package(seal(micro))


@pytest.mark.parametrize(
    "weights",
    [
        ["../../outside.safetensors"],
        ["/outside.safetensors"],
        ["models/../models/aldm.safetensors"],
        ["docs/README.md"],
        ["models/none.safetensors"],
        [],
        "models/aldm.safetensors",
        [3],
    ],
)
def test_weights_outside_the_package_or_of_another_kind_are_refused(micro, weights):
    save_file({"x": torch.zeros(1)}, micro.parent / "outside.safetensors")
    edit_json(micro / "configs" / "networks.json", methods={"aldm": {"weights": weights}})
    with pytest.raises(ModelPackageError, match="weights"):
        load_package(seal(micro))


@pytest.mark.parametrize("default", [None, "other", ["aldm"]])
def test_a_default_method_that_the_package_lacks_is_refused(micro, default):
    edit_json(micro / "configs" / "networks.json", default_method=default)
    with pytest.raises(ModelPackageError, match="default_method"):
        load_package(seal(micro))


class Bomb:
    """Pickled, it makes a folder as soon as it is loaded."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("name", ["aldm.pt", "aldm.ckpt", "aldm.pkl", "aldm.SAFETENSORS", "run.py"])
def test_files_that_may_hold_code_are_refused_even_when_listed(micro, name):
    (micro / "models" / name).write_bytes(pickle.dumps(Bomb(micro / "ran")))
    with pytest.raises(ModelPackageError, match=f"{name}, and weights must be .safetensors"):
        load_package(seal(micro))


def test_a_pickle_named_safetensors_is_refused_and_not_run(micro):
    (micro / "models" / "aldm.safetensors").write_bytes(pickle.dumps(Bomb(micro / "ran")))
    seal(micro)
    for use in (verify, install_package, lambda path: load_package(path).weights()):
        with pytest.raises(ModelPackageError, match="no safetensors file"):
            use(micro)
    assert not (micro / "ran").exists()


def test_a_tensor_in_two_shards_is_refused(micro):
    save_file({"steps": torch.zeros(2)}, micro / "models" / "more.safetensors")
    weights = ["models/aldm.safetensors", "models/more.safetensors"]
    edit_json(micro / "configs" / "networks.json", methods={"aldm": {"weights": weights}})
    with pytest.raises(ModelPackageError, match='repeats the tensor "steps"'):
        load_package(seal(micro)).weights()


@pytest.mark.parametrize("path", ["LICENSE", "models/aldm.safetensors", "docs"])
def test_links_inside_a_package_are_refused(micro, path):
    outside = micro.parent / "outside"
    shutil.move(micro / path, outside)
    try:
        (micro / path).symlink_to(outside)
    except OSError as error:
        pytest.skip(f"links cannot be made here: {error}")
    for use in (load_package, install_package):
        with pytest.raises(ModelPackageError, match=f"link.*{path}"):
            use(micro)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes cannot be made here")
def test_a_named_pipe_in_a_package_is_refused_without_waiting_for_it(micro):
    (micro / "LICENSE").unlink()
    os.mkfifo(micro / "LICENSE")
    with pytest.raises(ModelPackageError, match="LICENSE, which is no plain file"):
        load_package(micro)


@given(st.text(alphabet="a./\\: \n\0é", max_size=12))
def test_a_safe_path_never_leaves_its_folder_on_any_platform(path):
    import ntpath
    import posixpath

    if is_safe_path(path):
        assert posixpath.normpath(posixpath.join("/models", path)).startswith("/models/")
        assert ntpath.normpath(ntpath.join("C:\\root", path)).startswith("C:\\root\\")
        assert posixpath.normpath(path) == path
