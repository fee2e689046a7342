"""Signal equations of the simulated sequences; times in ms, angles in degrees, signals for an equilibrium of 1 x PD.

Every function takes tissue parameters as tensors that broadcast against each other and returns the magnitude signal.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

INVERSION_EFFICIENCY = 0.97  # adiabatic pulses; measured efficiencies lie between 0.95 and 1


def spin_echo(t1: Tensor, t2: Tensor, pd: Tensor, *, tr: float, te: float) -> Tensor:
    """Spin echo, and turbo spin echo with `te` the effective echo time.

    S = PD (1 - exp(-TR/T1)) exp(-TE/T2) for TE << TR (Bernstein, King and Zhou, Handbook of MRI Pulse Sequences,
    2004, section 14.3). Also describes proton density weighting (long TR, short TE).
    """
    return pd * (1 - torch.exp(-tr / t1)) * torch.exp(-te / t2)


def spoiled_gradient_echo(t1: Tensor, t2_star: Tensor, pd: Tensor, *, tr: float, te: float, flip: float) -> Tensor:
    """Spoiled gradient echo (SPGR, FLASH) in its steady state.

    S = PD sin(a) (1 - E1) / (1 - E1 cos(a)) exp(-TE/T2*), E1 = exp(-TR/T1) (Ernst and Anderson, Rev. Sci. Instrum.
    1966). It is largest at the Ernst angle cos(a) = E1.
    """
    angle, e1 = math.radians(flip), torch.exp(-tr / t1)
    return pd * math.sin(angle) * (1 - e1) / (1 - e1 * math.cos(angle)) * torch.exp(-te / t2_star)


def mprage(
    t1: Tensor,
    t2_star: Tensor,
    pd: Tensor,
    *,
    tr: float,
    ti: float,
    te: float,
    flip: float,
    echo_spacing: float = 7.5,
    readouts: int = 160,
) -> Tensor:
    """Magnetization-prepared rapid gradient echo, signal of the central readout in the steady state.

    One period of `tr`: inversion, recovery until the train, `readouts` spoiled pulses of angle a every `echo_spacing`
    (linear order, its centre at `ti` after the inversion), recovery until the next inversion (Mugler and Brookeman,
    Magn. Reson. Med. 1990; steady state as in Deichmann et al., NeuroImage 2000). Each part maps the longitudinal
    magnetization affinely, M -> A M + B, so the periodic state just before the inversion is B / (1 - A).
    Raises ValueError if the train does not fit into `ti` and `tr`.
    """
    half = readouts // 2
    before = ti - half * echo_spacing
    after = tr - ti - (readouts - half) * echo_spacing
    if before < 0 or after < 0:
        raise ValueError(f"A train of {readouts} readouts every {echo_spacing} ms does not fit into TI {ti}, TR {tr}.")
    angle = math.radians(flip)
    decay = torch.exp(-echo_spacing / t1)
    per_pulse = math.cos(angle) * decay
    driven = (1 - decay) / (1 - per_pulse)  # steady state that the pulse train tends to

    def recover(slope: Tensor, offset: Tensor, time: float) -> tuple[Tensor, Tensor]:
        e = torch.exp(-time / t1)
        return e * slope, e * offset + 1 - e

    def pulses(slope: Tensor, offset: Tensor, count: int) -> tuple[Tensor, Tensor]:
        e = per_pulse**count
        return e * slope, e * offset + (1 - e) * driven

    inverted = recover(-INVERSION_EFFICIENCY * torch.ones_like(t1), 0 * t1, before)
    centre = pulses(*inverted, half)
    slope, offset = recover(*pulses(*centre, readouts - half), after)
    central = centre[0] * offset / (1 - slope) + centre[1]
    return pd * math.sin(angle) * central.abs() * torch.exp(-te / t2_star)


def flair(t1: Tensor, t2: Tensor, pd: Tensor, *, tr: float, ti: float, te: float) -> Tensor:
    """Inversion-recovery turbo spin echo (fluid-attenuated when `ti` nulls cerebrospinal fluid).

    S = PD |1 - (1 + eta) exp(-TI/T1) + eta exp(-TR/T1)| exp(-TE/T2): the refocused echoes leave no longitudinal
    magnetization at the end of the train, which is short against TR (Hajnal et al., J. Comput. Assist. Tomogr. 1992;
    Bernstein et al. 2004, section 14.2), with the inversion efficiency eta.
    """
    eta = INVERSION_EFFICIENCY
    recovery = 1 - (1 + eta) * torch.exp(-ti / t1) + eta * torch.exp(-tr / t1)
    return pd * recovery.abs() * torch.exp(-te / t2)


def flair_null(t1: float, tr: float) -> float:
    """Inversion time (ms) at which `flair` is zero for a tissue of `t1`: T1 ln[(1 + eta) / (1 + eta exp(-TR/T1))]."""
    eta = INVERSION_EFFICIENCY
    return t1 * math.log((1 + eta) / (1 + eta * math.exp(-tr / t1)))


def enhanced_t1(t1: Tensor, concentration: Tensor, relaxivity: float = 4.5) -> Tensor:
    """T1 in ms with a gadolinium agent: 1/T1' = 1/T1 + r1 C, with r1 in 1/(s mM) (4 to 5 at 1.5 and 3 T), C in mM."""
    return 1 / (1 / t1 + relaxivity * concentration / 1000)
