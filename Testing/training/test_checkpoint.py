"""Checkpoints: whole, or the one before."""

import pytest
import torch
from torch import nn

from MissingModalitySynthLib.errors import InputError, OutputError
from training.checkpoint import averaged_weights, load_checkpoint, save_checkpoint


def parts(seed, width=4):
    torch.manual_seed(seed)
    model = nn.Conv3d(1, width, 3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(2):
        model(torch.randn(1, 1, 3, 3, 3)).sum().backward()
        optimizer.step()
    return {"model": model, "average": nn.Conv3d(1, width, 3), "optimizer": optimizer}


def state(**changes):
    return {"step": 2, "configuration": {"seed": 0, "data": {"shapes": [[8, 8, 8]]}}} | changes


def test_what_is_saved_is_restored_with_the_optimizers_moments(tmp_path):
    saved, restored = parts(0), parts(1)
    path = tmp_path / "run" / "checkpoint.safetensors"
    save_checkpoint(path, state=state(), **saved)
    assert load_checkpoint(path, configuration=state()["configuration"], **restored) == state()
    for name in ("model", "average"):
        assert torch.equal(saved[name].weight, restored[name].weight)
    moments = [each["optimizer"].state_dict()["state"] for each in (saved, restored)]
    for index, values in moments[0].items():
        for name, value in values.items():
            assert torch.equal(value, moments[1][index][name])
    weights, step = averaged_weights(path)
    assert step == 2
    assert torch.equal(weights["weight"], saved["average"].weight)
    assert [file.name for file in path.parent.iterdir()] == ["checkpoint.safetensors"]


def test_another_configuration_is_refused_and_nothing_is_loaded(tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    save_checkpoint(path, state=state(), **parts(0))
    other = parts(1)
    before = other["model"].weight.clone()
    with pytest.raises(InputError, match=r"another configuration \(different: data\.shapes, networks\)"):
        load_checkpoint(path, configuration={"seed": 0, "data": {"shapes": []}, "networks": "full"}, **other)
    assert torch.equal(other["model"].weight, before)


def test_a_full_disk_leaves_the_checkpoint_before_and_nothing_else(tmp_path):
    resource = pytest.importorskip("resource")
    path = tmp_path / "checkpoint.safetensors"
    save_checkpoint(path, state=state(), **parts(0))
    content = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # the system then fails to write, as on a full disk
    try:
        with pytest.raises(OutputError, match=r"cannot be written.*the one before is kept"):
            save_checkpoint(path, state=state(step=3), **parts(1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == content
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.safetensors"]


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", "half"])
def test_a_damaged_checkpoint_is_one_sentence_with_its_name(tmp_path, content):
    path = tmp_path / "checkpoint.safetensors"
    save_checkpoint(path, state=state(), **parts(0))
    path.write_bytes(path.read_bytes()[:700] if content == "half" else content)
    with pytest.raises(InputError, match=r"checkpoint\.safetensors' cannot be read"):
        load_checkpoint(path, configuration=state()["configuration"], **parts(1))
