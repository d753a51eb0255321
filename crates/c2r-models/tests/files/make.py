"""Models as people have them, for images of 1x8x8 pixels and 3 classes: python3 make.py, with torch 2.11.

Each file stands for a mistake or habit that c2r must name; `good.pt` has none. All but the last three are TorchScript.
"""

import pathlib
import zipfile

import torch
import torch.nn as nn

HERE = pathlib.Path(__file__).parent


class Net(nn.Module):
    """Weights without structure, the same in every run."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter((torch.arange(192) * 0.7548776662466927 % 1 - 0.5).view(3, 64))

    def forward(self, x):
        return torch.matmul((x - 0.5).flatten(1), self.weight.t())


class Squeeze(Net):
    def forward(self, x):
        return torch.matmul((x - 0.5).flatten(1), self.weight.t())[:, :, None, None].squeeze()


class FixedBatch(Net):
    def forward(self, x):
        return torch.matmul((x - 0.5).view(int(x.shape[0]), 64), self.weight.t())


class OneOutput(Net):
    def forward(self, x):
        return torch.matmul((x - 0.5).flatten(1), self.weight.t())[:, :1]


class Classes(Net):
    def forward(self, x):
        return torch.matmul((x - 0.5).flatten(1), self.weight.t()).argmax(1).float()


class OneHot(Net):
    def forward(self, x):
        classes = torch.matmul((x - 0.5).flatten(1), self.weight.t()).argmax(1)
        return torch.nn.functional.one_hot(classes, 3).float()


class Tuple(Net):
    def forward(self, x):
        z = torch.matmul((x - 0.5).flatten(1), self.weight.t())
        return z, z


class Dict(Net):
    def forward(self, x):
        z = torch.matmul((x - 0.5).flatten(1), self.weight.t())
        return {"features": x, "logits": z}


class InPlace(Net):
    def forward(self, x):
        x.sub_(0.5)
        return torch.matmul(x.flatten(1), self.weight.t())


class Mutating(Net):
    def forward(self, x):
        with torch.no_grad():
            x.mul_(0.9)
        return torch.matmul((x - 0.5).flatten(1), self.weight.t())


class OwnMean(Net):
    """Normalizes by the image's own deviation, which a constant image does not have."""

    def forward(self, x):
        x = x.flatten(1)
        return torch.matmul((x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True), self.weight.t())


class Root(Net):
    """The same function as Net; the gradient of sqrt at 0 is infinite, and 0 times that NaN."""

    def forward(self, x):
        return torch.matmul((torch.sqrt(x).pow(2) - 0.5).flatten(1), self.weight.t())


class Sigmoid(Net):
    def forward(self, x):
        return torch.sigmoid(torch.matmul((x - 0.5).flatten(1), self.weight.t()))


class Bright(Net):
    """Fails on a white pixel, which only some attacks make of dark images."""

    def forward(self, x):
        if float(x.max()) >= 1.0:
            raise ValueError("too bright")
        return torch.matmul((x - 0.5).flatten(1), self.weight.t())


class Memory(Net):
    """Says what PyTorch says where memory runs out, with more than one image."""

    def forward(self, x):
        if x.size(0) > 1:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 MiB.")
        return torch.matmul((x - 0.5).flatten(1), self.weight.t())


def rewrite(name, change=lambda entry, data: data):
    """Writes an archive again, without the records of where its code came from, which name the machine."""
    path = HERE / name
    with zipfile.ZipFile(path) as archive:
        entries = [(info.filename, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(path, "w") as archive:
        for entry, data in entries:
            if not entry.endswith(".debug_pkl"):
                archive.writestr(zipfile.ZipInfo(entry), change(entry, data))


def save(name, script):
    script.save(str(HERE / f"{name}.pt"))
    rewrite(f"{name}.pt")


if __name__ == "__main__":
    images = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for name, model in {
        "good": Net(),
        "squeeze": Squeeze(),
        "one-output": OneOutput(),
        "classes": Classes(),
        "one-hot": OneHot(),
        "tuple": Tuple(),
        "dict": Dict(),
        "in-place": InPlace(),
        "mutating": Mutating(),
        "own-mean": OwnMean(),
        "root": Root(),
        "sigmoid": Sigmoid(),
        "bright": Bright(),
        "memory": Memory(),
        "half": Net().half(),
        "double": Net().double(),
    }.items():
        save(name, torch.jit.script(model.eval()))
    save("fixed-batch", torch.jit.trace(FixedBatch(), images))
    dropout = nn.Sequential(nn.Dropout(0.5), Net()).train()
    save("dropout", torch.jit.trace(dropout, images, check_trace=False))
    # As saved on a GPU.
    save("cuda", torch.jit.script(Net()))
    rewrite("cuda.pt", lambda _, data: data.replace(b"X\x03\0\0\0cpu", b"X\x06\0\0\0cuda:0"))
    # As a `print` in forward is saved.
    save("printing", torch.jit.script(Net()))
    rewrite("printing.pt", lambda _, data: data.replace(b"    _0 = torch", b'    print("a batch")\n    _0 = torch'))
    torch.save(Net().state_dict(), HERE / "state-dict.pth")
    torch.save(Net().state_dict(), HERE / "legacy.pth", _use_new_zipfile_serialization=False)
    torch.export.save(torch.export.export(Net(), (images,)), HERE / "exported.pt2")
    # The names are enough to tell what it is.
    rewrite("exported.pt2", lambda entry, data: b"")
