"""Train a ConvNet in plain PyTorch on a distilled set of c2r, as `c2r train --protocol natural` does.

c2r export runs/first --to pt set.pt
python3 docs/train_in_pytorch.py set.pt net.pt
c2r attack --model net.pt --dataset digits --attack fgsm,pgd --eps 32/255 --each
"""

import argparse

import torch
import torch.nn.functional as F
from torch import nn

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("set", help="what `c2r export --to pt` wrote")
parser.add_argument("net", help="the TorchScript model to write, from pixels in [0, 1] to logits")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--epochs", type=int, default=1000)
parser.add_argument("--width", type=int, help="channels of each layer (default: 32 for grey images, 128 for colour)")
args = parser.parse_args()

torch.manual_seed(args.seed)
device = "cuda" if torch.cuda.is_available() else "cpu"
distilled = torch.load(args.set, weights_only=True, map_location=device)
for option, name in (("--stored", "formation"), ("--normalized", "normalized")):
    if name in distilled:
        raise SystemExit(f"{args.set} has no plain pixels: export it without {option}")
images, labels = distilled["data"][0]
n, channels, side, _ = images.shape
if side <= 8:
    torch.set_num_threads(1)  # networks as small as those for the digits gain nothing from more
# What c2r's tables take: a mirrored digit is another digit, and a grey image has no colour.
depth, width, ops = (2, 32, ["crop", "scale", "rotate"])
if channels == 3:
    depth, width, ops = (3, 128, [*ops, "color", "cutout", "flip"])
width = args.width or width


def augment(x):
    """DSA (arXiv:2102.08259): one operation for the batch, with numbers of its own for each image."""
    op = ops[torch.randint(len(ops), ())]
    u, v, w = torch.rand(3, len(x), 1, 1, 1, device=device)
    a, b, c, d, right, down = torch.tensor([1.0, 0, 0, 1, 0, 0], device=device).view(6, 1, 1, 1, 1).expand(6, *u.shape)
    if op == "flip":
        return torch.where(u < 0.5, x.flip(3), x)
    if op == "color":  # brightness, saturation, contrast
        x = torch.lerp((x + u - 0.5).mean(1, True), x + u - 0.5, 2 * v)
        return torch.lerp(x.mean((1, 2, 3), True), x, w + 0.5)
    if op == "cutout":  # a square of half the side around any pixel
        place, size = torch.arange(side, device=device), side // 2
        inside = [(place - (part * (side + 1)).floor() + size // 2) // size == 0 for part in (u, v)]
        return x * ~(inside[0].transpose(2, 3) & inside[1])
    if op == "crop":  # whole pixels, up to an eighth of the side
        most = int(side / 8 + 0.5)
        right, down = (((part * (2 * most + 1)).floor() - most) * 2 / side for part in (u, v))
    if op == "scale":
        a, d = (part * (1.2 - 1 / 1.2) + 1 / 1.2 for part in (u, v))
    if op == "rotate":  # up to 15 degrees
        angle = (2 * u - 1) * torch.pi / 12
        a, b, c, d = angle.cos(), -angle.sin(), angle.sin(), angle.cos()
    theta = torch.cat([a, b, right, c, d, down], 3).view(-1, 2, 3)
    return F.grid_sample(x, F.affine_grid(theta, list(x.shape), align_corners=False), align_corners=False)


class Normalize(nn.Module):
    def __init__(self, mean, std):
        super().__init__()
        self.register_buffer("mean", mean.view(1, -1, 1, 1))
        self.register_buffer("std", std.view(1, -1, 1, 1))

    def forward(self, x):
        return (x - self.mean) / self.std


normalize = Normalize(distilled["mean"], distilled["std"])
blocks = []
for block in range(depth):
    blocks += [nn.Conv2d(width if block else channels, width, 3, padding=1), nn.GroupNorm(width, width)]
    blocks += [nn.ReLU(), nn.AvgPool2d(2)]
net = nn.Sequential(*blocks, nn.Flatten(), nn.Linear(width * (side >> depth) ** 2, int(labels.max()) + 1)).to(device)
optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
for epoch in range(args.epochs):
    if epoch == (args.epochs + 1) // 2:
        optimizer.param_groups[0]["lr"] /= 10
    for batch in torch.randperm(n, device=device).split(256):
        loss = F.cross_entropy(net(augment(normalize(images[batch]))), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    if epoch % 100 == 99:
        print(f"epoch {epoch + 1}: loss {loss.item():.4f}", flush=True)
torch.jit.script(nn.Sequential(normalize, net).cpu().eval()).save(args.net)
print(f"{args.net}: trained on {n} images for {args.epochs} epochs, last loss {loss.item():.4f}")
