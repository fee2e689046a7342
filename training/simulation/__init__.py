"""Simulated MR contrasts from anatomy: label maps, tissue parameters, signal equations, pathology and artefacts."""

from training.simulation.anatomy import Anatomy, mni_anatomy, procedural_head, synthseg_anatomy
from training.simulation.simulator import MODALITIES, Simulation, simulate

__all__ = ["MODALITIES", "Anatomy", "Simulation", "mni_anatomy", "procedural_head", "simulate", "synthseg_anatomy"]
