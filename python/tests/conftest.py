"""What the tests share: models, images and, where the checkout has it, the command."""

import os
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

import c2r

# The networks here are too small to share.
torch.set_num_threads(1)

CHECKOUT = Path(__file__).resolve().parents[2]
CLASSES, SHAPE = 4, (3, 8, 8)


class Net(nn.Module):
    """A small network with what real ones have: normalization inside, batch norm and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.5),
            nn.Linear(8 * 4 * 4, CLASSES),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers((images - 0.5) / 0.25)


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(24, *SHAPE, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def labels(net: Net, images: torch.Tensor) -> torch.Tensor:
    """The model's own classes, but for two images."""
    with torch.no_grad():
        labels = net(images).argmax(1)
    labels[[3, 11]] = (labels[[3, 11]] + 1) % CLASSES
    return labels


@pytest.fixture
def command() -> Path:
    """The command `c2r` of this checkout, on the libtorch that is imported here."""
    path = Path(os.environ.get("C2R_COMMAND", CHECKOUT / "target" / "release" / "c2r"))
    if not path.is_file():
        pytest.skip(f"SKIPPED: there is no {path}; `cargo build --release` makes it")
    return path


@pytest.fixture
def robustbench(monkeypatch):
    """RobustBench with c2r in the place of autoattack, and without the dataset that it would download."""
    for name in ("autoattack", "autoattack.state"):
        monkeypatch.setitem(sys.modules, name, None)
    c2r.autoattack.install()
    with warnings.catch_warnings():
        # It imports pkg_resources.
        warnings.simplefilter("ignore")
        return pytest.importorskip("robustbench")
