"""What a measurement rests on: the machine and the versions of what ran."""

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = (
    "sift-rag-ttt",
    "numpy",
    "scipy",
    "torch",
    "transformers",
    "peft",
    "sentence-transformers",
    "langchain-core",
    "llama-index-core",
)


def machine() -> dict[str, str | int | float]:
    """Processor, cores, memory, system and Python; what cannot be found is left out."""
    found: dict[str, str | int | float] = {
        "cpu": processor(),
        "cores": os.cpu_count() or 1,
        "platform": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        found["memory_gb"] = round(size / 1e9, 1)
    torch = sys.modules.get("torch")  # asked only where it is loaded anyway
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def processor() -> str:
    """The processor's name."""
    info = Path("/proc/cpuinfo")
    text = info.read_text(encoding="utf-8") if info.exists() else ""
    names = [line.partition(":")[2].strip() for line in text.splitlines() if "model name" in line]
    return names[0] if names else platform.processor() or "unknown CPU"


def versions(packages: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    """The version of each package that is installed."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
