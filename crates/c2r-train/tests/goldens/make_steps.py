"""The numbers that tests/it/steps.rs compares the steps of `c2r train` with; reference.py computes them.

README.md beside this file has the commands. Run in the root of the checkout. Reads draws.json and draws.safetensors, writes
steps.json and steps.safetensors, all beside this file. Networks and images are taken from steps.safetensors where that is there.
"""

import json
import pathlib

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from reference import CLASSES, MEAN, SHAPE, STD, TEMPERATURE, ConvNet, Training, decode

HERE = pathlib.Path(__file__).parent
SEED = 9  # of networks and images: the first that passes `check`
PER_CLASS = 4
torch.set_num_threads(1)

COMMON = {
    "images": "mosaics", "length": {"steps": 2}, "batch-size": 12, "lr": 0.05, "momentum": 0.9, "weight-decay": 0.01,
    "lr-schedule": "constant", "order": "stored", "dsa": "none", "cutmix": 0.0, "labels": "hard",
}
EPOCHS = {"batch-size": 5, "length": {"epochs": 2}}  # six steps, the third and the last with two images
PGD = {"norm": "linf", "epsilon": "16/255", "rel-step-size": 0.25, "steps": 3, "random-start": False, "loss": "pgd-at"}
START = PGD | {"random-start": True}
L2 = {"norm": "l2", "epsilon": "128/255"}
L1 = {"norm": "l1", "epsilon": "4", "rel-step-size": 0.1}  # a longer step would go from black to white
TRADES = START | {"loss": {"trades": {"beta": 6.0}}}
FULL = "color_crop_cutout_flip_scale_rotate"
SETTINGS = {
    "plain": {},
    # The optimizer, its rate and its batches.
    "no-momentum": {"momentum": 0.0},
    "no-decay": {"weight-decay": 0.0},
    "real": {"images": "real"},
    "batches": EPOCHS,
    "shuffled": EPOCHS | {"order": "shuffled"},
    "tile-by-tile": EPOCHS | {"order": "tile-by-tile"},
    "half-way": {"length": {"steps": 3}, "lr-schedule": "half-way"},
    "half-way-even": {"length": {"steps": 4}, "lr-schedule": "half-way"},
    "half-way-epochs": EPOCHS | {"lr-schedule": "half-way", "length": {"epochs": 3}},
    "cosine": {"length": {"steps": 3}, "lr-schedule": "cosine"},
    "tenth-at-epochs": EPOCHS | {"lr-schedule": {"tenth-at-epochs": [1, 2]}, "length": {"epochs": 3}},
    # Labels.
    "soft": {"labels": "soft"},
    "teacher": {"labels": "teacher"},
    "teacher-color": {"labels": "teacher", "dsa": "color"},
    # Augmentation.
    **{operation: {"dsa": operation} for operation in FULL.split("_")},
    "all-operations": EPOCHS | {"dsa": FULL},
    "cutmix": {"cutmix": 1.0},
    "cutmix-at-times": {"cutmix": 0.5, "length": {"steps": 4}},
    "cutmix-soft-crop": {"cutmix": 1.0, "labels": "soft", "dsa": "crop"},
    "cutmix-teacher": {"cutmix": 1.0, "labels": "teacher"},
    # PGD-AT.
    "pgd": {"adversarial": PGD},
    "pgd-one-step": {"adversarial": PGD | {"steps": 1, "rel-step-size": 1.0}},
    "pgd-start": {"adversarial": START},
    "pgd-batches": {"batch-size": 5, "length": {"steps": 3}, "adversarial": START},
    "pgd-l2": {"adversarial": PGD | L2},
    "pgd-l2-start": {"adversarial": START | L2},
    "pgd-l1": {"adversarial": PGD | L1},
    "pgd-l1-start": {"adversarial": START | L1},
    "pgd-color": {"adversarial": PGD, "dsa": "color"},
    "pgd-soft": {"adversarial": START, "labels": "soft"},
    "pgd-teacher-color": {"adversarial": START, "labels": "teacher", "dsa": "color"},
    "pgd-cutmix": {"adversarial": PGD, "cutmix": 1.0},
    # TRADES.
    "trades": {"adversarial": TRADES},
    "trades-beta": {"adversarial": TRADES | {"loss": {"trades": {"beta": 1.5}}}},
    "trades-l1": {"adversarial": TRADES | L1},
    "trades-color": {"adversarial": TRADES, "dsa": "color"},
    "trades-soft-cutmix": {"adversarial": TRADES, "labels": "soft", "cutmix": 1.0},
    "trades-teacher": {"adversarial": TRADES, "labels": "teacher"},
}


