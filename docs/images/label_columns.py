"""Make ``before_after.png`` of the README from the picture that ``cilseg demo`` leaves.

    python docs/images/label_columns.py demo/before_after.png docs/images/before_after.png

Enlarges it twice (nearest pixel) and writes the names of the columns above it.
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

COLUMNS = ("image", "truth", "base model", "fine-tuned", "WILSON, from tags")
SCALE = 2
HEADER_PX = 48


def label(source: Path, target: Path) -> None:
    """Read the demo's picture (rows of five cells) and write the labelled one."""
    with Image.open(source) as opened:
        grid = opened.convert("RGB")
    grid = grid.resize((grid.width * SCALE, grid.height * SCALE), Image.Resampling.NEAREST)
    sheet = Image.new("RGB", (grid.width, grid.height + HEADER_PX), "white")
    sheet.paste(grid, (0, HEADER_PX))
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=26)
    width = grid.width / len(COLUMNS)
    for column, name in enumerate(COLUMNS):
        draw.text(((column + 0.5) * width, HEADER_PX / 2), name, fill="black", font=font, anchor="mm")
    sheet.save(target, optimize=True)


if __name__ == "__main__":
    label(Path(sys.argv[1]), Path(sys.argv[2]))
