"""What a run was made with: versions, device, threads; recorded in every manifest."""

from __future__ import annotations

import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import torch

from cilseg import __version__

_PACKAGES = ("numpy", "pillow", "timm", "lightning-fabric", "safetensors", "onnx", "onnxruntime", "torchvision")


def git_commit() -> str | None:
    """Return the commit that cilseg runs from, with ``+`` where files changed; ``None`` outside a checkout."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        head = _git(root, "rev-parse", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no", "--", "cilseg", "export", "serve")
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{head}{'+' if changed else ''}"


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()


def environment() -> dict[str, str]:
    """Return package versions and the machine, as strings."""
    found = {"cilseg": __version__, "python": platform.python_version(), "torch": torch.__version__}
    commit = git_commit()
    if commit is not None:
        found["git_commit"] = commit
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    found["platform"] = f"{sys.platform} {platform.machine()}"
    found["device"] = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu"
    found["torch_threads"] = str(torch.get_num_threads())
    return found
