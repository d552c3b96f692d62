"""What is in each photo of a folder, and where: python outlines.py animals@production photos > outlines.jsonl"""

import json
import sys
from pathlib import Path

from cilseg.errors import CilsegError
from cilseg_serve import watch


def main(reference: str, folder: str) -> None:
    with watch(reference) as segmenter:  # follows the alias while it runs
        for path in sorted(Path(folder).iterdir()):
            try:
                result = segmenter.segment(path)
            except CilsegError as error:  # says what was wrong and what to do
                print(f"skipped {error}", file=sys.stderr)
                continue
            outlines = [[result.class_names[p.class_id], p.exterior.tolist()] for p in result.polygons(min_area=20)]
            print(json.dumps({"file": path.name, "coverage": result.coverage, "outlines": outlines}))


if __name__ == "__main__":
    main(*sys.argv[1:])
