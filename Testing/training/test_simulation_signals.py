"""The signal equations against an independent Bloch simulation and closed-form limits."""

import math

import numpy as np
import pytest
import torch

from training.simulation.signals import (
    INVERSION_EFFICIENCY,
    enhanced_t1,
    flair,
    flair_null,
    mprage,
    spin_echo,
    spoiled_gradient_echo,
)

TISSUES = [(850.0, 75.0, 50.0, 0.7), (1370.0, 91.0, 55.0, 0.83), (4200.0, 1500.0, 900.0, 1.0), (370.0, 95.0, 45.0, 0.7)]


class Isochromats:
    """Bloch equations of spins across a voxel: exact rotations and relaxation, spoiling by full dephasing."""

    def __init__(self, t1, t2, pd, spread_hz=0.0, count=201):
        self.t1, self.t2, self.pd = t1, t2, pd
        self.m = np.zeros((count, 3))
        self.m[:, 2] = pd
        # Lorentzian frequencies: their free induction decays with exp(-2 pi spread t)
        quantiles = (np.arange(count) + 0.5) / count
        self.hz = spread_hz * np.tan(np.pi * (quantiles - 0.5))

    def rotate_x(self, degrees):
        c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        self.m = self.m @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]]).T

    def wait(self, time):
        angle = 2 * np.pi * self.hz * time / 1000
        x, y = self.m[:, 0].copy(), self.m[:, 1].copy()
        e2 = math.exp(-time / self.t2)
        self.m[:, 0] = e2 * (np.cos(angle) * x - np.sin(angle) * y)
        self.m[:, 1] = e2 * (np.sin(angle) * x + np.cos(angle) * y)
        self.m[:, 2] = self.pd + (self.m[:, 2] - self.pd) * math.exp(-time / self.t1)

    def spoil(self):
        self.m[:, :2] = 0

    def invert(self):
        self.m[:, 2] *= -INVERSION_EFFICIENCY
        self.spoil()

    def signal(self):
        return float(np.hypot(*self.m[:, :2].mean(0)))


def tensors(*values):
    return [torch.tensor([value], dtype=torch.float64) for value in values]


@pytest.mark.parametrize(("t1", "t2", "t2_star", "pd"), TISSUES)
def test_spin_echo_agrees_with_a_bloch_simulation_of_dephased_spins(t1, t2, t2_star, pd):
    te, tr = 20.0, 3000.0
    spins = Isochromats(t1, t2, pd, spread_hz=15.0)
    for _ in range(6):
        spins.spoil()
        spins.rotate_x(90)
        spins.wait(te / 2)
        spins.rotate_x(180)
        spins.wait(te / 2)
        signal = spins.signal()
        spins.spoil()
        spins.wait(tr - te)
    expected = spin_echo(*tensors(t1, t2, pd), tr=tr, te=te).item()
    # the equation neglects TE against TR: at most 2 TE/TR of the recovery that is still missing
    assert signal == pytest.approx(expected, rel=0.015)


@pytest.mark.parametrize(("t1", "t2", "t2_star", "pd"), TISSUES)
@pytest.mark.parametrize("flip", [6.0, 25.0])
def test_spoiled_gradient_echo_agrees_with_a_bloch_simulation(t1, t2, t2_star, pd, flip):
    te, tr = 3.0, 12.0
    spins = Isochromats(t1, t2_star, pd)
    for _ in range(3000):
        spins.rotate_x(flip)
        spins.wait(te)
        signal = spins.signal()
        spins.wait(tr - te)
        spins.spoil()
    expected = spoiled_gradient_echo(*tensors(t1, t2_star, pd), tr=tr, te=te, flip=flip).item()
    assert signal == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("t1", "t2", "t2_star", "pd"), TISSUES)
def test_mprage_agrees_with_a_bloch_simulation_of_the_whole_pulse_train(t1, t2, t2_star, pd):
    tr, ti, te, flip, spacing, count = 2100.0, 900.0, 3.0, 9.0, 7.5, 160
    spins = Isochromats(t1, t2_star, pd, count=1)
    for _ in range(12):
        spins.invert()
        spins.wait(ti - count // 2 * spacing)
        for pulse in range(count):
            spins.spoil()
            spins.rotate_x(flip)
            spins.wait(te)
            if pulse == count // 2:
                signal = spins.signal()
            spins.wait(spacing - te)
        spins.spoil()
        spins.wait(tr - ti - (count - count // 2) * spacing)
    expected = mprage(*tensors(t1, t2_star, pd), tr=tr, ti=ti, te=te, flip=flip, echo_spacing=spacing, readouts=count)
    assert signal == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize(("t1", "t2", "t2_star", "pd"), TISSUES)
def test_flair_agrees_with_a_bloch_simulation_of_an_echo_train(t1, t2, t2_star, pd):
    tr, ti, echoes, spacing = 9000.0, 2500.0, 16, 8.0
    te = echoes * spacing / 2
    spins = Isochromats(t1, t2, pd, spread_hz=10.0)
    for _ in range(3):
        spins.invert()
        spins.wait(ti)
        spins.spoil()
        spins.rotate_x(90)
        spins.m[:, [0, 1]] = spins.m[:, [1, 0]]  # Carr-Purcell-Meiboom-Gill: refocus about the axis of the spins
        for echo in range(echoes):
            spins.wait(spacing / 2)
            spins.rotate_x(180)
            spins.wait(spacing / 2)
            if (echo + 1) * spacing == te:
                signal = spins.signal()
        spins.m[:] = 0  # the train saturates the spins; the rest of TR follows it
        spins.wait(tr - ti)
    expected = flair(*tensors(t1, t2, pd), tr=tr, ti=ti, te=te).item()
    assert signal == pytest.approx(expected, rel=0.01, abs=2e-3)


def test_long_repetition_and_short_echo_times_leave_the_proton_density():
    t1, t2, pd = tensors(1000.0, 80.0, 0.8)
    assert spin_echo(t1, t2, pd, tr=1e6, te=0).item() == pytest.approx(0.8)
    assert spoiled_gradient_echo(t1, t2, pd, tr=1e6, te=0, flip=90).item() == pytest.approx(0.8)
    assert flair(t1, t2, pd, tr=1e7, ti=1e6, te=0).item() == pytest.approx(0.8)


def test_spoiled_gradient_echo_is_largest_at_the_ernst_angle():
    t1, t2_star, pd = tensors(900.0, 50.0, 1.0)
    ernst = math.degrees(math.acos(math.exp(-15 / 900)))
    values = [spoiled_gradient_echo(t1, t2_star, pd, tr=15, te=3, flip=ernst + d).item() for d in (-1, 0, 1)]
    assert values[1] == max(values)
    assert values[1] > values[0]


@pytest.mark.parametrize("t1", [3600.0, 4200.0])
def test_flair_nulls_fluid_at_its_null_time(t1):
    ti = flair_null(t1, 9000)
    assert 1500 < ti < 3000
    assert flair(*tensors(t1, 1500.0, 1.0), tr=9000, ti=ti, te=0).item() == pytest.approx(0, abs=1e-6)


def test_mprage_refuses_a_train_that_does_not_fit():
    with pytest.raises(ValueError, match="does not fit"):
        mprage(*tensors(900.0, 50.0, 1.0), tr=2000, ti=300, te=3, flip=8)


def test_contrast_agent_adds_relaxation_rates():
    t1, concentration = tensors(1000.0, 0.2)
    assert enhanced_t1(t1, concentration, relaxivity=5).item() == pytest.approx(500)
