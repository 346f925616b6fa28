"""A description of the machine that something is measured on."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path

import torch

CPUINFO = Path("/proc/cpuinfo")


def machine() -> dict[str, str | int | None]:
    """Return a description of this machine as JSON values; None for what cannot be determined.

    ``platform``, ``processor`` (model name), ``cores`` (logical, usable by this process), ``memory_bytes``,
    ``python``, ``torch``, ``torchvision``, ``onnxruntime``, ``openvino`` and ``gpu`` (its name). Threads belong to what
    is timed; see ``timing.Workload``.
    """
    return {
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": cores(),
        "memory_bytes": _memory_bytes(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # a subclass of str
        "torchvision": _version("torchvision"),
        "onnxruntime": _version("onnxruntime"),
        "openvino": _version("openvino"),
        "gpu": _gpu(),
    }


def _processor() -> str | None:
    if CPUINFO.exists():
        found = re.search(r"^model name\s*:\s*(.+)$", CPUINFO.read_text(errors="replace"), flags=re.MULTILINE)
        if found:
            return found[1].strip()
    if platform.system() == "Darwin":
        command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
        try:
            asked = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
        except (OSError, subprocess.SubprocessError):
            pass
        else:
            return asked.stdout.strip() or None
    return platform.processor() or platform.machine() or None


def cores() -> int | None:
    """Return the number of logical cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _gpu() -> str | None:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    if torch.backends.mps.is_available():
        return "Apple GPU (mps)"
    return None
