"""Tiled decoding against decoding at once; devices that do not do what they promise."""

import psutil
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from MissingModalitySynthLib import device as devices
from MissingModalitySynthLib.decoding import decode, decode_tiled
from MissingModalitySynthLib.device import (
    CPU,
    autocast_dtype,
    available_devices,
    choose_device,
    free_memory,
    is_out_of_memory,
)
from MissingModalitySynthLib.errors import InputError
from MissingModalitySynthLib.networks.first_stage import FirstStage
from MissingModalitySynthLib.networks.haar import HaarFirstStage


class OnlyDecodes:
    """What the decoding needs of a translator."""

    def __init__(self, stage):
        self.first_stage = stage
        self.shapes = []

    @torch.no_grad()
    def decode(self, latents):
        self.shapes.append(tuple(latents.shape[2:]))
        return self.first_stage.decode(latents)


class ConvolutionalStage(FirstStage):
    """A learned decoder in miniature: it sees 3 voxels of the latents to each side."""

    def __init__(self):
        super().__init__(channels=4, factor=2)
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Conv3d(4, 8, 5, padding=2), nn.SiLU(), nn.Upsample(scale_factor=2), nn.Conv3d(8, 1, 3, padding=1)
        )

    def raw_encode(self, image):
        return F.avg_pool3d(image, 2).expand(-1, 4, -1, -1, -1)

    def raw_decode(self, latents):
        return self.layers(latents)


def randn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_tiles_of_a_wavelet_decoder_make_the_same_image():
    translator, latents = OnlyDecodes(HaarFirstStage()), randn(1, 8, 20, 9, 13)
    tiled = decode_tiled(translator, latents, tile=8)
    assert set(translator.shapes) == {(8, 8, 8)}
    torch.testing.assert_close(tiled, translator.decode(latents), atol=1e-5, rtol=0)


def test_tiles_of_a_learned_decoder_make_nearly_the_same_image():
    translator, latents = OnlyDecodes(ConvolutionalStage()), randn(1, 4, 24, 20, 24)
    tiled, at_once = decode_tiled(translator, latents, tile=16), translator.decode(latents)
    assert tiled.shape == at_once.shape == (1, 1, 48, 40, 48)
    # white noise is the worst case: what lies beyond a border of a tile cannot be guessed from what lies within
    assert (tiled - at_once).square().mean().sqrt() < 0.15 * at_once.std()
    correlation = torch.corrcoef(torch.stack([tiled.flatten(), at_once.flatten()]))[0, 1]
    assert correlation > 0.99


def test_with_enough_memory_latents_are_decoded_at_once():
    translator, notices = OnlyDecodes(HaarFirstStage()), []
    decode(translator, randn(1, 8, 40, 8, 8), 10**9, notices)
    assert translator.shapes == [(40, 8, 8)]
    assert notices == []


def test_with_little_memory_latents_are_decoded_in_tiles_and_that_is_said():
    translator, notices, latents = OnlyDecodes(HaarFirstStage()), [], randn(1, 8, 40, 8, 8)
    image = decode(translator, latents, 1000, notices)
    assert len(translator.shapes) > 1
    assert max(max(shape) for shape in translator.shapes) < 40
    assert notices == ["Decoded in overlapping tiles, because memory is short."]
    torch.testing.assert_close(image, translator.decode(latents), atol=1e-5, rtol=0)


def test_when_memory_runs_out_while_decoding_tiles_are_tried():
    class Narrow(OnlyDecodes):
        def decode(self, latents):
            if max(latents.shape[2:]) > 32:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return super().decode(latents)

    translator, latents, notices = Narrow(HaarFirstStage()), randn(1, 8, 40, 8, 8), []
    image = decode(translator, latents, 10**9, notices)
    torch.testing.assert_close(image, HaarFirstStage().decode(latents), atol=1e-5, rtol=0)
    assert len(notices) == 1 and "tiles" in notices[0]


def test_a_defect_while_decoding_is_no_lack_of_memory():
    class Broken(OnlyDecodes):
        def decode(self, latents):
            raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes do not fit"):
        decode(Broken(HaarFirstStage()), randn(1, 8, 40, 8, 8), 10**9, [])


def test_latents_no_larger_than_a_tile_are_never_divided():
    translator, notices = OnlyDecodes(HaarFirstStage()), []
    decode(translator, randn(1, 8, 8, 8, 8), 0, notices)
    assert translator.shapes == [(8, 8, 8)]
    assert notices == []


def test_the_cpu_is_there_and_is_taken_when_asked_for():
    assert available_devices()[-1] == "cpu"
    assert choose_device("cpu") == (CPU, "")


def test_a_device_that_is_not_there_is_refused_with_those_that_are():
    with pytest.raises(InputError, match=r"no device 'cuda:77'.*auto, .*cpu"):
        choose_device("cuda:77")


@pytest.fixture
def gpu(monkeypatch):
    """Function that pretends that there is a GPU, whose test convolution does what is asked."""

    def pretend(convolution):
        monkeypatch.setattr(devices, "available_devices", lambda: ["cuda:0", "cpu"])
        monkeypatch.setattr(torch.Tensor, "to", lambda self, *_: self)
        monkeypatch.setattr(F, "conv3d", convolution)

    return pretend


def broken(*_):
    raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nmore lines")


@pytest.mark.parametrize("name", ["auto", "cuda", "cuda:0"])
def test_a_gpu_that_computes_correctly_is_trusted(gpu, name):
    gpu(lambda image, kernel: torch.full((1, 1, 6, 6, 6), 27.0))
    assert choose_device(name) == (torch.device("cuda:0"), "")


def test_a_gpu_that_fails_is_replaced_by_the_cpu_with_the_reason(gpu):
    gpu(broken)
    device, notice = choose_device("auto")
    assert device == CPU
    assert "cuda:0 cannot be used" in notice
    assert "no kernel image is available" in notice
    assert "more lines" not in notice


def test_a_gpu_that_computes_nonsense_is_replaced_by_the_cpu(gpu):
    gpu(lambda image, kernel: torch.full((1, 1, 6, 6, 6), float("nan")))
    device, notice = choose_device("auto")
    assert device == CPU
    assert "came out wrong" in notice


def test_memory_that_pytorch_holds_but_does_not_use_counts_as_free(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (5_000, 100_000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 3_000)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 1_000)
    assert free_memory(torch.device("cuda:0")) == 7_000


def test_free_memory_of_the_cpu_is_that_of_the_machine():
    assert 0 < free_memory(CPU) <= psutil.virtual_memory().total


@pytest.mark.parametrize(("native", "expected"), [(True, torch.bfloat16), (False, None)])
def test_half_precision_is_used_only_where_the_device_has_it(monkeypatch, native, expected):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: native or including_emulation)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: native, raising=False)
    assert autocast_dtype(torch.device("cuda:0")) is expected
    assert autocast_dtype(CPU) is expected
    assert autocast_dtype(torch.device("mps")) is None


def test_a_torch_built_without_onednn_computes_in_float32_on_the_cpu(monkeypatch):
    def absent():
        raise AttributeError("'_OpNamespace' 'mkldnn' object has no attribute '_is_mkldnn_bf16_supported'")

    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", absent, raising=False)
    assert autocast_dtype(CPU) is None


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 8 GB)"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_errors_of_memory_are_told_from_others(error, expected):
    assert is_out_of_memory(error) is expected


def test_a_real_failure_of_the_cpu_allocator_is_recognised():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 62, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
