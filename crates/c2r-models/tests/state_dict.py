"""Logits of the field's networks in PyTorch 2.11 on the CPU, and files of torch.save, for the tests of `StateDict`.

The parameters are computed, so that networks of 11 million of them need no file: parameter number j by name, value i, is
from frac((i + 1) A + j B) - 1/2 (see `fill`). Usage: python state_dict.py; writes state_dict.json and files/*.pt beside it.
"""

import collections, json, pathlib
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

A, B = 0.7548776662466927, 0.5698402909980532
HERE = pathlib.Path(__file__).parent


def noise(n, j):
    x = np.arange(1, n + 1, dtype=np.float64) * A + j * B
    return x - np.floor(x) - 0.5


def fill(net):
    state = net.state_dict()
    names = sorted(name for name in state if not name.endswith("num_batches_tracked"))
    for j, name in enumerate(names):
        tensor = state[name]
        value = noise(tensor.numel(), j).reshape(tensor.shape)
        fan_in = tensor[0].numel() if tensor.dim() in (2, 4) else 0
        if fan_in:
            value = value * 4 / np.sqrt(fan_in)
        elif name.endswith("weight") or name.endswith("running_var"):
            value = 1 + 0.4 * value
        else:
            value = 0.2 * value
        state[name] = torch.tensor(value.astype(np.float32))
    net.load_state_dict(state)
    return net.eval()


def norm(kind, channels, side=None):
    return {"IN": lambda: nn.GroupNorm(channels, channels), "BN": lambda: nn.BatchNorm2d(channels),
            "GN": lambda: nn.GroupNorm(4, channels), "LN": lambda: nn.LayerNorm([channels, side, side])}[kind]()


class ConvNet(nn.Module):
    def __init__(self, channels, side, classes, width, depth, kind, pool="AP"):
        super().__init__()
        layers, into = [], channels
        pad = 3 if channels == 1 and side == 28 else 1
        side = 32 if side == 28 else side
        for _ in range(depth):
            layers.append(nn.Conv2d(into, width, 3, padding=pad))
            pad = 1
            layers += [] if kind == "NONE" else [norm(kind, width, side)]
            layers.append(nn.ReLU())
            layers += {"AP": [nn.AvgPool2d(2, 2)], "MP": [nn.MaxPool2d(2, 2)], "NP": []}[pool]
            side, into = side if pool == "NP" else side // 2, width
        self.features, self.classifier = nn.Sequential(*layers), nn.Linear(width * side * side, classes)

    def forward(self, x):
        return self.classifier(self.features(x).flatten(1))


