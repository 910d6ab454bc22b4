"""Where a measurement comes from: the device, the versions, the date and the digest of the code.

Standard library only at import time, so that the test suite's evidence check can use
:func:`digest` on a machine without CUDA.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
import re
import subprocess
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"

DIGEST_FOLDERS = ("graphkit", "kernels", "tests")
DIGEST_SUFFIXES = (".py", ".cu", ".toml", ".json")

PACKAGES = (
    "cuda-bindings",
    "cuda-core",
    "cupy-cuda12x",
    "cupy-cuda13x",
    "numpy",
    "torch",
    "transformers",
    "triton",
)


def digest(root: Path = ROOT) -> str:
    """Return the SHA-256 of the code that a result was obtained with, in hex.

    It covers ``path NUL content NUL`` of every ``.py``, ``.cu``, ``.toml`` and ``.json`` file under
    graphkit/, kernels/ and tests/; paths are POSIX, relative to ``root``, sorted as strings. Hidden
    folders and ``__pycache__`` are left out: tools put their caches there, JSON among them.
    """
    files: dict[str, Path] = {}
    for folder in DIGEST_FOLDERS:
        for path in (root / folder).rglob("*"):
            relative = path.relative_to(root)
            hidden = any(part.startswith(".") or part == "__pycache__" for part in relative.parts)
            if path.suffix in DIGEST_SUFFIXES and not hidden and path.is_file():
                files[relative.as_posix()] = path
    sha = hashlib.sha256()
    for name in sorted(files):
        sha.update(name.encode() + b"\0" + files[name].read_bytes() + b"\0")
    return sha.hexdigest()


def device_slug(device: str) -> str:
    """Return the folder name of a device: ``"NVIDIA H200"`` is ``"nvidia-h200"``."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def package_versions(names: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Return the version of each named distribution that is installed."""
    versions = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def cpu_name() -> str:
    """Return the processor's name: host times are the host's."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found.group(1) if found else platform.machine()


def provenance(root: Path = ROOT) -> dict[str, Any]:
    """Return device, driver, cuda, cpu, python, packages, date and digest, for a results file.

    Raises:
        RuntimeError: without a CUDA device; a result without a device is none.
    """
    from cuda.bindings import runtime

    def ask(answer: tuple[Any, ...]) -> Any:
        if int(answer[0]) != 0:
            raise RuntimeError(f"no CUDA device answers: {answer[0]!r}")
        return answer[1]

    name = ask(runtime.cudaGetDeviceProperties(ask(runtime.cudaGetDevice()))).name
    return {
        "device": (name.decode() if isinstance(name, bytes) else str(name)).rstrip("\0"),
        "driver": _driver_version() or _dotted(ask(runtime.cudaDriverGetVersion())),
        "cuda": _dotted(ask(runtime.cudaRuntimeGetVersion())),
        "cpu": cpu_name(),
        "python": platform.python_version(),
        "packages": package_versions(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "digest": digest(root),
    }


def _dotted(version: int) -> str:
    return f"{version // 1000}.{version % 1000 // 10}"


def _driver_version() -> str | None:
    """Ask nvidia-smi: the CUDA API knows the driver only by its CUDA version."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() or None
