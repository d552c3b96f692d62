"""How fast an exported model answers beside torch and beside the bare runtimes, and what its last step costs.

    python -m benchmarks.export_latency --registry R --resnet18 NAME:1 --mobilenetv2 NAME:2 [--pairs 200] [--threads 2]
    python -m benchmarks.export_latency --untrained --pairs 3        (to try it)

The versions are exported before, in every precision that shall be measured (``export_models`` does it). All rows of one
network take turns in one process, 512 x 512, batch 1, from the decoded image to the mask. Figures (ratios of median
times, smaller is better):

- best_over_torch_eager_channels_last: our fastest row that counts over torch eager in channels_last (ResNet-18);
- best_over_best_plain_runtime: our fastest backend over the faster of plain onnxruntime and plain OpenVINO (told to
  compute in float32, like ours) on the same file; the largest such ratio over the files of ResNet-18;
- post_share: share of upsampling and arg-max in the ResNet-18 INT8 call on the fastest backend: that file and the same
  file cut after its logits, in turns with each other alone (OpenVINO compiled for the one shape, which is what our
  backend does after some calls), both loaded anew six times. The table has the same tail in other forms.

``--post`` measures post_share alone and puts it into the recorded result.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.record import RESULTS, write_record
from benchmarks.tail_forms import tail_forms
from cilseg.bench.latency import TORCH, Candidate, LatencyRow, time_candidates, torch_graph_candidate

SIDE_PX = 512
NETWORKS = ("resnet18", "mobilenetv2")
OURS = ("onnxruntime", "openvino")
FLOAT, INT8 = "float32", "int8"
CUT = "none"
LOADS = 6
AGAIN = " post_share was measured again"
WHOLE_IN_TURNS, CUT_IN_TURNS = "plain, in turns with the cut file", "cut after the logits, in turns with the whole"


@dataclass(frozen=True)
class Network:
    """A trained network, its files by precision, and a picture that it knows."""

    name: str
    model: Any
    preprocessing: Any
    n_classes: int
    stride: int
    files: dict[str, Path]
    counts: dict[str, frozenset[str]]
    """Precision -> backends on which the file passed its parity check."""
    picture: npt.NDArray[np.uint8]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--registry")
    parser.add_argument("--resnet18", metavar="REF")
    parser.add_argument("--mobilenetv2", metavar="REF")
    parser.add_argument("--untrained", action="store_true", help="random weights, quantised by onnxruntime alone")
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--side", type=int, default=SIDE_PX, help="smaller, to try the benchmark")
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--name", default="export_latency")
    parser.add_argument("--post", action="store_true", help="measure post_share alone, into the recorded result")
    args = parser.parse_args()
    if not args.untrained and not all(getattr(args, name) for name in args.networks):
        parser.error("give --resnet18 and --mobilenetv2, or --untrained")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    rows: list[dict[str, Any]] = []
    summary: dict[str, float | None] = {}
    recorded: dict[str, Any] = {}
    if args.post:
        recorded = json.loads((RESULTS / f"{args.name}.json").read_text())
        rows, summary = (
            [r for r in recorded["rows"] if r["form"] not in (WHOLE_IN_TURNS, CUT_IN_TURNS, f"tail: {CUT}")],
            recorded["summary"],
        )
    with tempfile.TemporaryDirectory() as temporary:
        for name in args.networks:
            if args.untrained:
                network = untrained(name, Path(temporary) / name, args.side)
            else:
                network = trained(name, args.registry, getattr(args, name), args.side)
            if args.post:
                measured = tail_in_turns(network, Path(temporary), args.pairs, args.threads)
                found = post_of(measured)
            else:
                measured = measure(network, Path(temporary), pairs=args.pairs, threads=args.threads)
                found = figures(measured)
            prefix = "" if name == "resnet18" else f"{name}_"
            summary |= {f"{prefix}{k}": v for k, v in found.items()}
            rows += [{"network": name, "form": form, **row.to_json()} for form, row in measured]
    table = [
        "| network | file | what | runtime | p10 ms | median | p90 | over torch |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        ratio = "" if row["over_torch"] is None else f"{row['over_torch']:.3f}"
        times = " | ".join(f"{row[k]:.2f}" for k in ("p10_ms", "median_ms", "p90_ms"))
        table.append(
            f"| {row['network']} | {row['precision']} | {row['form']} | {row['backend']} | {times} | {ratio} |"
        )
    options = " --untrained" if args.untrained else " --registry R --resnet18 REF --mobilenetv2 REF"
    command = f"python -m benchmarks.export_latency{options} --pairs {args.pairs} --threads {args.threads}"
    note = (
        f"{args.pairs} interleaved calls of every row, {args.threads} threads, {args.side} x {args.side}, batch 1, "
        "from the decoded image to the mask."
    ) + (" Untrained networks: only to try the benchmark." if args.untrained else "")
    if args.post:
        command, note = recorded["command"], recorded["note"].split(AGAIN)[0]
        note += (
            f"{AGAIN} with --post: {args.pairs} calls of its two files in turns by themselves, loaded {LOADS} times."
        )
    write_record(args.name, command=command, rows=rows, summary=summary, table=table, note=note)
    print("\n".join([*table, "", *(f"{k}: {v}" for k, v in summary.items())]))


def measure(network: Network, folder: Path, *, pairs: int, threads: int) -> list[tuple[str, LatencyRow]]:
    """Return (what, row): ``ours``, ``plain``, and the forms of the tail of the INT8 file, all timed in turns."""
    what: dict[int, str] = {}
    candidates: list[Candidate] = []
    for form, candidate in _candidates(network, folder, threads):
        what[id(candidate)] = form
        candidates.append(candidate)
    timed = time_candidates(candidates, [network.picture], repeats=pairs)
    return [(what[id(candidate)], row) for candidate, row in timed] + tail_in_turns(network, folder, pairs, threads)


def tail_in_turns(network: Network, folder: Path, pairs: int, threads: int) -> list[tuple[str, LatencyRow]]:
    """Time the INT8 file whole and cut after its logits, in turns, on each runtime; empty without such a file.

    Both are loaded anew ``LOADS`` times, and the figures are means over these: where a loaded model comes to lie in
    memory alone changes its time by some per cent.
    """
    if INT8 not in network.files:
        return []
    rows: list[tuple[str, LatencyRow]] = []
    cut_path = _tails(network, folder)[CUT]
    fixed = partial(_plain_openvino, shape=(1, *network.picture.shape))  # as our backend does after some calls
    for runtime in (_plain_onnxruntime, fixed):
        loads: dict[str, list[LatencyRow]] = {WHOLE_IN_TURNS: [], CUT_IN_TURNS: []}
        for _ in range(LOADS):
            whole = runtime(network.files[INT8], INT8, threads)
            cut = _without_answer(runtime(cut_path, INT8, threads), network.picture)
            for candidate, row in time_candidates([whole, cut], [network.picture], repeats=-(-pairs // LOADS)):
                loads[WHOLE_IN_TURNS if candidate is whole else CUT_IN_TURNS].append(row)
        rows += [(form, _mean(found)) for form, found in loads.items()]
    return rows


def _mean(rows: list[LatencyRow]) -> LatencyRow:
    p10, median, p90 = (
        statistics.fmean(getattr(row, key) for row in rows) for key in ("p10_ms", "median_ms", "p90_ms")
    )
    return replace(rows[0], p10_ms=p10, median_ms=median, p90_ms=p90, images_per_s=1000 / median)


def _without_answer(candidate: Candidate, picture: npt.NDArray[np.uint8]) -> Candidate:
    """Return a candidate whose logits are dropped for an empty mask: they would be brought to the picture's size."""
    empty = np.zeros((1, *picture.shape[:2]), np.uint8)

    def answer(batch: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        candidate.answer(batch)
        return empty

    return replace(candidate, answer=answer)


def _tails(network: Network, folder: Path) -> dict[str, Path]:
    """Write the INT8 file with every form of its tail; return form -> file."""
    import onnx

    height, width = network.picture.shape[:2]
    model = onnx.load(network.files[INT8])
    forms = tail_forms(model, n_classes=network.n_classes, height=height, width=width, stride=network.stride)
    paths = {form: folder / f"{network.name}-form{index}.onnx" for index, form in enumerate(forms)}
    for form, path in paths.items():
        onnx.save(forms[form], path)
    return paths


def _candidates(network: Network, folder: Path, threads: int) -> Iterator[tuple[str, Candidate]]:
    yield "torch eager channels_last", torch_graph_candidate(network.model, network.preprocessing, threads=threads)
    for precision, path in network.files.items():
        for backend in OURS:
            yield "ours", _ours(path, backend, precision, threads, counts=backend in network.counts[precision])
        yield "plain", _plain_onnxruntime(path, precision, threads)
        yield "plain", _plain_openvino(path, precision, threads)
    if INT8 in network.files:
        for form, path in _tails(network, folder).items():
            if form == CUT:
                continue
            yield f"tail: {form}", _plain_onnxruntime(path, INT8, threads)
            yield f"tail: {form}", _plain_openvino(path, INT8, threads)


def _ours(path: Path, backend: str, precision: str, threads: int, *, counts: bool) -> Candidate:
    from cilseg_serve.backends.opening import open_session

    session = open_session(path, backend=backend, threads=threads)
    detail = session.describe().arithmetic
    return Candidate(
        backend, precision, path.name, lambda batch: session.run(batch, ["mask"])["mask"], counts, detail, path
    )


def _plain_onnxruntime(path: Path, precision: str, threads: int) -> Candidate:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return Candidate(
        "onnxruntime", precision, path.name, lambda b: session.run(["mask"], {"image": b})[0], True, "plain", path
    )


def _plain_openvino(path: Path, precision: str, threads: int, shape: tuple[int, ...] | None = None) -> Candidate:
    import openvino

    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    core = openvino.Core()
    graph = core.read_model(path)
    if shape is not None:
        graph.reshape({"image": list(shape)})
    model = core.compile_model(graph, "CPU", settings)
    detail = "plain" if shape is None else "plain, for one shape"
    return Candidate("openvino", precision, path.name, lambda b: model({"image": b})["mask"], True, detail, path)


def figures(measured: list[tuple[str, LatencyRow]]) -> dict[str, float | None]:
    """Return the figures of one network."""
    ours = [r for w, r in measured if w == "ours" and r.counts]
    torch_ms = next(r.median_ms for _, r in measured if r.backend == TORCH)
    ratios = []
    for precision in {r.precision for r in ours}:
        fastest = min(r.median_ms for w, r in measured if w == "ours" and r.precision == precision)
        ratios.append(fastest / min(r.median_ms for w, r in measured if w == "plain" and r.precision == precision))
    return {
        "best_over_torch_eager_channels_last": round(min(r.median_ms for r in ours) / torch_ms, 4) if ours else None,
        "best_over_best_plain_runtime": round(max(ratios), 4) if ratios else None,
        **post_of(measured),
    }


def post_of(measured: list[tuple[str, LatencyRow]]) -> dict[str, float | None]:
    """Return share and time of what follows the logits, on the runtime that answers the whole INT8 file fastest."""
    whole = {r.backend: r.median_ms for w, r in measured if w == WHOLE_IN_TURNS}
    if not whole:
        return {"post_share": None, "post_ms": None}
    backend = min(whole, key=lambda b: whole[b])
    post_ms = whole[backend] - next(r.median_ms for w, r in measured if w == CUT_IN_TURNS and r.backend == backend)
    return {"post_share": round(post_ms / whole[backend], 4), "post_ms": round(post_ms, 3)}


def trained(name: str, registry: str | None, ref: str, side_px: int) -> Network:
    """Return a version with its exported files and a picture of its gate set."""
    from PIL import Image

    from cilseg.registry import Registry
    from cilseg.update.bundle import model_of
    from cilseg.update.gate_set import open_gate_set
    from cilseg_serve.backends.base import precision_of
    from cilseg_serve.backends.onnx_metadata import metadata_props
    from cilseg_serve.model_file import verified_backends

    opened = Registry.open(registry)
    version = opened.resolve(ref)
    gate_set = version.manifest.gate_set
    if gate_set is None:
        raise SystemExit(f"{ref} records no gate set to take a picture from.")
    files, counts = {}, {}
    for file_name, attachment in sorted(opened.attachments(version).items()):
        if attachment.kind == "onnx":
            path = opened.attachment(version, file_name).path
            precision = precision_of(metadata_props(path.read_bytes()))
            files[precision], counts[precision] = path, verified_backends(attachment.metadata)
    picture = Image.fromarray(open_gate_set(gate_set).image(0)).resize((side_px, side_px), Image.Resampling.BILINEAR)
    return Network(
        name=name,
        model=model_of(version),
        preprocessing=version.manifest.preprocessing,
        n_classes=len(version.manifest.class_set),
        stride=version.manifest.architecture.output_stride,
        files=files,
        counts=counts,
        picture=np.array(picture),
    )


def untrained(name: str, folder: Path, side_px: int) -> Network:
    """Return a network with random weights and files of it: for trying the benchmark, not for figures."""
    import onnxruntime.quantization as quantization
    import torch
    from PIL import Image

    from cilseg.bundle import Manifest
    from cilseg.classes import ClassSet
    from cilseg.config import ModelConfig
    from cilseg.models.build import new_model
    from cilseg.models.inference import InferenceGraph
    from cilseg_export.onnx_export import export_onnx

    folder.mkdir()
    classes = ClassSet.base([f"class {i}" for i in range(1, 21)])
    backbone = {"resnet18": "resnet18", "mobilenetv2": "mobilenetv2_100"}[name]
    config = ModelConfig.model_validate({"backbone": backbone, "output_stride": 16, "weights": "none"})
    model = new_model(config, classes, seed=0)
    coarse = np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    picture = np.array(Image.fromarray(coarse).resize((side_px, side_px), Image.Resampling.BICUBIC))
    with torch.no_grad():  # running statistics that fit, so that activations are neither zero nor huge
        model.train()
        for _ in range(2):
            model(torch.from_numpy(np.stack([picture, picture[::-1]])).permute(0, 3, 1, 2))
    model.eval()
    manifest = Manifest(
        classes=classes.to_json(),
        architecture=model.architecture,
        preprocessing=model.preprocessing,
        method="none",
        seed=0,
        created_at="",
    )
    path, prepared, int8 = (folder / f"{n}.onnx" for n in ("model", "prepared", "int8"))
    export_onnx(InferenceGraph(model, model.preprocessing).eval(), path, manifest=manifest, version_digest="sha256:0")

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._left = [{"image": np.ascontiguousarray(picture[None, :, ::step])} for step in (1, -1)]

        def get_next(self) -> dict[str, Any] | None:
            return self._left.pop() if self._left else None

    quantization.quant_pre_process(str(path), str(prepared))
    quantization.quantize_static(str(prepared), str(int8), Reader(), per_channel=True, op_types_to_quantize=["Conv"])
    every = frozenset(OURS)
    return Network(
        name, model, model.preprocessing, 21, 16, {FLOAT: path, INT8: int8}, {FLOAT: every, INT8: every}, picture
    )


if __name__ == "__main__":
    main()
