"""The look that all tables of the console share: no lines, bold heads."""

from typing import Any

from rich.console import Console
from rich.table import Table

WIDE = 140  # a console of so many characters has room for all columns


def plain_table(**options: Any) -> Table:
    """An empty table; options as `rich.table.Table` takes them."""
    return Table(box=None, pad_edge=False, header_style="bold", **options)


def titled_table(console: Console, title: str) -> Table:
    """An empty table. Its title is printed first, since it may be wider than the table."""
    console.print(title, style="bold", soft_wrap=True)
    return plain_table()
