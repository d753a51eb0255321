"""Reference results on a small network for the embedded digits, so that every clone has its own.

README.md beside this file has the commands that install what this needs.

Run in the root of the checkout. Writes digits.safetensors and digits.json beside this file; one thread, fixed seeds.
The network's weights are taken from digits.safetensors where that is there, and trained otherwise.
"""

import csv
import importlib.metadata
import json
import pathlib

import torch
import torch.nn as nn
import torch.nn.functional as F
import torchattacks
from safetensors.torch import load_file, save_file

HERE = pathlib.Path(__file__).parent
N_TEST = 359
N = 100
N_SLOW = 50
EPSILON = 0.15
EPSILON_L2 = 0.8
SEEDS = [0, 1, 2]

torch.set_num_threads(1)
torch.manual_seed(0)


def load():
    with open("data/digits/optdigits.csv") as file:
        rows = torch.tensor([[float(value) for value in row] for row in csv.reader(file)])
    images = (rows[:, :64] / 16.0).view(-1, 1, 8, 8)
    labels = rows[:, 64].long()
    return images[:-N_TEST], labels[:-N_TEST], images[-N_TEST:][:N].contiguous(), labels[-N_TEST:][:N].contiguous()


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.linear = nn.Linear(128, 10)

    def forward(self, x):
        x = F.avg_pool2d(F.relu(self.conv1(x)), 2)
        x = F.avg_pool2d(F.relu(self.conv2(x)), 2)
        return self.linear(x.flatten(1))


def frozen(net):
    net.eval()
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    return net


def stored():
    file = load_file(HERE / "digits.safetensors")
    net = Net()
    net.load_state_dict({name: file[f"weights.{name}"] for name in net.state_dict()})
    return frozen(net)


def train(images, labels):
    net = Net()
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(400):
        batch = torch.randint(len(images), (128,))
        x, y = images[batch], labels[batch]
        # One step of FGSM, so that the attacks have something to do.
        x = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(net(x), y), x)
        x = (x + 0.1 * gradient.sign()).clamp(0, 1).detach()
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
    return frozen(net)


def main():
    train_images, train_labels, images, labels = load()
    net = stored() if (HERE / "digits.safetensors").exists() else train(train_images, train_labels)
    tensors = {f"weights.{name}": value.clone() for name, value in net.state_dict().items()}
    tensors["images"], tensors["labels"] = images, labels
    correct = lambda adv, n=N: (net(adv).argmax(1) == labels[:n]).to(torch.uint8)
    tensors["clean_logits"] = net(images)
    tensors["flags/clean"] = correct(images)

    step = EPSILON / 4
    deterministic = {
        "fgsm": torchattacks.FGSM(net, eps=EPSILON),
        "bim": torchattacks.BIM(net, eps=EPSILON, alpha=step, steps=10),
        "pgd": torchattacks.PGD(net, eps=EPSILON, alpha=step, steps=10, random_start=False),
        "mi-fgsm": torchattacks.MIFGSM(net, eps=EPSILON, alpha=step, steps=10),
        "ni-fgsm": torchattacks.NIFGSM(net, eps=EPSILON, alpha=step, steps=10),
        # A network without randomness has the same gradient twice: this is PGD with two passes a step.
        "eot-pgd": torchattacks.EOTPGD(net, eps=EPSILON, alpha=step, steps=10, eot_iter=2, random_start=False),
        "pgd-l2": torchattacks.PGDL2(net, eps=EPSILON_L2, alpha=EPSILON_L2 / 4, steps=10, random_start=False),
    }
    for name, attack in deterministic.items():
        adv = attack(images, labels)
        tensors[f"flags/{name}"] = correct(adv)
        tensors[f"images/{name}"] = adv[:16].clone()
    adv = torchattacks.DeepFool(net)(images[:N_SLOW], labels[:N_SLOW])
    tensors["distance/deepfool"] = (adv - images[:N_SLOW]).flatten(1).norm(dim=1)

    adv = torchattacks.CW(net, c=1, kappa=0, steps=100, lr=0.01)(images[:N_SLOW], labels[:N_SLOW])
    tensors["distance/cw-l2"] = (adv - images[:N_SLOW]).flatten(1).norm(dim=1)

    stochastic = {}
    makers = {
        "tpgd": lambda: torchattacks.TPGD(net, eps=EPSILON, alpha=step, steps=10),
        "eot-pgd": lambda: torchattacks.EOTPGD(net, eps=EPSILON, alpha=step, steps=10, eot_iter=2),
        "pgd": lambda: torchattacks.PGD(net, eps=EPSILON, alpha=step, steps=10),
        "jitter": lambda: torchattacks.Jitter(net, eps=EPSILON, alpha=step, steps=10),
        "vmi-fgsm": lambda: torchattacks.VMIFGSM(net, eps=EPSILON, alpha=step, steps=10),
        "vni-fgsm": lambda: torchattacks.VNIFGSM(net, eps=EPSILON, alpha=step, steps=10),
    }
    for name, make in makers.items():
        found = []
        for seed in SEEDS:
            torch.manual_seed(seed)
            found.append(int((correct(make()(images, labels)) & tensors["flags/clean"]).sum()))
        stochastic[name] = found

    from pyautoattack import AutoAttack

    suites = {}
    x, y = images[:N_SLOW], labels[:N_SLOW]
    for norm, epsilon in [("Linf", EPSILON), ("L2", EPSILON_L2), ("L1", 3.0)]:
        for attacks in [["apgd-ce"], ["apgd-dlr"], ["apgd-t"], ["fab-t"], ["square"], ["apgd-ce", "apgd-t", "fab-t", "square"]]:
            found = []
            for seed in SEEDS:
                suite = AutoAttack(net, norm=norm, eps=epsilon, seed=seed, version="custom", attacks=attacks)
                suite.apgd.n_restarts = suite.fab.n_restarts = 1
                suite.apgd.use_largereps = suite.apgd_targeted.use_largereps = norm == "L1"
                suite.square.n_queries = 500
                suite.apgd_targeted.n_target_classes = suite.fab.n_target_classes = 9
                adv, _ = suite.run_standard_evaluation(x, y, batch_size=N_SLOW)
                found.append(int(correct(adv, N_SLOW).sum()))
            suites[f"{norm.lower()}/{'+'.join(attacks)}"] = {"epsilon": epsilon, "robust": found}

    versions = ["torch", "torchattacks", "pyautoattack"]
    manifest = {
        "source": "made by make_digits.py",
        "versions": {name: importlib.metadata.version(name) for name in versions},
        "n": N,
        "n_slow": N_SLOW,
        "epsilon": EPSILON,
        "epsilon_l2": EPSILON_L2,
        "square_queries": 500,
        "stochastic": stochastic,
        "autoattack": suites,
    }
    save_file({name: value.contiguous() for name, value in tensors.items()}, HERE / "digits.safetensors")
    (HERE / "digits.json").write_text(json.dumps(manifest, indent=1) + "\n")
    print(json.dumps(manifest, indent=1))


if __name__ == "__main__":
    main()
