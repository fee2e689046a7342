"""Model packages: what was written is read back, and nothing damaged, unsafe or executable gets past the reader."""

import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from monai.bundle import ConfigParser
from safetensors.torch import load_file, save_file

from MissingModalitySynthLib.errors import ModelPackageError, OutputError
from MissingModalitySynthLib.model_package import ModelPackage, load_package, verify
from MissingModalitySynthLib.package_format import is_safe_path
from MissingModalitySynthLib.package_store import install_package, write_package

METADATA = {
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
}
NETWORKS = {
    "default_method": "aldm",
    "methods": {"aldm": {"channels": [8, 16], "norm": {"eps": 1e-5}}, "regression": {"depth": 3}},
}


def tensors() -> dict[str, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(7)
    aldm = {f"block.{i}.weight": torch.randn(10, 12, generator=generator) for i in range(5)}
    return {"aldm": aldm | {"steps": torch.arange(4)}, "regression": {"bias": torch.randn(6, generator=generator)}}


def write(folder: Path, **changes) -> ModelPackage:
    content = {"metadata": METADATA, "networks": NETWORKS, "tensors": tensors(), "model_card": "# A small model\n"}
    return write_package(folder, **content | {"licence": "Apache-2.0\n"} | changes)


@pytest.fixture(autouse=True)
def user_models(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("MISSING_MODALITY_SYNTH_MODELS", str(tmp_path / "user"))


@pytest.fixture
def micro(tmp_path) -> Path:
    return write(tmp_path / "micro").path


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


def test_a_written_package_is_read_back_with_all_that_was_given(micro):
    package = verify(micro)
    assert (package.name, package.title, package.description) == ("micro", "A small model", "For tests.")
    assert (package.sources, package.targets, package.spacing) == (("T1",), ("T2", "FLAIR"), (1.0, 1.0, 1.5))
    assert (package.methods, package.default_method) == (("aldm", "regression"), "aldm")
    assert package.configuration() == NETWORKS["methods"]["aldm"]
    assert package.configuration("regression") == {"depth": 3}
    assert package.digest == hashlib.sha256((micro / "SHA256SUMS").read_bytes()).hexdigest()
    assert package.metadata["pytorch_version"].split("+")[0] == torch.__version__.split("+")[0]


def test_changing_a_configuration_leaves_the_package_as_it_is(micro):
    package = load_package(micro)
    package.configuration()["channels"].append(32)
    assert package.configuration()["channels"] == [8, 16]


def test_floating_weights_come_back_rounded_to_float16_and_integers_exactly(micro):
    for method, given_tensors in tensors().items():
        stored = load_package(micro).weights(method)
        assert stored.keys() == given_tensors.keys()
        for name, tensor in given_tensors.items():
            expected = tensor.half() if tensor.is_floating_point() else tensor
            assert stored[name].dtype == expected.dtype
            assert torch.equal(stored[name], expected)


def test_weights_equal_what_the_safetensors_library_reads_from_the_file(micro):
    expected = load_file(micro / "models" / "aldm.safetensors")
    stored = load_package(micro).weights()
    assert stored.keys() == expected.keys()
    assert all(torch.equal(stored[name], expected[name]) for name in expected)


def test_large_weights_are_split_into_shards_that_fit_and_merge_to_the_same_tensors(tmp_path):
    whole = write(tmp_path / "whole")
    split = write(tmp_path / "split", shard_bytes=1024)
    shards = sorted((split.path / "models").glob("aldm-*.safetensors"))
    assert shards[0].name == f"aldm-00001-of-{len(shards):05}.safetensors"
    assert len(shards) > 1
    assert max(path.stat().st_size for path in shards) <= 1024
    merged, expected = split.weights(), whole.weights()
    assert merged.keys() == expected.keys()
    assert all(torch.equal(merged[name], expected[name]) for name in expected)


def test_the_same_content_gives_the_same_digest_and_other_weights_another(tmp_path):
    other = tensors()
    other["aldm"]["steps"][0] = 99
    first, second = write(tmp_path / "a"), write(tmp_path / "b")
    assert first.digest == second.digest != write(tmp_path / "c", tensors=other).digest


def test_tensors_that_share_memory_are_written(tmp_path):
    weight = torch.ones(3, 4, dtype=torch.float16)
    package = write(tmp_path / "tied", tensors=tensors() | {"regression": {"a": weight, "b": weight.T}})
    assert package.weights("regression")["b"].shape == (4, 3)


@pytest.mark.parametrize("value", [1e6, float("nan")])
def test_weights_that_float16_cannot_hold_are_not_written(tmp_path, value):
    with pytest.raises(ModelPackageError, match="not finite as float16"):
        write(tmp_path / "overflow", tensors=tensors() | {"regression": {"bias": torch.tensor([value])}})
    assert not (tmp_path / "overflow").exists()


@pytest.mark.parametrize(
    ("methods", "trained", "sentence"),
    [
        ([], [], "methods"),
        (["aldm"], [], "lacks tensors"),
        (["aldm"], ["aldm", "regression"], "lacks tensors"),
        (["aldm", "../escaped"], ["aldm", "../escaped"], "plain name"),
    ],
)
def test_methods_without_tensors_or_with_unsafe_names_are_not_written(tmp_path, methods, trained, sentence):
    networks = {"default_method": "aldm", "methods": {name: {} for name in methods}}
    with pytest.raises(ModelPackageError, match=sentence):
        write(tmp_path / "no", networks=networks, tensors=dict.fromkeys(trained, tensors()["aldm"]))
    assert not (tmp_path / "no").exists()


def test_an_existing_package_is_replaced_only_on_request(micro):
    before = load_package(micro).digest
    with pytest.raises(ModelPackageError, match="there already"):
        write(micro, model_card="# Another\n")
    assert load_package(micro).digest == before
    assert write(micro, model_card="# Another\n", replace=True).digest != before


def test_a_refused_write_leaves_neither_a_package_nor_a_temporary_folder(tmp_path):
    with pytest.raises(ModelPackageError, match="sources"):
        write(tmp_path / "made" / "wrong", metadata=METADATA | {"sources": ["T9"]})
    assert list((tmp_path / "made").iterdir()) == []


def test_a_folder_that_cannot_be_written_is_an_output_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="cannot be written"):
        write(tmp_path / "file" / "micro")


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="the tool sha256sum is not installed")
def test_sha256sum_agrees_with_the_reader_on_a_good_and_on_a_damaged_package(micro):
    command = ["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"]
    assert subprocess.run(command, cwd=micro, check=False).returncode == 0
    (micro / "LICENSE").write_text("other terms\n")
    assert subprocess.run(command, cwd=micro, check=False, capture_output=True).returncode != 0


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="the tool sha256sum is not installed")
def test_checksums_written_by_sha256sum_are_read(micro):
    files = [*sorted(path.relative_to(micro).as_posix() for path in micro.rglob("*.*")), "LICENSE"]
    sums = subprocess.run(["sha256sum", "--binary", *files], cwd=micro, check=True, capture_output=True).stdout
    (micro / "SHA256SUMS").write_bytes(sums)
    assert verify(micro).name == "micro"


