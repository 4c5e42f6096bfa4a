"""Charts that become part of others without being copied whole."""

from __future__ import annotations

from typing import Self

import altair as alt


class Chart(alt.Chart):
    """One mark with its encodings. Altair copies a chart, all the way down, whenever it becomes part of another.

    Nothing here changes a part once it is made, so that a copy may share what it holds.
    """

    def __deepcopy__(self, memo: object = None) -> Self:
        """Return a copy whose attributes are its own and whose values are shared."""
        return self.copy(deep=False)


class LayerChart(alt.LayerChart):
    """Charts above each other, copied like one."""

    def __deepcopy__(self, memo: object = None) -> Self:
        """Return a copy whose attributes are its own and whose values are shared."""
        return self.copy(deep=False)
