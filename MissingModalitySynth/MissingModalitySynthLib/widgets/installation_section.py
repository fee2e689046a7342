"""The check page: what is installed, what works, and what to do."""

from __future__ import annotations

import html
from typing import Any

from .application import check_installation
from .context import Context


class InstallationSection:
    """Binds the section "Installation check"; nothing is looked at before it is asked for."""

    def __init__(self, ui: Any, context: Context) -> None:
        self._ui, self._context = ui, context
        ui.installationLabel.visible = False
        ui.checkButton.connect("clicked(bool)", self._check)

    def _check(self, _checked: bool = False) -> None:
        with self._context.problems():
            rows = check_installation(self._context.logic.requirements)
            lines = []
            for row in rows:
                mark = "\N{CHECK MARK}" if row.state == "present" else "\N{WARNING SIGN}"
                sentence = html.escape(" ".join(filter(None, (row.sentence, row.remedy))))
                lines.append(f"<p>{mark} <b>{html.escape(row.name)}</b> {sentence}</p>")
            self._ui.installationLabel.text = "".join(lines)
            self._ui.installationLabel.visible = True