def new_inputs(seed):
    """Mosaics and real images of blocks of colour with noise, a channel brighter in each class; two networks that have learned a
    little of them; soft labels."""
    torch.manual_seed(seed)

    def images(labels):
        blocks = F.interpolate(torch.rand(len(labels), SHAPE[0], 4, 4), scale_factor=2)
        noise, bright = torch.randn(len(labels), *SHAPE), F.one_hot(labels, SHAPE[0])[..., None, None]
        return (blocks + 0.15 * noise + 0.25 * bright - 0.1).clamp(0, 1)

    labels = torch.arange(CLASSES).repeat_interleave(PER_CLASS)
    inputs = {"mosaics": images(torch.arange(CLASSES)), "real.labels": labels[torch.randperm(len(labels))]}
    inputs["real.images"] = (images(inputs["real.labels"]) * 255).round().to(torch.uint8)
    inputs["soft"] = F.softmax(torch.randn(len(labels), CLASSES) + F.one_hot(labels, CLASSES), 1)
    x = decode(inputs["mosaics"])
    for prefix in ("weights", "teacher"):
        net = ConvNet()
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
        for _ in range(20):
            optimizer.zero_grad()
            F.cross_entropy(net(x + 0.1 * torch.randn_like(x)), labels).backward()
            optimizer.step()
        inputs |= {f"{prefix}.{name}": value.detach().clone() for name, value in net.state_dict().items()}
    return inputs


def run(settings, inputs, draws, **options):
    """What every step shows, and the parameters after the last one."""
    training = Training(COMMON | settings, inputs, draws, **options)
    return [training.step() for _ in range(training.steps)], training.parameters()


def apart(a, b):
    return max((a[name] - b[name]).abs().max().item() for name in a)


# A setting is compared with the one that has these of its keys alone.
BESIDE = ["length", "batch-size"]


def check(name, settings, made, inputs, draws):
    """Rounding decides nothing, and the setting shows.

    Signs of gradients, maxima and the kinks of ReLU are discontinuous, so another processor's rounding could change numbers by
    any amount where one of them is close. None is, if double precision and weights that are off by a few units in the last
    place give the same numbers to half of what the test allows.
    """
    others = [run(settings, inputs, draws, dtype=torch.float64)]
    others += [run(settings, inputs, draws, jitter=2e-7) for _ in range(6)]
    losses = max(abs(a["loss"] / b["loss"] - 1) for logs, _ in others for a, b in zip(logs, made[0]))
    weights = max(apart(parameters, made[1]) for _, parameters in others)
    beside = {key: value for key, value in settings.items() if key in BESIDE}
    shows = apart(run(beside, inputs, draws)[1], made[1])
    print(f"{name:20} rounding moves losses by {losses:.1e}, weights by {weights:.1e}; the setting moves weights by {shows:.4f}")
    return (losses < 5e-6 and weights < 1.5e-6 and (shows > 2e-4 or beside == settings))


def main():
    draws = json.loads((HERE / "draws.json").read_text())
    draws["start"] = {name.removeprefix("start."): value for name, value in load_file(HERE / "draws.safetensors").items()}
    file = HERE / "steps.safetensors"
    stored = load_file(file) if file.exists() else new_inputs(SEED)
    inputs = {name: value for name, value in stored.items() if not name.startswith("after.")}
    tensors, settings, wrong = dict(inputs), {}, []
    torch.manual_seed(0)
    for name, own in SETTINGS.items():
        logs, parameters = made = run(own, inputs, draws)
        if not check(name, own, made, inputs, draws):
            wrong.append(name)
        tensors |= {f"after.{name}.{key}": value for key, value in parameters.items()}
        settings[name] = {"set": own, "log": logs}
    if wrong:
        raise SystemExit(f"hangs on rounding, or does not show: {wrong}")
    manifest = {
        "source": "made by make_steps.py", "torch": torch.__version__.split("+")[0],
        "mean": MEAN, "std": STD, "temperature": TEMPERATURE, "common": COMMON, "settings": settings,
    }
    save_file({name: value.contiguous() for name, value in tensors.items()}, file)
    (HERE / "steps.json").write_text(json.dumps(manifest, indent=1) + "\n")


if __name__ == "__main__":
    main()
