"""Model packages: what was written is read back, and what could not be read back is not written."""

import hashlib
import shutil
import subprocess
import sys

import pytest
import torch
from monai.bundle import ConfigParser
from safetensors.torch import load_file

from MissingModalitySynthLib.errors import ModelPackageError, OutputError
from MissingModalitySynthLib.model_package import load_package, verify

pytestmark = pytest.mark.usefixtures("user_models")


def test_a_written_package_is_read_back_with_all_that_was_given(micro, small_model):
    package = verify(micro)
    assert (package.name, package.title, package.description) == ("micro", "A small model", "For tests.")
    assert (package.sources, package.targets, package.spacing) == (("T1",), ("T2", "FLAIR"), (1.0, 1.0, 1.5))
    assert (package.methods, package.default_method) == (("aldm", "regression"), "aldm")
    assert package.configuration() == small_model.networks["methods"]["aldm"]
    assert package.configuration("regression") == {"depth": 3}
    assert package.digest == hashlib.sha256((micro / "SHA256SUMS").read_bytes()).hexdigest()
    assert package.metadata["pytorch_version"].split("+")[0] == torch.__version__.split("+")[0]


def test_changing_a_configuration_leaves_the_package_as_it_is(micro):
    package = load_package(micro)
    package.configuration()["channels"].append(32)
    assert package.configuration()["channels"] == [8, 16]


def test_floating_weights_come_back_rounded_to_float16_and_integers_exactly(micro, small_model):
    for method, given_tensors in small_model.tensors.items():
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


def test_large_weights_are_split_into_shards_that_fit_and_merge_to_the_same_tensors(tmp_path, small_model):
    whole = small_model.write(tmp_path / "whole")
    split = small_model.write(tmp_path / "split", shard_bytes=1024)
    shards = sorted((split.path / "models").glob("aldm-*.safetensors"))
    assert shards[0].name == f"aldm-00001-of-{len(shards):05}.safetensors"
    assert len(shards) > 1
    assert max(path.stat().st_size for path in shards) <= 1024
    merged, expected = split.weights(), whole.weights()
    assert merged.keys() == expected.keys()
    assert all(torch.equal(merged[name], expected[name]) for name in expected)


def test_the_same_content_gives_the_same_digest_and_other_weights_another(tmp_path, small_model):
    first, second = small_model.write(tmp_path / "a"), small_model.write(tmp_path / "b")
    small_model.tensors["aldm"]["steps"][0] = 99
    assert first.digest == second.digest != small_model.write(tmp_path / "c").digest


def test_tensors_that_share_memory_are_written(tmp_path, small_model):
    weight = torch.ones(3, 4, dtype=torch.float16)
    package = small_model.write(
        tmp_path / "tied", tensors=small_model.tensors | {"regression": {"a": weight, "b": weight.T}}
    )
    assert package.weights("regression")["b"].shape == (4, 3)


@pytest.mark.parametrize("value", [1e6, float("nan")])
def test_weights_that_float16_cannot_hold_are_not_written(tmp_path, small_model, value):
    with pytest.raises(ModelPackageError, match="not finite as float16"):
        small_model.write(
            tmp_path / "overflow", tensors=small_model.tensors | {"regression": {"bias": torch.tensor([value])}}
        )
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
def test_methods_without_tensors_or_with_unsafe_names_are_not_written(
    tmp_path, small_model, methods, trained, sentence
):
    networks = {"default_method": "aldm", "methods": {name: {} for name in methods}}
    with pytest.raises(ModelPackageError, match=sentence):
        small_model.write(
            tmp_path / "no", networks=networks, tensors=dict.fromkeys(trained, small_model.tensors["aldm"])
        )
    assert not (tmp_path / "no").exists()


def test_an_existing_package_is_replaced_only_on_request(micro, small_model):
    before = load_package(micro).digest
    with pytest.raises(ModelPackageError, match="there already"):
        small_model.write(micro, model_card="# Another\n")
    assert load_package(micro).digest == before
    assert small_model.write(micro, model_card="# Another\n", replace=True).digest != before


def test_a_refused_write_leaves_neither_a_package_nor_a_temporary_folder(tmp_path, small_model):
    with pytest.raises(ModelPackageError, match="sources"):
        small_model.write(tmp_path / "made" / "wrong", metadata=small_model.metadata | {"sources": ["T9"]})
    assert list((tmp_path / "made").iterdir()) == []


def test_a_folder_that_cannot_be_written_is_an_output_error(tmp_path, small_model):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="cannot be written"):
        small_model.write(tmp_path / "file" / "micro")


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


def test_a_method_that_the_package_lacks_is_refused_with_those_it_has(micro):
    with pytest.raises(ModelPackageError, match="aldm, regression"):
        load_package(micro).weights("midiffusion")


def test_a_package_says_which_targets_each_method_makes_and_which_sources_it_takes(tmp_path, small_model):
    networks = {"default_method": "regression", "methods": {"regression": {}, "midiffusion": {}}}
    weights = dict.fromkeys(("regression", "midiffusion"), small_model.tensors["regression"])
    zero_shot = {"zero_shot": {"targets": ["PD"]}}
    both = small_model.write(
        tmp_path / "both", metadata=small_model.metadata | zero_shot, networks=networks, tensors=weights
    )
    assert (both.targets_of("regression"), both.targets_of("midiffusion")) == (("T2", "FLAIR"), ("PD",))
    assert both.methods_from(["T1"]) == ("regression", "midiffusion")
    assert both.methods_from(["T1", "other"]) == both.methods_from(["PD"]) == ("midiffusion",)
    assert (both.method_for(["T1"]), both.method_for(["other"])) == ("regression", "midiffusion")
    alone = small_model.write(
        tmp_path / "alone",
        metadata=small_model.metadata | zero_shot | {"sources": [], "targets": []},
        networks={"default_method": "midiffusion", "methods": {"midiffusion": {}}},
        tensors={"midiffusion": small_model.tensors["regression"]},
    )
    assert (alone.sources, alone.targets, alone.zero_shot_targets) == ((), (), ("PD",))
    assert (alone.method_for(["T1"]), alone.methods_from(["T1", "T2"])) == ("midiffusion", ("midiffusion",))


def test_a_package_of_before_makes_nothing_zero_shot(micro):
    package = load_package(micro)
    assert package.zero_shot_targets == ()
    assert package.methods_from(["other"]) == ()
    assert package.method_for(["other"]) == "aldm"
