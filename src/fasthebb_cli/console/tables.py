"""The look that all tables of the console share: no lines, bold heads."""

from typing import Any

from rich.table import Table


def plain_table(**options: Any) -> Table:
    """An empty table; options as `rich.table.Table` takes them."""
    return Table(box=None, pad_edge=False, header_style="bold", **options)
