"""What pip, `import c2r` and `python -m c2r doctor` say."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import c2r
from c2r import __main__ as command


@pytest.fixture
def backend():
    path = Path(__file__).parents[1] / "build_backend.py"
    spec = importlib.util.spec_from_file_location("build_backend", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fake_torch(folder: Path, version: str) -> Path:
    folder.mkdir()
    (folder / "version.py").write_text(f"__version__ = '{version}'\n")
    return folder


def test_the_backend_finds_this_torch(backend):
    torch_folder, python = backend._torch()
    assert torch_folder == Path(torch.__file__).parent and python == sys.executable
    assert backend._version(torch_folder) == torch.__version__


def test_another_torch_is_an_error_that_names_both(backend, tmp_path, monkeypatch):
    other = fake_torch(tmp_path / "torch", "2.10.1+cpu")
    monkeypatch.setattr(backend, "_torch", lambda: (other, "python"))
    with pytest.raises(SystemExit) as caught:
        backend.get_requires_for_build_wheel()
    assert "needs torch 2.11" in str(caught.value) and "is torch 2.10.1+cpu" in str(caught.value)


def test_no_torch_no_rust_and_no_compiler_are_errors_that_say_what_to_install(backend, tmp_path, monkeypatch):
    right = fake_torch(tmp_path / "torch", "2.11.0")
    with monkeypatch.context() as patch:
        patch.setattr(backend, "FIND", "print()")
        with pytest.raises(SystemExit, match="pip install 'torch==2.11"):
            backend.prepare_metadata_for_build_wheel(str(tmp_path))
    monkeypatch.setattr(backend, "_torch", lambda: (right, "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match="Install Rust"):
        backend.build_wheel(str(tmp_path))
    (tmp_path / "cargo").touch(mode=0o755)
    with pytest.raises(SystemExit, match="apt-get install g"):
        backend.build_wheel(str(tmp_path))


def test_import_with_another_torch_names_both(tmp_path):
    (fake_torch(tmp_path / "torch", "") / "__init__.py").write_text("__version__ = '2.12.0'\n")
    (tmp_path / "c2r").symlink_to(Path(c2r.__path__[0]))
    ran = subprocess.run(
        [sys.executable, "-c", "import c2r"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 1
    assert "ImportError: c2r was built for torch 2.11, and torch 2.12.0 is installed in" in ran.stderr


def test_doctor(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["c2r", "doctor"])
    assert command.main() == 0
    lines = capsys.readouterr().out
    assert f"torch    {torch.__version__}" in lines and "attack   on cpu works" in lines
    # A wrong number is found.
    monkeypatch.setattr(c2r, "attack", lambda *_, **__: c2r.Result(None, None, 1.0, 1.0, [], {}))
    assert command.main() == 1
    assert "is wrong: robust accuracy 1.0, expected 0.5" in capsys.readouterr().out


TYPED = """
import numpy as np
import torch

import c2r

net: torch.nn.Module = torch.nn.Linear(1, 2)
x, y = np.zeros((2, 1, 1, 1), dtype="float32"), np.zeros(2, dtype="int64")
one: torch.Tensor = c2r.attack(net, x, y, "pgd", eps=torch.tensor(0.1), steps=3, step_size="1/255").adversarial
many = c2r.attack(net, x, y, ["pgd", "fgsm"], eps="1/255", each=True, steps=3).adversarial
c2r.save_set("x.npz", x, y)
c2r.train(c2r.distill((x, y), ipc=1, iterations=3), length={"steps": 3})
reveal_type(many)
c2r.torchattacks.APGE(net)
"""


def test_types_are_those_of_use(tmp_path):
    mypy = pytest.importorskip("mypy.api")
    (tmp_path / "typed.py").write_text(TYPED)
    said, _, _ = mypy.run([str(tmp_path / "typed.py"), "--cache-dir", str(tmp_path / "cache")])
    errors = [line for line in said.splitlines() if "typed.py" in line]
    assert len(errors) == 2, said
    assert "torch._tensor.Tensor" in errors[0] and "dict[" in errors[0], said
    assert 'no attribute "APGE"' in errors[1], said


def test_everything_public_is_documented():
    for module in (c2r, c2r.torchattacks, c2r.autoattack):
        for name in module.__all__:
            item = getattr(module, name)
            if callable(item):
                assert item.__doc__ and len(item.__doc__) > 20, name
