"""What a run is made with."""

import platform
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("vlalign", "torch", "transformers", "open_clip_torch", "timm", "peft", "accelerate", "deepspeed")


def versions() -> dict[str, str]:
    """Of Python, and of each package that is installed here."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