class Plain(nn.Module):
    """VGG-11 and AlexNet: a list of channels, "M" for max pooling."""

    def __init__(self, channels, classes, plan, kind, last, pad=None):
        super().__init__()
        layers, into = [], channels
        for entry in plan:
            if entry == "M":
                layers.append(nn.MaxPool2d(2, 2))
                continue
            out, kernel = entry if isinstance(entry, tuple) else (entry, 3)
            layers.append(nn.Conv2d(into, out, kernel, padding=pad or kernel // 2))
            pad = None
            layers += [norm(kind, out)] if kind else []
            layers.append(nn.ReLU())
            into = out
        self.features, self.last = nn.Sequential(*layers), last
        setattr(self, last, nn.Linear(into if kind else into * 16, classes))

    def forward(self, x):
        return getattr(self, self.last)(self.features(x).flatten(1))


class Block(nn.Module):
    def __init__(self, into, out, halve, kind, pools):
        super().__init__()
        stride = 2 if halve and not pools else 1
        self.conv1, self.bn1 = nn.Conv2d(into, out, 3, stride, 1, bias=False), norm(kind, out)
        self.conv2, self.bn2 = nn.Conv2d(out, out, 3, 1, 1, bias=False), norm(kind, out)
        self.pool = nn.AvgPool2d(2, 2) if halve and pools else nn.Identity()
        fit = [nn.Conv2d(into, out, 1, stride, bias=False), *([nn.AvgPool2d(2, 2)] if pools else []), norm(kind, out)]
        self.shortcut = nn.Sequential(*(fit if halve else []))

    def forward(self, x):
        y = self.bn2(self.conv2(self.pool(F.relu(self.bn1(self.conv1(x))))))
        return F.relu(y + self.shortcut(x))


class ResNet18(nn.Module):
    def __init__(self, channels, classes, kind, pools=False):
        super().__init__()
        self.conv1, self.bn1, self.pools = nn.Conv2d(channels, 64, 3, 1, 1, bias=False), norm(kind, 64), pools
        into = 64
        for stage, out in enumerate([64, 128, 256, 512], 1):
            blocks = [Block(into, out, stage > 1, kind, pools), Block(out, out, False, kind, pools)]
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
            into = out
        self.classifier = nn.Linear(512 * (16 if pools else 1), classes)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        for stage in range(1, 5):
            x = getattr(self, f"layer{stage}")(x)
        return self.classifier((x if self.pools else F.avg_pool2d(x, 4)).flatten(1))


VGG = [64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"]
ALEX = [(128, 5), "M", (192, 5), "M", 256, 192, 192, "M"]
NETS = [
    ("ConvNet-D3-W16-IN", [3, 32, 32], lambda: ConvNet(3, 32, 10, 16, 3, "IN")),
    ("ConvNet-D2-W8-NONE", [3, 32, 32], lambda: ConvNet(3, 32, 10, 8, 2, "NONE")),
    ("ConvNet-D2-W8-BN", [3, 32, 32], lambda: ConvNet(3, 32, 10, 8, 2, "BN")),
    ("ConvNet-D2-W8-GN-MP", [3, 32, 32], lambda: ConvNet(3, 32, 10, 8, 2, "GN", "MP")),
    ("ConvNet-D2-W8-LN", [3, 32, 32], lambda: ConvNet(3, 32, 10, 8, 2, "LN")),
    ("ConvNet-D1-W4-IN-NP", [3, 32, 32], lambda: ConvNet(3, 32, 10, 4, 1, "IN", "NP")),
    ("ConvNet-D3-W8-IN", [1, 28, 28], lambda: ConvNet(1, 28, 10, 8, 3, "IN")),
    ("ResNet18-IN", [3, 32, 32], lambda: ResNet18(3, 10, "IN")),
    ("ResNet18-BN", [3, 32, 32], lambda: ResNet18(3, 10, "BN")),
    ("ResNet18AP-BN", [3, 32, 32], lambda: ResNet18(3, 10, "BN", True)),
    ("VGG11-IN", [3, 32, 32], lambda: Plain(3, 10, VGG, "IN", "classifier")),
    ("VGG11-BN", [1, 28, 28], lambda: Plain(1, 10, VGG, "BN", "classifier", pad=3)),
    ("AlexNet-NONE", [3, 32, 32], lambda: Plain(3, 10, ALEX, None, "fc")),
    ("AlexNet-NONE", [1, 28, 28], lambda: Plain(1, 10, ALEX, None, "fc", pad=4)),
]


def main():
    torch.set_num_threads(1)
    cases = []
    for name, shape, make in NETS:
        net = fill(make())
        x = torch.tensor((noise(2 * int(np.prod(shape)), 0) + 0.5).astype(np.float32)).view(2, *shape)
        x = (x - 0.4) / 0.25
        with torch.no_grad():
            logits = net(x)
        shapes = {key: list(value.shape) for key, value in net.state_dict().items()}
        cases.append({"architecture": name, "image": shape, "state": shapes, "logits": logits.tolist()})
    (HERE / "state_dict.json").write_text(json.dumps(cases) + "\n")

    # What people have on disk, for images of 1x8x8: plain; by DataParallel inside a training's dictionary; legacy.
    net = fill(ConvNet(1, 8, 10, 4, 1, "IN"))
    files = HERE / "files"
    files.mkdir(exist_ok=True)
    torch.save(net.state_dict(), files / "sd-plain.pth")
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    net(torch.ones(1, 1, 8, 8)).sum().backward()
    optimizer.step()
    fill(net)
    wrapped = collections.OrderedDict(("module." + key, value) for key, value in net.state_dict().items())
    torch.save({"epoch": 3, "state_dict": wrapped, "optimizer": optimizer.state_dict(), "best_acc": 0.5}, files / "sd-training.pt")
    torch.save(net.state_dict(), files / "sd-legacy.pth", _use_new_zipfile_serialization=False)


main()
