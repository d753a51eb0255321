"""`c2r.attack` beside the command, torchattacks and pyautoattack: seconds, robust accuracies and ratios of one run.

    python python/bench.py [--n 200] [--eps 4/255] [--threads 2] [--repeats 3] [--workers 2] [--only PGD]
                            [--width 32] [--norm instance]

The network is eager PyTorch, a ConvNet of three blocks for images of 3x32x32 (--width channels; instance normalization, as the
networks of dataset distillation have it, or --norm batch), trained here for a few seconds
on noisy stripes with FGSM examples; the command attacks its trace on the same libtorch. Both sides take turns, the median of
the repeats counts, and all take images in batches of 128. The command and `c2r.attack` on TorchScript report their own seconds,
without the start of a process; the others are timed from outside.
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
import warnings
from fractions import Fraction
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

import c2r

CHECKOUT = Path(__file__).resolve().parents[1]
BATCH = 128


def stripes(n, generator):
    """Noisy stripes: class k has direction k // 2 and is reddish or bluish."""
    labels = torch.arange(n) % 10
    angle = (labels // 2) * torch.pi / 5
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    phase = 6 * torch.rand(n, 1, 1, generator=generator)
    wave = torch.sin((x * angle.cos().view(-1, 1, 1) + y * angle.sin().view(-1, 1, 1)) / 2 + phase)
    colour = torch.where(
        labels.view(-1, 1) % 2 == 0, torch.tensor([0.16, 0.15, 0.14]), torch.tensor([0.14, 0.15, 0.16])
    )
    noise = 0.12 * torch.randn(n, 3, 32, 32, generator=generator)
    return (0.5 + wave[:, None] * colour[:, :, None, None] + noise).clamp(0, 1), labels


class Net(nn.Module):
    """Normalization, three blocks, a linear layer."""

    def __init__(self, width, norm):
        super().__init__()
        layers = []
        for channels in (3, width, width):
            layers += [nn.Conv2d(channels, width, 3, padding=1), norm(width), nn.ReLU(), nn.AvgPool2d(2)]
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * 16, 10))

    def forward(self, images):
        return self.layers((images - 0.5) / 0.25)


def trained(eps, steps, width, norm):
    """A network that is somewhat robust at eps."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = Net(width, norm)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    for _ in range(steps):
        images, labels = stripes(100, generator)
        images.requires_grad_(True)
        (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(model(images), labels), images)
        attacked = (images.detach() + eps * gradient.sign()).clamp(0, 1)
        loss = nn.functional.cross_entropy(model(attacked), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def in_batches(attack, images, labels):
    return torch.cat([attack(x, y) for x, y in zip(images.split(BATCH), labels.split(BATCH))])


def ours(model, images, labels, name, workers, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", c2r.Doubtful)
        result = c2r.attack(model, images, labels, name, progress=False, workers=workers, **options)
    return result.robust_accuracy


def command(script, images, labels, name, eps, threads, folder, *words):
    """The command, by the seconds that it reports: its process starts once for each of ours that does not."""
    inputs = folder / "inputs.safetensors"
    save_file({"images": images, "labels": labels}, inputs)
    environment = {**os.environ, "LD_LIBRARY_PATH": os.path.join(os.path.dirname(torch.__file__), "lib")}
    program = os.environ.get("C2R_COMMAND", CHECKOUT / "target" / "release" / "c2r")
    line = [program, "attack", "--model", script, "--inputs", inputs, "--attack", name, "--eps", eps, *words]
    line += ["--threads", threads, "--device", "cpu", "--json", "--quiet"]
    ran = subprocess.run([str(word) for word in line], capture_output=True, text=True, env=environment, check=True)
    return json.loads(ran.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=200, help="images")
    parser.add_argument("--eps", default="4/255")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, default=None, help="of c2r.attack on the eager network")
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--norm", choices=["batch", "instance"], default="instance")
    parser.add_argument("--only", default="", choices=["PGD", "AutoAttack"], help="this attack alone")
    parser.add_argument("--train-steps", type=int, default=100)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    eps = float(Fraction(arguments.eps))
    norm = nn.BatchNorm2d if arguments.norm == "batch" else lambda width: nn.GroupNorm(width, width)
    model = trained(eps, arguments.train_steps, arguments.width, norm)
    images, labels = stripes(arguments.n, torch.Generator().manual_seed(1))
    for parameter in model.parameters():
        parameter.requires_grad_(False)

    def accuracy(attacked):
        with torch.no_grad():
            right = [model(x).argmax(1) == y for x, y in zip(attacked.split(BATCH), labels.split(BATCH))]
        return torch.cat(right).float().mean().item()

    import torchattacks
    from pyautoattack import AutoAttack

    pgd = torchattacks.PGD(model, eps=eps, alpha=eps / 4, steps=10)
    auto = AutoAttack(model, eps=eps, norm="Linf", version="standard", seed=0)
    auto.verbose = False
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        script = folder / "model.pt"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.jit.save(torch.jit.trace(model, images[:2]), str(script))

        def told(name):
            summary = command(script, images, labels, name, arguments.eps, arguments.threads, folder)
            return summary["robust_accuracy"], summary["seconds"]

        def timed(run):
            start = time.perf_counter()
            found = run()
            return found, time.perf_counter() - start

        def inside(name):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", c2r.Doubtful)
                result = c2r.attack(str(script), images, labels, name, eps=arguments.eps, progress=False)
            return result.robust_accuracy, result.report["evaluation"]["report"]["seconds"]

        def eager(name, **more):
            return timed(lambda: ours(model, images, labels, name, arguments.workers, eps=arguments.eps, **more))

        contests = {
            "PGD": {
                "torchattacks": lambda: timed(lambda: accuracy(in_batches(pgd, images, labels))),
                "c2r.attack, eager": lambda: eager("pgd"),
                "c2r.attack, trace=True": lambda: eager("pgd", trace=True),
                "the command": lambda: told("pgd"),
                "c2r.attack, TorchScript": lambda: inside("pgd"),
            },
            "AutoAttack": {
                "pyautoattack": lambda: timed(
                    lambda: accuracy(auto.run_standard_evaluation(images, labels, batch_size=BATCH)[0])
                ),
                "c2r.attack, eager": lambda: eager("autoattack-standard"),
                "c2r.attack, trace=True": lambda: eager("autoattack-standard", trace=True),
                "the command": lambda: told("autoattack-standard"),
                "c2r.attack, TorchScript": lambda: inside("autoattack-standard"),
            },
        }
        print(
            f"{arguments.n} images of 3x32x32, eps {arguments.eps}, {arguments.threads} threads, clean {accuracy(images):.1%}"
        )
        for attack, contenders in contests.items():
            if not attack.startswith(arguments.only):
                continue
            print(f"{attack:26}{'seconds':>10}{'robust':>10}{'times as fast':>15}")
            runs = [{name: run() for name, run in contenders.items()} for _ in range(arguments.repeats)]
            seconds = {name: statistics.median(turn[name][1] for turn in runs) for name in contenders}
            reference = next(iter(seconds.values()))
            for name, second in seconds.items():
                robust = statistics.mean(turn[name][0] for turn in runs)
                print(f"{name:26}{second:10.2f}{robust:10.1%}{reference / second:15.2f}", flush=True)


if __name__ == "__main__":
    main()