def test_monai_reads_the_metadata_of_the_bundle(micro):
    parser = ConfigParser()
    parser.read_meta(str(micro / "configs" / "metadata.json"))
    assert parser["_meta_::data_source"] == "Random numbers."


def test_reading_packages_does_not_import_torch(micro):
    code = (
        "import sys; from MissingModalitySynthLib import model_package as m, package_store; "
        "m.load_package(sys.argv[1]); m.verify(sys.argv[1]); m.list_packages(); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(micro)], check=False).returncode == 0


# Damage


FILES = ["configs/metadata.json", "configs/networks.json", "docs/README.md", "LICENSE", "models/aldm.safetensors"]


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


def test_a_package_says_which_targets_each_method_makes_and_which_sources_it_takes(tmp_path):
    networks = {"default_method": "regression", "methods": {"regression": {}, "midiffusion": {}}}
    weights = dict.fromkeys(("regression", "midiffusion"), tensors()["regression"])
    zero_shot = {"zero_shot": {"targets": ["PD"]}}
    both = write(tmp_path / "both", metadata=METADATA | zero_shot, networks=networks, tensors=weights)
    assert (both.targets_of("regression"), both.targets_of("midiffusion")) == (("T2", "FLAIR"), ("PD",))
    assert both.methods_from(["T1"]) == ("regression", "midiffusion")
    assert both.methods_from(["T1", "other"]) == both.methods_from(["PD"]) == ("midiffusion",)
    assert (both.method_for(["T1"]), both.method_for(["other"])) == ("regression", "midiffusion")
    alone = write(
        tmp_path / "alone",
        metadata=METADATA | zero_shot | {"sources": [], "targets": []},
        networks={"default_method": "midiffusion", "methods": {"midiffusion": {}}},
        tensors={"midiffusion": tensors()["regression"]},
    )
    assert (alone.sources, alone.targets, alone.zero_shot_targets) == ((), (), ("PD",))
    assert (alone.method_for(["T1"]), alone.methods_from(["T1", "T2"])) == ("midiffusion", ("midiffusion",))


def test_a_package_of_before_makes_nothing_zero_shot(micro):
    package = load_package(micro)
    assert package.zero_shot_targets == ()
    assert package.methods_from(["other"]) == ()
    assert package.method_for(["other"]) == "aldm"


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


def test_a_method_that_the_package_lacks_is_refused_with_those_it_has(micro):
    with pytest.raises(ModelPackageError, match="aldm, regression"):
        load_package(micro).weights("midiffusion")


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
