"""Translators: one file a method, all behind :class:`~.base.Translator`. To add a method, add it to :data:`METHODS`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..errors import ModelPackageError
from .aldm import AldmTranslator
from .base import Translator
from .midiffusion import MidiffusionTranslator
from .regression import RegressionTranslator

METHODS: dict[str, type[Translator]] = {
    AldmTranslator.method: AldmTranslator,
    RegressionTranslator.method: RegressionTranslator,
    MidiffusionTranslator.method: MidiffusionTranslator,
}


def build_translator(method: str, configuration: Mapping[str, Any], weights: Mapping[str, torch.Tensor]) -> Translator:
    """A translator in evaluation mode, from the configuration and the weights of a model package.

    Args:
        method: a key of :data:`METHODS`.
        configuration: keyword arguments of the translator.
        weights: its state, as tensors of any floating type.

    Raises:
        ModelPackageError: when the method is unknown or the configuration and the weights do not fit each other.
    """
    if method not in METHODS:
        raise ModelPackageError(
            f"The method '{method}' is not known to this version, which has {', '.join(METHODS)}; "
            "update the program or choose another package."
        )
    try:
        translator = METHODS[method](**configuration)
        translator.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    except (TypeError, ValueError, LookupError, ArithmeticError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ModelPackageError(
            f"Weights and configuration of method '{method}' do not fit each other ({reason}); reinstall the package."
        ) from error
    return translator.eval()
