"""What the sections of the panel share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ..errors import SynthesisError
from ..model_package import ListedPackage
from ..scene.choices import Choices, choices_of
from ..scene.panel import View
from ..scene.session import Message


@dataclass
class Context:
    """The state behind the panel.

    Attributes:
        logic: the module's logic.
        packages: the model packages.
        parameters: wrapper of the parameter node; None while there is no scene.
        later: calls a function soon, when the views have been drawn.
        view: what is shown; None before the first time.
    """

    logic: Any
    packages: tuple[ListedPackage, ...]
    later: Callable[[Callable[[], None]], None]
    parameters: Any = None
    view: View | None = None

    @property
    def choices(self) -> Choices:
        return choices_of(self.parameters)

    @contextmanager
    def problems(self) -> Iterator[None]:
        """Show what goes wrong as a sentence in the panel; defects of the program go on."""
        try:
            yield
        except SynthesisError as error:
            self.logic.session.tell(Message(str(error), problem=True))


def offer_all_but(node_ids: Sequence[str], selector: Any) -> None:
    """Leave nodes out of a ``qMRMLNodeComboBox``."""
    model = selector.sortFilterProxyModel()
    if tuple(model.hiddenNodeIDs) != tuple(node_ids):
        model.hiddenNodeIDs = node_ids
