"""Builds the wheel: maturin's PEP 517 backend, after a look at what pip cannot ask for.

The wheel is linked to the libtorch of the torch in the environment that it is built for, so torch 2.11 must be there
before; the isolated environment of the build has none and needs none.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

# The torch that the pinned `tch` binds: ../xtask/src/libtorch.rs.
TORCH = "2.11"
RUST = """no `cargo` was found, and c2r is compiled from Rust. Install Rust 1.88 or newer:
    curl https://sh.rustup.rs -sSf | sh        (or, on Debian and Ubuntu: sudo apt-get install rustup)
then open a new shell and run the same command again."""
COMPILER = """no C++ compiler was found, and c2r compiles code against the headers of torch. Install one:
    Debian, Ubuntu:  sudo apt-get install g++
    Fedora, RHEL:    sudo dnf install gcc-c++"""
# `-I` leaves out PYTHONPATH, by which pip hides the environment from the build.
FIND = "import importlib.util as u; s = u.find_spec('torch'); print(s.origin if s and s.origin else '')"


def _interpreters():
    """The interpreter of the environment that the wheel is for: pip's own, or the active one (uv builds elsewhere)."""
    yield sys.executable
    for variable in ("VIRTUAL_ENV", "CONDA_PREFIX"):
        if variable in os.environ:
            yield os.path.join(os.environ[variable], "bin", "python")


def _torch():
    """The folder of torch, and the interpreter that has it."""
    for python in _interpreters():
        found = subprocess.run([python, "-I", "-c", FIND], capture_output=True, text=True, check=False)
        origin = found.stdout.strip()
        if origin:
            return Path(origin).parent, python
    raise SystemExit(
        f"c2r is built for the torch of the environment, and there is none in {sys.prefix}. Install it first:\n"
        f"    python -m pip install 'torch=={TORCH}.*'"
    )


def _version(torch):
    """`2.11.0+cu130` of the line `__version__ = '2.11.0+cu130'`."""
    match = re.search(r"^__version__ = ['\"]([^'\"]+)", (torch / "version.py").read_text(), re.MULTILINE)
    return match.group(1) if match else "of an unknown version"


def _check():
    torch, python = _torch()
    version = _version(torch)
    if not version.startswith(TORCH + "."):
        raise SystemExit(
            f"c2r needs torch {TORCH}, and {torch} is torch {version}. Install the other one first:\n"
            f"    {python} -m pip install 'torch=={TORCH}.*'"
        )
    if shutil.which("cargo") is None:
        raise SystemExit(RUST)
    if shutil.which(os.environ.get("CXX", "c++")) is None:
        raise SystemExit(COMPILER)
    return torch, python


def _maturin():
    """maturin's backend, which builds with the libtorch that was found."""
    torch, python = _check()
    # Cargo's configuration names another libtorch, that of the checkout, and is overruled by nothing else.
    os.environ["MATURIN_PEP517_ARGS"] = "--config " + shlex.quote(f"env.LIBTORCH.value={json.dumps(str(torch))}")
    # torch-sys asks this one for the headers of Python.
    os.environ["PATH"] = os.path.dirname(python) + os.pathsep + os.environ["PATH"]
    os.environ.setdefault("VIRTUAL_ENV", sys.prefix)
    import maturin

    return maturin


def get_requires_for_build_wheel(config_settings=None):
    _check()
    return []


def prepare_metadata_for_build_wheel(metadata_directory, config_settings=None):
    return _maturin().prepare_metadata_for_build_wheel(metadata_directory, config_settings)


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    return _maturin().build_wheel(wheel_directory, config_settings, metadata_directory)


def get_requires_for_build_editable(config_settings=None):
    return get_requires_for_build_wheel()


def prepare_metadata_for_build_editable(metadata_directory, config_settings=None):
    return _maturin().prepare_metadata_for_build_editable(metadata_directory, config_settings)


def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    return _maturin().build_editable(wheel_directory, config_settings, metadata_directory)
