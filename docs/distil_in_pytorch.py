"""Distil a set with a loss of your own in plain PyTorch; c2r then trains on it, attacks the networks and compares.

c2r distill --dataset digits --config random-real --ipc 100 --run-dir runs/real    # real images, 100 of each class
c2r export runs/real --to pt real.pt
python3 docs/distil_in_pytorch.py real.pt mine.pt --ipc 10
c2r import mine.pt --dataset digits --method mine -o mine.safetensors
"""

import argparse

import torch
from torch import nn

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("real", help="real images: {'data': [[images, labels]]}, pixels in [0, 1]")
parser.add_argument("out", help="the distilled set to write, in the same layout")
parser.add_argument("--ipc", type=int, default=1, help="images per class")
parser.add_argument("--iterations", type=int, default=1000)
parser.add_argument("--seed", type=int, default=0)
args = parser.parse_args()


def loss(real, synthetic):
    """Your loss, of features [n, D] of one class's real images and [ipc, D] of its synthetic ones. This is the one of DM."""
    return (real.mean(0) - synthetic.mean(0)).square().sum()


torch.manual_seed(args.seed)
device = "cuda" if torch.cuda.is_available() else "cpu"
saved = torch.load(args.real, weights_only=True, map_location=device)
images, labels = saved["data"][0]
if images.shape[-1] <= 8:
    torch.set_num_threads(1)  # networks as small as those for the digits gain nothing from more
mean, std = (saved[name].view(1, -1, 1, 1) for name in ("mean", "std"))
(_, channels, side, _), width = images.shape, 128 if images.shape[1] == 3 else 32
depth = 3 if channels == 3 else 2
classes = [images[labels == label] for label in range(int(labels.max()) + 1)]

pixels = torch.cat([real[torch.randperm(len(real))[: args.ipc]] for real in classes]).requires_grad_()
optimizer = torch.optim.Adam([pixels], lr=0.01)
for iteration in range(args.iterations):
    blocks = []  # a network with new random weights in every iteration
    for block in range(depth):
        blocks += [nn.Conv2d(width if block else channels, width, 3, padding=1), nn.GroupNorm(width, width)]
        blocks += [nn.ReLU(), nn.AvgPool2d(2)]
    network = nn.Sequential(*blocks, nn.Flatten()).to(device).requires_grad_(False)
    total = 0
    for real, synthetic in zip(classes, pixels.split(args.ipc)):
        batch = real[torch.randint(len(real), (64,))]
        total = total + loss(network((batch - mean) / std), network((synthetic - mean) / std))
    if not torch.isfinite(total):
        raise SystemExit(f"iteration {iteration}: the loss is {total.item()}, so nothing was saved")
    optimizer.zero_grad()
    total.backward()
    optimizer.step()
    with torch.no_grad():
        pixels.clamp_(0, 1)
    if iteration % 100 == 0:
        print(f"iteration {iteration}: loss {total.item():.3f}")

targets = torch.arange(len(classes)).repeat_interleave(args.ipc)
torch.save({"data": [[pixels.detach().cpu(), targets]]}, args.out)
print(f"{args.out}: {len(pixels)} images, last loss {total.item():.3f}")
