"""The numbers that tests/it/updates.rs compares the updates of `c2r distill` with; reference.py computes them.

README.md beside this file has the commands. Run in the root of the checkout. Writes updates.safetensors and updates.json
beside this file. Network, real images and first images are taken from updates.safetensors where that is there.
"""

import json
import pathlib

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from reference import ACCURACY, CLASSES, MEAN, SHAPE, STD, ConvNet, Run

HERE = pathlib.Path(__file__).parent
SEED = 5  # of network and images: the first that passes `check`
REAL_PER_CLASS = 10
torch.set_num_threads(1)
torch.manual_seed(0)

LS_PGD = {"attack": "ls-pgd", "rel-step-size": 0.5, "growth": 2.0, "candidates": 2, "start": "clean"}
LS_PGD |= {"warm-start": False, "reuse": False}
PGD = {"attack": "pgd", "steps": 3, "rel-step-size": 0.5, "random-start": False}
QUEUE = {"per-class": 10, "top-k": 6, "projection": 0, "momentum": 0.0}
OFF = {"mode": "off"}
COMMON = {
    "model": "ConvNet-D2-W8-IN", "dsa": "none", "ipc": 1, "iterations": 2, "threat.epsilon": "48/255", "companions": LS_PGD,
    "images.init": "noise", "images.formation": 2, "images.optimizer": "sgd", "images.lr": 0.4, "images.final-lr": 0.1,
    "images.space": "pixel", "images.clamp": True, "images.batch-per-class": 0,
    "pool.dsa": "none", "pool.trajectories": 1, "pool.snapshots": 1, "pool.min-steps": 0, "pool.max-steps": 5,
    "pool.steps-per-iteration": 0, "pool.batch-size": 30, "pool.lr": 0.05, "pool.momentum": 0.9, "pool.weight-decay": 0.01,
    "matching.weight": 10.0, "matching.real-per-class": REAL_PER_CLASS, "matching.attacked": True,
    "objective.weight": 2.0, "objective.eta": 0.4, "objective.robust-weight": 3.0, "objective.robust": "crl",
    "objective.anchors": "synthetic", "objective.candidates": "both", "objective.by-accuracy": False,
    "objective.distance": "scaled-l2", "objective.reduction": "mean", "crl": {"temperature": 0.5},
    "aac.synthetic": {"mode": "weight", "floor": 0.05}, "aac.matching": OFF,
    "aac.weighted": "performance", "aac.remember": "synthetic",
}
BATCHES = {"images.batch-per-class": 2}
TRAINING = {"iterations": 3, "pool.steps-per-iteration": 1, "objective.candidates": "none"}
SETTINGS = {
    "plain": {"iterations": 3},
    # The images and their update rule.
    "formation-1": {"images.formation": 1, "ipc": 2},
    "adam": {"images.optimizer": "adam", "images.lr": 0.02, "images.final-lr": 0.01},
    "adam-short-normalized": {"images.optimizer": "adam-short", "images.space": "normalized", "images.lr": 0.05},
    "unclamped-normalized": {"images.clamp": False, "images.space": "normalized", "images.lr": 10.0, "images.final-lr": 8.0},
    # Attacks.
    "fgsm": {"companions": {"attack": "fgsm"}},
    "pgd": {"companions": PGD},
    "four-steps": {"threat.epsilon": "72/255", "companions": LS_PGD | {"rel-step-size": 0.2, "growth": 1.5, "candidates": 4}},
    "places": {"attacks.synthetic.companions": PGD, "attacks.synthetic.epsilon": "8/255", "attacks.matching.epsilon": "24/255"},
    "warm-start": {"iterations": 3, "companions": LS_PGD | {"warm-start": True}, "aac.remember": "both", "images.lr": 1.0},
    "reuse": {"iterations": 3, "companions": LS_PGD | {"warm-start": True, "reuse": True}, "images.lr": 1.0},
    # The objective.
    "weights": {"objective.weight": 3.0, "objective.eta": 0.7, "objective.robust-weight": 1.5, "matching.weight": 4.0},
    "no-matching": {"matching.weight": 0.0},
    "clean-matching": {"matching.attacked": False, "aac.synthetic": OFF},
    "no-robust": {"objective.robust": "none"},
    "class-mean": {"objective.robust": "class-mean", "aac.weighted": "both"},
    "squared-l1-sum": {"objective.distance": "squared-l1", "objective.reduction": "sum", "matching.weight": 0.02},
    "candidates-attacked": {"objective.candidates": "attacked", "crl": {"temperature": 0.2}},
    "candidates-none": {"objective.candidates": "none", "aac.weighted": "both"},
    "anchors-real": {"objective.anchors": "real"},
    "anchors-both": {"objective.anchors": "both", "objective.candidates": "none", "aac.weighted": "both"},
    "queue": {"objective.candidates": "none", "crl": {"temperature": 0.2, "queue": QUEUE}},
    # The network learns between the updates, so that the embeddings of two updates differ.
    "queue-overflow": TRAINING | {"crl": {"temperature": 0.2, "queue": QUEUE}},
    "queue-momentum": TRAINING | {"crl": {"temperature": 0.2, "queue": QUEUE | {"momentum": 0.7, "per-class": 20}}},
    "by-accuracy": TRAINING | {"objective.by-accuracy": True},
    # The curriculum.
    "prefix": {"aac.synthetic": {"mode": "prefix", "first": "hard", "fraction": 0.5}},
    "pace": {"iterations": 3, "aac.synthetic": {"mode": "pace", "low": [0.0, 0.5], "high": [0.5, 1.0]}},
    "order": BATCHES | {"iterations": 3, "aac.synthetic": {"mode": "order", "first": "hard", "class-balanced": False}},
    "order-balanced": BATCHES | {"aac.synthetic": {"mode": "order", "first": "easy", "class-balanced": True}},
    "matching-weight": {"aac.matching": {"mode": "weight", "floor": 0.3}},
    "matching-prefix": {"aac.matching": {"mode": "prefix", "first": "easy", "fraction": 0.25}},
    "matching-pace": {"aac.matching": {"mode": "pace", "low": [0.2, 0.0], "high": [0.6, 1.0]}},
}


