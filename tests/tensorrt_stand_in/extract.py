"""How ``api_*.json`` beside this file was made: names and parameters of the real TensorRT Python bindings.

The wheels ``tensorrt-cu12-bindings`` and ``tensorrt-cu13-bindings`` hold the compiled Python module without TensorRT's
libraries. It imports nine C functions from them; three empty libraries that offer those nine are enough to import the
module and to read every class, method, parameter and enum member out of it:

    pip download --no-deps tensorrt-cu13-bindings && python -m zipfile -e *.whl unpacked
    gcc -shared -fPIC -Wl,-soname,libnvinfer.so.11 -o unpacked/tensorrt_bindings/libnvinfer.so.11 nine_functions.c
    (the same for libnvinfer_plugin.so.11 and libnvonnxparser.so.11)
    LD_LIBRARY_PATH=unpacked/tensorrt_bindings PYTHONPATH=unpacked python extract.py

``cudart_symbols.json`` holds the functions that libcudart.so.12 (from nvidia-cuda-runtime-cu12) and .13 (from
nvidia-cuda-runtime) export, as far as ``cilseg_serve.backends.cudart`` could want them: ``nm -D --defined-only``.
"""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from typing import Any

CLASSES = [
    "Builder",
    "IBuilderConfig",
    "BuilderFlag",
    "NetworkDefinitionCreationFlag",
    "INetworkDefinition",
    "ITensor",
    "IOptimizationProfile",
    "ITimingCache",
    "IHostMemory",
    "OnnxParser",
    "ParserError",
    "Runtime",
    "ICudaEngine",
    "IExecutionContext",
    "ILogger",
    "Logger",
    "MemoryPoolType",
    "HardwareCompatibilityLevel",
    "ProfilingVerbosity",
    "TensorIOMode",
    "DataType",
    "Dims",
    "ErrorCode",
]


def describe(kind: Any) -> dict[str, Any]:
    """Return name -> enum value, ``"property"``, ``"read-only"``, or the parameters of each overload."""
    found: dict[str, Any] = {}
    for name in dir(kind):
        if name.startswith("_") and name != "__init__":
            continue
        value = getattr(kind, name)
        if isinstance(value, property):
            found[name] = "property" if value.fset else "read-only"
        elif callable(value) and not isinstance(value, type):
            lines = re.findall(
                rf"^\s*(?:\d+\. )?{name}\(self[^,)]*(?:, )?(.*?)\)(?: -> .*)?$", value.__doc__ or "", re.M
            )
            found[name] = [parameters(line) for line in lines]
        elif isinstance(value, kind):
            found[name] = int(value)
        else:
            found[name] = "class attribute"
    return found


def parameters(text: str) -> list[str]:
    """Return the names in a pybind11 signature; those with a default end in ``=``."""
    names = []
    for part in re.split(r", (?=\w+: )", text):
        name, _, rest = part.partition(":")
        if name:
            names.append(name + ("=" if " = " in rest else ""))
    return names


def main() -> None:
    trt = importlib.import_module("tensorrt_bindings")
    api = {
        "version": trt.__version__,
        "module": sorted(n for n in dir(trt) if not n.startswith("_")),
        "classes": {name: describe(getattr(trt, name)) for name in CLASSES},
    }
    target = Path(__file__).with_name(f"api_{trt.__version__}.json")
    target.write_text(json.dumps(api, indent=0, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
