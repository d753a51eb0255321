"""`c2r train` in PyTorch, for whoever wants to read it so: `Training.step` is one step, from the batch to the parameters.

It follows docs/configuration.md, section "Training", and shares no code with c2r. make_steps.py beside this file makes of it the
numbers that c2r is tested with. Keys (`c`) are those of that page. Augmentation is that of DSA's authors (arXiv:2102.08259,
`DiffAugment` of their code with `param.Siamese = False`). What is random comes from outside (`draws`).
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

CLASSES, SHAPE = 3, (3, 8, 8)
MEAN, STD = [0.5, 0.45, 0.4], [0.25, 0.2, 0.3]
TEMPERATURE = 2.0  # of the teacher's labels


class ConvNet(nn.Module):
    """ConvNet-D2-W6-IN (docs/formats.md): from pixels in [0, 1] to logits."""

    def __init__(self, depth=2, filters=6):
        super().__init__()
        self.mean, self.std = (torch.tensor(values).view(1, -1, 1, 1) for values in (MEAN, STD))
        layers = []
        for block in range(depth):
            layers += [nn.Conv2d(filters if block else SHAPE[0], filters, 3, padding=1), nn.GroupNorm(filters, filters)]
            layers += [nn.ReLU(), nn.AvgPool2d(2)]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(filters * (SHAPE[1] >> depth) * (SHAPE[2] >> depth), CLASSES)

    def normalize(self, x):
        return (x - self.mean.to(x)) / self.std.to(x)

    def forward(self, x):
        return self.classifier(self.features(self.normalize(x)).flatten(1))


def decode(mosaics):
    """Mosaics of 2x2 images, [M, C, H, W], to [4 M, C, H, W] (docs/formats.md)."""
    m, c, h, w = mosaics.shape
    tiles = mosaics.reshape(m, c, 2, h // 2, 2, w // 2).permute(0, 2, 4, 1, 3, 5).reshape(-1, c, h // 2, w // 2)
    return F.interpolate(tiles, size=(h, w), mode="bilinear", align_corners=False)


def augment(x, draws):
    """DSA of normalized images; `draws`: for each image, one operation and its parameters."""
    (n, _, h, w), (operation,) = x.shape, {name for draw in draws for name in draw}
    of = lambda name: torch.tensor([draw[operation][name] for draw in draws], dtype=x.dtype)
    wide = lambda name: of(name).view(-1, 1, 1, 1)
    if operation == "flip":
        return torch.where(wide("flip").bool(), x.flip(3), x)
    if operation == "color":
        x = x + wide("brightness")
        grey = x.mean(1, keepdim=True)
        x = (x - grey) * wide("saturation") + grey
        mean = x.mean((1, 2, 3), keepdim=True)
        return (x - mean) * wide("contrast") + mean
    if operation == "crop":
        most = [int(side * 0.125 + 0.5) for side in (h, w)]
        padded = F.pad(x, [most[1], most[1], most[0], most[0]])
        # A part of 0 takes the top left of the padded image: the picture moves down and to the right.
        parts = [(draw["crop"]["row"], draw["crop"]["column"]) for draw in draws]
        corners = [[math.floor(part * (2 * m + 1)) for part, m in zip(pair, most)] for pair in parts]
        return torch.stack([padded[i, :, top : top + h, left : left + w] for i, (top, left) in enumerate(corners)])
    if operation == "cutout":
        x = x.clone()
        for i, draw in enumerate(draws):
            spans = []
            for side, name in ((h, "row"), (w, "column")):
                size = int(side * 0.5 + 0.5)
                centre = math.floor(draw["cutout"][name] * (side + 1 - size % 2))
                spans.append(slice(max(centre - size // 2, 0), centre - size // 2 + size))
            x[i, :, spans[0], spans[1]] = 0
        return x
    zero = torch.zeros(n, dtype=x.dtype)
    if operation == "scale":
        theta = [of("x"), zero, zero, zero, of("y"), zero]
    else:
        angle = of("radians")
        theta = [angle.cos(), (-angle).sin(), zero, angle.sin(), angle.cos(), zero]
    grid = F.affine_grid(torch.stack(theta, 1).view(n, 2, 3), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, align_corners=False)


def cutmix(x, targets, draw):
    """CutMix (arXiv:1905.04899): one rectangle for the batch, lambda the part that stays."""
    (h, w), others = x.shape[2:], torch.tensor(draw["others"])
    spans = []
    for side, centre in zip((h, w), draw["centre"]):
        half = int(side * math.sqrt(1 - draw["lambda"])) // 2
        spans.append(slice(max(centre - half, 0), min(centre + half, side)))
    mixed = x.clone()
    mixed[:, :, spans[0], spans[1]] = x[others][:, :, spans[0], spans[1]]
    taken = math.prod(span.stop - span.start for span in spans) / (h * w)
    return mixed, (1 - taken) * targets + taken * targets[others]


def project(x, y, norm, epsilon):
    """`y` moved into the ball around `x` and into [0, 1]."""
    wide = lambda values: values.view(-1, 1, 1, 1)
    if norm == "linf":
        return torch.minimum(torch.maximum(y, x - epsilon), x + epsilon).clamp(0, 1)
    if norm == "l2":
        length = (y - x).flatten(1).norm(dim=1)
        return (x + (y - x) * wide((epsilon / length.clamp(min=1e-12)).clamp(max=1))).clamp(0, 1)
    # L1: the nearest point of ball and box. Every value gives up the same t, found by bisection.
    delta = (y - x).double()
    room = torch.where(delta > 0, 1 - x.double(), x.double())
    moved = lambda t: torch.minimum((delta.abs() - wide(t)).clamp(min=0), room)
    low, high = torch.zeros(len(x)).double(), delta.abs().flatten(1).max(1)[0]
    fits = moved(low).flatten(1).sum(1) <= epsilon
    for _ in range(100):
        middle = (low + high) / 2
        outside = moved(middle).flatten(1).sum(1) > epsilon
        low, high = torch.where(outside, middle, low), torch.where(outside, high, middle)
    return (x + delta.sign() * moved(torch.where(fits, 0, high))).to(x)


def attack(net, x, targets, a, noise):
    """The attacked images of a step: PGD on the cross-entropy, or on the divergence for TRADES."""
    epsilon, norm = fraction(a["epsilon"]), a["norm"]
    length = a["rel-step-size"] * epsilon
    clean = net(x).detach()
    z = x if noise is None else project(x, x + noise, norm, epsilon)
    for _ in range(a["steps"]):
        z = z.detach().requires_grad_()
        losses = cross_entropy(net(z), targets) if a["loss"] == "pgd-at" else divergence(clean, net(z))
        (gradient,) = torch.autograd.grad(losses.sum(), z)
        if norm == "linf":
            direction = gradient.sign()
        elif norm == "l2":
            direction = gradient / gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        else:  # the largest value alone
            flat = gradient.flatten(1)
            at = flat.abs().max(1)[1]
            direction = (F.one_hot(at, flat.shape[1]) * flat.sign()).view_as(x)
        z = project(x, z.detach() + length * direction, norm, epsilon)
    return z


def cross_entropy(logits, targets):
    return -(targets * F.log_softmax(logits, 1)).sum(1)


def divergence(p, q):
    """KL(p || q) of two rows of logits, per image."""
    return F.kl_div(F.log_softmax(q, 1), F.log_softmax(p, 1), reduction="none", log_target=True).sum(1)


def fraction(text):
    over, _, under = text.partition("/")
    return float(over) / float(under or 1)


class Training:
    """A training with the keys `c`.

    inputs: weights of the network and the teacher, images and labels. draws: what is random, by step or epoch. jitter: relative
    noise on the weights.
    """

    def __init__(self, c, inputs, draws, jitter=0.0, dtype=torch.float32):
        self.c, self.draws, self.t, self.dtype = c, draws, 0, dtype
        self.net, self.teacher = ConvNet().to(dtype), ConvNet().to(dtype)
        for prefix, net in (("weights", self.net), ("teacher", self.teacher)):
            net.load_state_dict({name: inputs[f"{prefix}.{name}"] for name in net.state_dict()})
        with torch.no_grad():
            for parameter in self.net.parameters():
                parameter.mul_(1 + jitter * torch.randn_like(parameter))
        if c["images"] == "real":
            self.images, self.labels = inputs["real.images"].to(dtype) / 255, inputs["real.labels"]
        else:
            self.images = decode(inputs["mosaics"].to(dtype))
            self.labels = torch.arange(CLASSES).repeat_interleave(len(self.images) // CLASSES)
        self.targets = inputs["soft"].to(dtype) if c["labels"] == "soft" else F.one_hot(self.labels, CLASSES).to(dtype)
        self.per_epoch = math.ceil(len(self.images) / c["batch-size"])  # the last batch of an epoch may be smaller
        self.steps = c["length"]["steps"] if "steps" in c["length"] else c["length"]["epochs"] * self.per_epoch
        self.sgd = torch.optim.SGD(self.net.parameters(), lr=1.0, momentum=c["momentum"], weight_decay=c["weight-decay"])
        self.epoch_losses = []

    def rate(self):
        schedule, t, epoch = self.c["lr-schedule"], self.t, self.t // self.per_epoch
        if schedule == "constant":
            return self.c["lr"]
        if schedule == "half-way":
            return self.c["lr"] * (0.1 if t >= self.steps / 2 else 1)
        if schedule == "cosine":
            return self.c["lr"] * (1 + math.cos(math.pi * t / self.steps)) / 2
        return self.c["lr"] * 0.1 ** sum(epoch >= start for start in schedule["tenth-at-epochs"])

    def batch(self):
        """Positions of the images of a step."""
        n, (epoch, at) = len(self.images), divmod(self.t, self.per_epoch)
        order = torch.arange(n)
        if self.c["order"] == "tile-by-tile":  # top left, bottom left, top right, bottom right
            order = order.view(-1, 2, 2).permute(2, 1, 0).flatten()
        if self.c["order"] == "shuffled":
            order = torch.tensor(self.draws["order"][epoch])
        return order.split(self.c["batch-size"])[at]

    def step(self):
        """One step; returns its rate and the mean loss over the images of its epoch so far."""
        c, net, t = self.c, self.net, self.t
        rows = self.batch()
        x, targets = self.images[rows], self.targets[rows]
        if c["dsa"] != "none":
            mean, std = net.mean.to(x), net.std.to(x)
            x = augment((x - mean) / std, self.draws["dsa"][c["dsa"]][t][: len(x)]) * std + mean
        if c["cutmix"] and self.draws["cutmix"][f"{c['cutmix']:g}"][t]:
            x, targets = cutmix(x, targets, self.draws["cutmix"][f"{c['cutmix']:g}"][t])
        a = c.get("adversarial")
        if a:
            x = x.clamp(0, 1)
        if c["labels"] == "teacher":
            targets = F.softmax(self.teacher(x).detach() / TEMPERATURE, 1)
        if a:
            start = "trades" if a["loss"] != "pgd-at" else a["norm"]
            noise = self.draws["start"][start][t][: len(x)].to(x) if a["random-start"] else None
            attacked = attack(net, x, targets, a, noise)
        if not a:
            losses = cross_entropy(net(x), targets)
        elif a["loss"] == "pgd-at":
            losses = cross_entropy(net(attacked), targets)
        else:  # gradients flow through both predictions
            clean = net(x)
            losses = cross_entropy(clean, targets) + a["loss"]["trades"]["beta"] * divergence(clean, net(attacked))
        self.sgd.zero_grad()
        losses.mean().backward()
        self.sgd.param_groups[0]["lr"] = rate = self.rate()
        self.sgd.step()
        if t % self.per_epoch == 0:
            self.epoch_losses = []
        self.epoch_losses += losses.tolist()
        self.t += 1
        return {"lr": rate, "loss": sum(self.epoch_losses) / len(self.epoch_losses)}

    def parameters(self):
        return {name: value.detach().float() for name, value in self.net.named_parameters()}
