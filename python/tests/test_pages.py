"""What the pages show to users of PyTorch, run as it stands there."""

import subprocess
import sys

import pytest
import torch

import c2r
from conftest import CHECKOUT

DOCS = CHECKOUT / "docs"
SMALL = ["--set", "length={steps=20}", "--threads", "1"]


def blocks(text):
    """The blocks of torch on docs/formats.md that hold ``text``."""
    all = [rest.split("```")[0] for rest in (DOCS / "formats.md").read_text().split("```python\n")[1:]]
    return [block for block in all if "torch" in block and text in block]


def run(*words):
    result = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture
def mosaics(tmp_path):
    """The run folder of a distilled set of 2 x 2 mosaics."""
    folder = tmp_path / "run"
    c2r.distill("digits", 2, "random-real-mosaic", run_dir=folder, progress=False)
    return folder


def test_mosaics_are_decoded_as_we_do(mosaics):
    (block,) = blocks("def decode")
    names = {}
    exec(block, names)
    found = c2r.load_set(mosaics / "synthetic.safetensors")
    assert found.formation == 2 and found.stored.shape == (20, 1, 8, 8)
    assert torch.allclose(names["decode"](found.stored, 2), found.images, atol=1e-6)


def test_an_exported_set_is_read(mosaics, command, tmp_path, monkeypatch):
    run(command, "export", mosaics, "--to", "pt", tmp_path / "set.pt")
    run(command, "export", mosaics, "--to", "pt", tmp_path / "normalized.pt", "--normalized")
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(blocks("torch.load")[0], names)
    found = c2r.load_set(mosaics / "synthetic.safetensors")
    assert torch.equal(names["images"], found.images) and torch.equal(names["labels"], found.labels)
    saved = torch.load("normalized.pt", weights_only=True)
    again = saved["data"][0][0] * saved["std"].view(1, -1, 1, 1) + saved["mean"].view(1, -1, 1, 1)
    assert torch.allclose(again, found.images, atol=1e-6)


@pytest.mark.parametrize("spec", ["ConvNet-D2-W8-IN", "ConvNet-D2-W8-NONE"])
def test_a_network_is_loaded_in_two_ways(mosaics, command, tmp_path, monkeypatch, spec):
    """The network of the page and the exported one have the same logits, gradients and names."""
    run(command, "train", "--synthetic", mosaics, "--model", spec, *SMALL, "--run-dir", tmp_path)
    run(command, "export", tmp_path, "--to", "torchscript", tmp_path / "net.pt")
    monkeypatch.chdir(tmp_path)
    names = {}
    (block,) = blocks("model.safetensors")
    assert len(block.splitlines()) <= 35, "about thirty lines"
    exec(block, names)
    net, exported = names["net"], torch.jit.load("net.pt")
    images = torch.rand(5, 1, 8, 8, requires_grad=True)
    assert torch.allclose(net(images), exported(images), atol=1e-5)
    gradients = [torch.autograd.grad(model(images).square().sum(), images)[0] for model in (net, exported)]
    assert torch.allclose(*gradients, atol=1e-4)
    state = exported.state_dict()
    assert set(state) - set(net.state_dict()) == {"mean", "std"}
    assert [name for name, _ in exported.named_parameters() if name not in net.state_dict()] == []
    assert not exported.eval().training and exported.double()(images.double()).dtype == torch.float64
    result = c2r.attack(
        torch.jit.load("net.pt"), images.detach(), net(images).argmax(1), "fgsm", eps="8/255", progress=False
    )
    assert result.clean_accuracy == 1


def test_the_scripts_distil_and_train(command, tmp_path):
    """A loss of one's own, then a network in PyTorch, which is far better than chance."""
    c2r.distill("digits", 20, "random-real", run_dir=tmp_path / "real", progress=False)
    run(command, "export", tmp_path / "real", "--to", "pt", tmp_path / "real.pt")
    script = [sys.executable, DOCS / "distil_in_pytorch.py", tmp_path / "real.pt", tmp_path / "mine.pt"]
    said = run(*script, "--ipc", 2, "--iterations", 3)
    assert "mine.pt: 20 images" in said, said
    imported = tmp_path / "mine.safetensors"
    run(command, "import", tmp_path / "mine.pt", "--dataset", "digits", "--method", "mine", "-o", imported)
    run(command, "export", imported, "--to", "pt", tmp_path / "set.pt")
    run(sys.executable, DOCS / "train_in_pytorch.py", tmp_path / "set.pt", tmp_path / "net.pt", "--epochs", 100)
    words = ["--dataset", "digits", "--attack", "fgsm", "--eps", "32/255", "--threads", 1, "--json"]
    said = run(command, "attack", "--model", tmp_path / "net.pt", *words)
    accuracy = float(said.split('"clean_accuracy":')[1].split(",")[0])
    assert accuracy > 0.6, said
