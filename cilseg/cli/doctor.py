"""``cilseg doctor``: what is installed here, for bug reports."""

from __future__ import annotations

import importlib.metadata

from cilseg.cli.common import JsonFlag, print_json, print_table


def command(json_: JsonFlag = False) -> None:
    """Print versions, devices and what was found broken.

    Example:

      cilseg doctor --json
    """
    rows: dict[str, str] = {}
    try:
        from cilseg.models import torchvision_guard
        from cilseg.train.engine import pick_precision
        from cilseg.train.environment import environment

        rows.update(environment())
        rows["precision"] = pick_precision("cpu" if rows["device"] == "cpu" else "cuda")
        rows["torchvision"] = rows.get("torchvision", "not installed") + (
            " (does not fit this torch; repaired for timm)" if torchvision_guard.REPAIRED else ""
        )
    except ImportError as error:
        from cilseg import __version__

        rows["cilseg"] = __version__
        rows["training"] = f"not available ({error}); pip install 'cilseg[train]'"
    try:
        import onnxruntime

        rows["onnxruntime"] = f"{onnxruntime.__version__} ({', '.join(onnxruntime.get_available_providers())})"
    except ImportError:
        rows["onnxruntime"] = "not installed; pip install 'cilseg[cpu]' or 'cilseg[gpu]'"
    for package in ("openvino", "tensorrt"):
        try:
            rows[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            rows[package] = f"not installed; pip install 'cilseg[{package}]'"
    if json_:
        print_json(rows)
    else:
        print_table(["what", "found"], list(rows.items()))
