"""The Python side of `cargo xtask bench attacks --peers`: one attack of a reference library, timed.

    python peers.py material GOLDENS OUT    writes OUT/digits.pt and OUT/digits.safetensors from tests/goldens/digits.safetensors
    python peers.py cut INPUTS N OUT        writes the first N images of INPUTS as OUT
    python peers.py attack MODEL INPUTS ATTACK EPS STEP_SIZE SEED THREADS DEVICE    prints one JSON object
    python peers.py bound MODEL INPUTS DEVICE    prints the seconds of one image's convolutions, as one JSON object: on one
                                                 thread of the CPU in batches of 32, on a GPU in batches of up to 1,024

Inputs are safetensors files with `images` (or `images_u8`) and `labels`. What is timed is the attack and one forward pass
to judge its images, as in the stage times of `c2r attack`; loading, the clean pass and a first gradient, which lets
TorchScript specialize itself, come before.
"""

import json
import statistics
import sys
import time

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file


def read(path):
    tensors = load_file(path)
    images = tensors["images"] if "images" in tensors else tensors["images_u8"]
    return images, tensors["labels"]


def cut(inputs, n, out):
    images, labels = read(inputs)
    if not 0 < n <= len(images):
        sys.exit(f"{inputs} holds {len(images)} images, not {n}")
    save_file({"images": images[:n].contiguous(), "labels": labels[:n].contiguous()}, out)


class Digits(torch.nn.Module):
    """The network of make_digits.py."""

    def __init__(self, weights):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(1, 16, 3, padding=1)
        self.conv2 = torch.nn.Conv2d(16, 32, 3, padding=1)
        self.linear = torch.nn.Linear(128, 10)
        self.load_state_dict(weights)

    def forward(self, x):
        x = F.avg_pool2d(F.relu(self.conv1(x)), 2)
        x = F.avg_pool2d(F.relu(self.conv2(x)), 2)
        return self.linear(x.flatten(1))


def material(goldens, out):
    tensors = load_file(goldens)
    weights = {name.removeprefix("weights."): t for name, t in tensors.items() if name.startswith("weights.")}
    torch.jit.script(Digits(weights).eval()).save(f"{out}/digits.pt")
    save_file({"images": tensors["images"], "labels": tensors["labels"]}, f"{out}/digits.safetensors")


def attack(model, name, eps, step_size, seed, device):
    import torchattacks
    from pyautoattack import AutoAttack

    if name == "fgsm":
        return torchattacks.FGSM(model, eps=eps)
    if name == "pgd":
        return torchattacks.PGD(model, eps=eps, alpha=step_size, steps=10, random_start=True)
    if name == "vmi-fgsm":
        return torchattacks.VMIFGSM(model, eps=eps, alpha=step_size, steps=10, decay=1.0, N=5, beta=3 / 2)
    custom = {"attacks": ["apgd-ce"], "version": "custom"} if name == "apgd-ce" else {"version": "standard"}
    if name not in ("apgd-ce", "autoattack-standard"):
        sys.exit(f"no reference for {name}")
    suite = AutoAttack(model, norm="Linf", eps=eps, seed=seed, device=device, **custom)
    suite.apgd.n_restarts = 1
    return lambda images, labels: suite.run_standard_evaluation(images, labels, batch_size=len(images))


def load(path, inputs, device):
    model = torch.jit.load(path, map_location=device).eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    images, labels = (tensor.to(device) for tensor in read(inputs))
    return model, images.float() / 255 if images.dtype == torch.uint8 else images, labels


def now(device):
    """Seconds, once everything that was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def run(path, inputs, name, eps, step_size, seed, threads, device):
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    device = torch.device(device)
    model, images, labels = load(path, inputs, device)

    with torch.no_grad():
        clean = model(images).argmax(1) == labels
    for _ in range(2):
        warm = images.clone().requires_grad_()
        torch.autograd.grad(F.cross_entropy(model(warm), labels), warm)
    perturb = attack(model, name, eps, step_size, seed, device)

    start = now(device)
    adversarial = perturb(images, labels)
    adversarial = adversarial[0] if isinstance(adversarial, tuple) else adversarial
    with torch.no_grad():
        robust = clean & (model(adversarial).argmax(1) == labels)
    seconds = now(device) - start
    print(json.dumps({"robust_accuracy": robust.double().mean().item(), "seconds": seconds}))


def bound(path, inputs, device):
    """Seconds per image in the convolutions, forward and for the pixels' gradient: the median of five profiles by PyTorch."""
    from torch.profiler import ProfilerActivity, profile

    torch.set_num_threads(1)
    device = torch.device(device)
    on_gpu = device.type == "cuda"
    model, images, labels = load(path, inputs, device)
    images, labels = images[: 1024 if on_gpu else 32], labels[: 1024 if on_gpu else 32]

    def gradient():
        pixels = images.clone().requires_grad_()
        torch.autograd.grad(F.cross_entropy(model(pixels), labels), pixels)

    for _ in range(5):
        gradient()
    rounds, total = 20, "device_time_total" if on_gpu else "cpu_time_total"

    def profiled():
        with profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu) as trace:
            for _ in range(rounds):
                gradient()
            now(device)
        return {event.key: getattr(event, total) / 1e6 / rounds / len(images) for event in trace.key_averages()}

    traces = [profiled() for _ in range(5)]
    # TorchScript calls the operator below the one that a Python program calls.
    name = "aten::convolution" if "aten::convolution" in traces[0] else "aten::_convolution"
    forward, backward = (statistics.median(trace[key] for trace in traces) for key in (name, "aten::convolution_backward"))
    print(json.dumps({"forward": forward, "backward": backward}))


if __name__ == "__main__":
    command, *words = sys.argv[1:]
    if command == "material":
        material(*words)
    elif command == "cut":
        cut(words[0], int(words[1]), words[2])
    elif command == "attack":
        run(words[0], words[1], words[2], float(words[3]), float(words[4]), int(words[5]), int(words[6]), words[7])
    elif command == "bound":
        bound(*words)
    else:
        sys.exit(__doc__)
