"""placeholder"""

from cilseg.bench.table import Table


def render_page(table: Table, *, command: str) -> str:
    return "<html></html>"
