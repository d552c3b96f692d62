"""A large tiled GeoTIFF: peak memory, agreement with whole-image inference, seams.

    python -m benchmarks.serve_large --side 20000 [--onnx model.onnx --pictures DIR]

Without ``--onnx`` a ResNet-18 DeepLabV3 with random weights is exported; its masks are hardly structured, so give a
trained model (with logits) for the seams, and a folder of pictures that it knows: they are laid side by side.
Agreement is measured with a network of small reach, on a crop.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from benchmarks.record import peak_mib, write_record
from cilseg_serve import Segmenter, SlidingWindow, segment_geotiff

BLOCK_PX = 512
CELL_PX = 88  # of the pictures laid side by side: their edges do not fall together with those of the tiles


def write_scene(path: Path, side: int, pictures: Path | None = None) -> None:
    """Write a tiled RGB GeoTIFF of blotches, or of pictures side by side, block row by block row."""
    import rasterio
    from rasterio.transform import from_origin

    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 200, (side // 96 + 2, side // 96 + 2, 3), dtype=np.uint8)
    cells = None if pictures is None else [_cell(p) for p in sorted(pictures.iterdir())[:500]]
    chosen = rng.integers(0, len(cells or [0]), (side // CELL_PX + 1, side // CELL_PX + 1))
    profile = {"width": side, "height": side, "count": 3, "dtype": "uint8", "tiled": True, "compress": "deflate"}
    place = {"crs": "EPSG:32633", "transform": from_origin(500_000, 5_000_000, 0.5, 0.5)}
    with rasterio.open(
        path, "w", driver="GTiff", blockxsize=BLOCK_PX, blockysize=BLOCK_PX, BIGTIFF="YES", **profile, **place
    ) as raster:
        columns = np.arange(side) // 96
        for top in range(0, side, BLOCK_PX):
            bottom = min(top + BLOCK_PX, side)
            if cells is None:
                band = coarse[(np.arange(top, bottom) // 96)[:, None], columns[None]]
                band = band + rng.integers(0, 56, band.shape, dtype=np.uint8)
            else:
                first = top // CELL_PX
                strips = [
                    np.concatenate([cells[k] for k in row], axis=1) for row in chosen[first : bottom // CELL_PX + 1]
                ]
                band = np.concatenate(strips)[top - first * CELL_PX : bottom - first * CELL_PX, :side]
            raster.write(band.transpose(2, 0, 1), window=((top, bottom), (0, side)))


def _cell(path: Path) -> npt.NDArray[np.uint8]:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))[:CELL_PX, :CELL_PX]


def run_large(onnx: Path, scene: Path, target: Path, tile_px: int, overlap_px: int, threads: int) -> None:
    """Segment in this process and print what it took as JSON; started as a process of its own."""
    window = SlidingWindow(Segmenter.from_onnx(onnx, threads=threads), tile_px=tile_px, overlap_px=overlap_px)
    started = time.perf_counter()
    segment_geotiff(window, scene, target)
    print(json.dumps({"seconds": time.perf_counter() - started, "peak_mib": peak_mib()}))


def crop_of(scene: Path, side: int) -> npt.NDArray[np.uint8]:
    import rasterio

    with rasterio.open(scene) as raster:
        values: npt.NDArray[np.uint8] = raster.read(window=((0, side), (0, side)))
    return np.ascontiguousarray(values.transpose(1, 2, 0))


def seam_ratio(mask: npt.NDArray[np.uint8], *, tile_px: int, overlap_px: int) -> float:
    """Label changes per pixel pair within the overlaps, over those outside; both directions together."""
    rates = []
    for values in (mask, mask.T):
        changes = (values[:, 1:] != values[:, :-1]).mean(axis=0)
        position = np.arange(1, values.shape[1]) % (tile_px - overlap_px)
        inside = (position < overlap_px) & (np.arange(1, values.shape[1]) >= tile_px - overlap_px)
        rates.append((changes[inside].mean(), changes[~inside].mean()))
    seams, interior = np.array(rates).mean(axis=0)
    return float(seams / interior) if interior else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=20_000)
    parser.add_argument("--crop", type=int, default=2048)
    parser.add_argument("--tile", type=int, default=1024)
    parser.add_argument("--overlap", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--onnx", type=Path)
    parser.add_argument("--pictures", type=Path, help=f"folder of pictures of at least {CELL_PX} px a side")
    parser.add_argument("--note", default="", help="what the model was trained on")
    parser.add_argument("--name", default="serve_large")
    parser.add_argument("--child", nargs=3, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        run_large(*options.child, options.tile, options.overlap, options.threads)
        return
    from benchmarks.serve_models import export_deeplab, export_small_reach  # torch: not in the measured process

    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        onnx = options.onnx or export_deeplab(work / "deeplab.onnx")
        scene = work / "scene.tif"
        write_scene(scene, options.side, options.pictures)
        arguments = ["--tile", str(options.tile), "--overlap", str(options.overlap), "--threads", str(options.threads)]
        child = ["--child", str(onnx), str(scene), str(work / "mask.tif")]
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.serve_large", *arguments, *child], check=True, stdout=subprocess.PIPE
        )
        large = json.loads(done.stdout)
        crop = crop_of(scene, min(options.crop, options.side))
        rows = [{"what": "large", "side_px": options.side, **large}]
        agreements = {}
        for name, path in (("small reach", export_small_reach(work / "small.onnx")), ("deeplab", onnx)):
            segmenter = Segmenter.from_onnx(path, threads=options.threads)
            whole = segmenter.run_graph(crop[None], ("mask",))[0][0]
            tiled = SlidingWindow(segmenter, tile_px=options.tile, overlap_px=options.overlap).segment(crop).mask
            ratio = seam_ratio(tiled, tile_px=options.tile, overlap_px=options.overlap)
            agreements[name] = float((whole == tiled).mean())
            classes = len(np.unique(tiled))
            row = {"what": name, "agreement": agreements[name], "seam_ratio": ratio, "classes_in_mask": classes}
            rows.append(row)
    summary = {
        "peak_mib": round(large["peak_mib"], 1),
        "agreement": round(agreements["small reach"], 6),
        "agreement_deeplab": round(agreements["deeplab"], 6),
        "seam_ratio": round(float(rows[-1]["seam_ratio"]), 3),
    }
    table = ["| what | result |", "|---|---|"]
    table += [f"| {row['what']} | {', '.join(f'{k} {v}' for k, v in row.items() if k != 'what')} |" for row in rows]
    model = options.note or "given" if options.onnx else "ResNet-18 DeepLabV3, random weights"
    write_record(
        options.name,
        command=f"python -m benchmarks.serve_large --side {options.side}"
        + (" --onnx FILE" if options.onnx else "")
        + (" --pictures DIR" if options.pictures else ""),
        rows=rows,
        summary=summary,
        table=table,
        note=f"Model: {model}; tiles of {options.tile} px, overlap {options.overlap} px, crop of {options.crop} px.",
    )
    print("\n".join(table))


if __name__ == "__main__":
    main()
