"""What a run was made with: versions, device, threads; recorded in every manifest."""

from __future__ import annotations

import platform
import sys
from importlib import metadata

import torch

from cilseg import __version__

_PACKAGES = ("numpy", "pillow", "timm", "lightning-fabric", "safetensors", "onnx", "onnxruntime", "torchvision")


def environment() -> dict[str, str]:
    """Return package versions and the machine, as strings."""
    found = {"cilseg": __version__, "python": platform.python_version(), "torch": torch.__version__}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    found["platform"] = f"{sys.platform} {platform.machine()}"
    found["device"] = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu"
    found["torch_threads"] = str(torch.get_num_threads())
    return found