def new_inputs(seed):
    """Blocks of colour with noise, a channel brighter in each class; and a network that has learned a little of them."""
    torch.manual_seed(seed)
    labels = torch.arange(CLASSES).repeat_interleave(REAL_PER_CLASS)

    def images(labels):
        blocks = F.interpolate(torch.rand(len(labels), SHAPE[0], 4, 4), scale_factor=2)
        noise, bright = torch.randn(len(labels), *SHAPE), F.one_hot(labels, SHAPE[0])[..., None, None]
        return (blocks + 0.15 * noise + 0.25 * bright - 0.1).clamp(0, 1)

    real = (images(labels) * 255).round().to(torch.uint8)
    tiles = F.avg_pool2d(images(torch.arange(CLASSES).repeat_interleave(4)), 2).view(CLASSES, 2, 2, SHAPE[0], 4, 4)
    mosaics = tiles.permute(0, 3, 1, 4, 2, 5).reshape(CLASSES, *SHAPE).contiguous()
    net = ConvNet()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(60):
        x = (real / 255).requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(net(x), labels), x)
        optimizer.zero_grad()
        F.cross_entropy(net((x + 0.1 * gradient.sign()).clamp(0, 1).detach()), labels).backward()
        optimizer.step()
    return {
        "real.images": real, "real.labels": labels, "first.2": mosaics,
        "first.1": images(torch.arange(CLASSES).repeat_interleave(2)),
    } | {f"weights.{name}": value.detach().clone() for name, value in net.state_dict().items()}


def run(settings, inputs, **options):
    """What every update logs, and the images after the last one."""
    run = Run(COMMON | settings, inputs, **options)
    return [run.update() for _ in range(run.c["iterations"])], run.images


def numbers(logs):
    """All of them, and the scale of each: itself, or 1 for margins, which may be about 0."""
    listed = lambda value: value if isinstance(value, list) else [value]
    items = [(name, x) for log in logs for name, value in log.items() if value is not None for x in listed(value)]
    return torch.tensor([x for _, x in items]), torch.tensor([1.0 if "margin" in name else abs(x) for name, x in items])


# A setting is compared with the one that has these of its keys alone.
BESIDE = ["ipc", "iterations", "threat.epsilon", "images.formation", "images.lr", "images.final-lr", *TRAINING]


def check(name, settings, made, inputs):
    """Rounding decides nothing, and the setting shows.

    Signs of gradients, maxima, orders and the kinks of ReLU are discontinuous, so another processor's rounding could change
    numbers by any amount where one of them is close. None is, if double precision and weights that are off by a few units in
    the last place give the same numbers to half of what the test allows.
    """
    others = [run(settings, inputs, dtype=torch.float64)] + [run(settings, inputs, jitter=3e-7) for _ in range(6)]
    expected, scale = numbers(made[0])
    logged = max(((numbers(logs)[0] - expected).abs() / scale).max().item() for logs, _ in others)
    pixels = max((images - made[1]).abs().max().item() for _, images in others)
    assert logged < 1e-5 and pixels < 5e-6, f"{name} hangs on rounding: {logged} {pixels}"
    beside = {key: value for key, value in settings.items() if key in BESIDE}
    shows = (run(beside, inputs)[1] - made[1]).abs().max().item()
    assert shows > 1e-3 or beside == settings, f"{name} does not show: {shows}"
    print(f"{name:24} rounding moves numbers by {logged:.1e}, pixels by {pixels:.1e}; the setting moves pixels by {shows:.3f}")


def main():
    file = HERE / "updates.safetensors"
    stored = load_file(file) if file.exists() else new_inputs(SEED)
    inputs = {name: value for name, value in stored.items() if not name.startswith("images.")}
    tensors, settings = dict(inputs), {}
    for name, own in SETTINGS.items():
        logs, images = made = run(own, inputs)
        check(name, own, made, inputs)
        tensors[f"images.{name}"] = images
        settings[name] = {"set": own, "log": logs}
    manifest = {
        "source": "made by make_updates.py", "torch": torch.__version__.split("+")[0],
        "mean": MEAN, "std": STD, "accuracy": ACCURACY, "common": COMMON, "settings": settings,
    }
    save_file({name: value.contiguous() for name, value in tensors.items()}, file)
    (HERE / "updates.json").write_text(json.dumps(manifest, indent=1) + "\n")


if __name__ == "__main__":
    main()
