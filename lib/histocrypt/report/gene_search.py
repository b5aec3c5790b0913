"""A search for JupyterLab: type part of a gene's name and the list below narrows; pick one, and it is shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from html import escape
from typing import Any

import ipywidgets
import traitlets

LISTED = 200
"""Names that the list holds at most: a browser stays quick."""


class GeneSearch(ipywidgets.VBox):
    """A box to type in, the names that hold what was typed, and how many they are.

    Parameters
    ----------
    description
        What is looked for: ``Gene``, ``Cell type``.
    value
        The name to begin with.
    """

    value = traitlets.Unicode()
    """What is shown. It may be set to any name, also one that is not listed."""

    def __init__(self, description: str, value: str = "") -> None:
        self.description = description
        self._labels: dict[str, str] = {}
        self._about = ""
        style = {"description_width": "initial"}
        self.box = ipywidgets.Text(description=description, placeholder="type part of a name", style=style)
        self.list = ipywidgets.Select(rows=7)
        self.said = ipywidgets.HTML()
        for one in (self.box, self.list):
            one.layout.width = "27em"
        self.said.layout.max_width = "27em"
        super().__init__([self.box, self.list, self.said], value=value)
        self.box.observe(lambda _: self._typed(), names="value")
        self.list.observe(self._picked, names="value")
        self.observe(lambda _: self._mark(), names="value")

    def offer(self, labels: Mapping[str, str], about: str = "") -> None:
        """List names, in this order, each as its label says; ``about`` says what order that is."""
        if (dict(labels), about) != (self._labels, self._about):
            self._labels, self._about = dict(labels), about
            self._narrow()

    def _typed(self) -> None:
        self._narrow()
        typed = self.box.value.strip().casefold()
        self.value = next((name for name in self._labels if name.casefold() == typed), self.value)

    def _narrow(self) -> None:
        typed = self.box.value.strip().casefold()
        found = [name for name in self._labels if typed in name.casefold()]
        self._held(lambda: setattr(self.list, "options", [(self._labels[name], name) for name in found[:LISTED]]))
        self._mark()
        self._say(self._words(found, typed))

    def _words(self, found: list[str], typed: str) -> str:
        kind = self.description.lower()
        if not found:
            known = {name.casefold(): name for name in self._labels}
            close = " or ".join(known[one] for one in get_close_matches(typed, known, n=3))
            return f"No {kind} here has {self.box.value.strip()!r} in its name." + (
                f" Did you mean {close}?" if close else ""
            )
        count = f"{len(found)} of {len(self._labels)}" if typed else f"{len(found)}"
        shown = f", the first {LISTED} listed" if len(found) > LISTED else ""
        return f"{count} {kind}s{shown}. {self._about}".strip()

    def _say(self, words: str) -> None:
        self.sentence = words
        self.said.value = f'<span role="status" style="display: block; line-height: 1.3">{escape(words)}</span>'

    def _picked(self, change: Mapping[str, Any]) -> None:
        if change["new"] is not None:
            self.value = change["new"]

    def _mark(self) -> None:
        """Mark in the list what is shown, where it is listed."""
        listed = [name for _, name in self.list.options]
        place = listed.index(self.value) if self.value in listed else None
        self._held(lambda: setattr(self.list, "index", place))

    def _held(self, change: Callable[[], None]) -> None:
        """Change the list without picking from it."""
        self.list.unobserve(self._picked, names="value")
        change()
        self.list.observe(self._picked, names="value")
