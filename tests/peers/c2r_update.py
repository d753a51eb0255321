"""One update of C2R in PyTorch, written as the field's code is: class by class, and in the contrastive loss anchor by anchor.

    python c2r_update.py check FILE    prints the losses of the update that `c2r doctor --profile distill --write` wrote, c2r's
                                       and those computed here, as JSON
    python c2r_update.py time WIDTH REAL_PER_CLASS UPDATES THREADS DEVICE    prints the median seconds of an update, as JSON

From the equations in docs/method.md, with the settings of data/profiles/faithful.toml for 32x32 colour images of ten classes,
ten mosaics of four per class, Linf 2/255. Augmentation: DSA's crop, one shift for an update, and one per image in training.
"""

import json
import statistics
import sys
import time

import torch
import torch.nn.functional as F

MEAN, STD = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)))
K, IPC, EPS, ETA, MATCHING, ROBUST, TAU, FLOOR = 10, 10, 2 / 255, 0.4, 10.0, 6.0, 0.5, 0.05
PER_CLASS, TOP_K, PROJECTION, POOL_BATCH = 64, 64, 64, 256


class ConvNet(torch.nn.Module):
    def __init__(self, width, depth=3):
        super().__init__()
        blocks = [(torch.nn.Conv2d(width if i else 3, width, 3, padding=1), torch.nn.GroupNorm(width, width), torch.nn.ReLU(),
                   torch.nn.AvgPool2d(2)) for i in range(depth)]
        self.features = torch.nn.Sequential(*(layer for block in blocks for layer in block))
        self.classifier = torch.nn.Linear(width * 16, K)

    def embed(self, x, shift=None):
        x = (x - MEAN.to(x)) / STD.to(x)
        return self.features(x if shift is None else crop(x, shift)).flatten(1)

    def forward(self, x):
        return self.classifier(self.embed(x))


def crop(x, shift):
    """DSA's crop: x [N, C, H, W] moved by shift [N or 1, 2] pixels, zeros around it."""
    n, _, h, w = x.shape
    rows, columns = (torch.arange(side, device=x.device) + 4 + shift[:, axis, None] for axis, side in ((0, h), (1, w)))
    image = torch.arange(n, device=x.device)[:, None, None]
    return F.pad(x, [4] * 4)[image, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def decode(mosaics):
    """The four tiles of each mosaic [M, C, H, W], enlarged: [4 M, C, H, W]."""
    tiles = [tile for image in mosaics for half in image.chunk(2, 1) for tile in half.chunk(2, 2)]
    return F.interpolate(torch.stack(tiles), scale_factor=2, mode="bilinear", align_corners=False)


def ls_pgd(net, x, labels):
    """The better of two steps along the sign of one gradient, and the hinge of its margin."""
    tracked = x.detach().requires_grad_()
    direction = torch.autograd.grad(F.cross_entropy(net(tracked), labels, reduction="sum"), tracked)[0].sign()
    best = None
    with torch.no_grad():
        for step in (EPS / 2, EPS):
            images = (x + step * direction).clamp(0, 1)
            logits = net(images)
            loss = F.cross_entropy(logits, labels, reduction="none")
            if best is None:
                best = (loss, images, logits)
            better = loss > best[0]
            best = tuple(torch.where(better.view(-1, *[1] * (new.dim() - 1)), new, old) for new, old in zip((loss, images, logits), best))
        own = best[2].gather(1, labels[:, None])[:, 0]
        others = best[2].scatter(1, labels[:, None], -torch.inf).amax(1)
    return best[1], (1 - (own - others)).clamp(min=0)


def losses(net, stored, real, queue, shift, projection):
    """The loss and its terms. stored [K * IPC, C, H, W]; real, queue: for each class images and embeddings of attacked ones."""
    matching, entropies, scores, views, attacked = 0, [], [], [], []
    for c in range(K):
        labels = torch.full([len(real[c])], c, device=stored.device)
        companions = ls_pgd(net, real[c], labels)[0]
        with torch.no_grad():
            attacked.append(net.embed(companions, shift))
            clean = net.embed(real[c], shift)
        images = decode(stored[c * IPC : (c + 1) * IPC])
        labels = torch.full([len(images)], c, device=stored.device)
        companions, score = ls_pgd(net, images.detach(), labels)
        embedding = net.embed(images, shift)
        perturbed = net.embed(images + (companions - images.detach()), shift)
        matching = matching + (attacked[c].mean(0) - embedding.mean(0)).square().sum() / K
        entropies.append(F.cross_entropy(net.classifier(embedding), labels, reduction="none"))
        scores.append(score)
        views.append([embedding, perturbed, clean, attacked[c]])
    matching = matching / torch.cat(attacked).var(0).sum()
    weights = torch.cat(scores) + FLOOR
    performance = (torch.cat(entropies) * weights).sum() / weights.sum()

    unit = [F.normalize(torch.cat(own)) for own in views]
    owner = torch.cat([torch.full([len(own)], c, device=stored.device) for c, own in enumerate(unit)])
    robust, candidates, first = [], torch.cat(unit), 0
    for c in range(K):
        far = torch.cat([queue[k] for k in range(K) if k != c])
        short = [F.normalize(rows if projection is None else rows @ projection) for rows in (far, views[c][0].detach())]
        for i, query in enumerate(short[1], first):
            nearest = (short[0] @ query).topk(min(TOP_K, len(far))).indices
            others = torch.arange(len(candidates), device=stored.device) != i
            similarity = candidates[others] @ candidates[i] / TAU
            total = torch.cat([similarity, F.normalize(far[nearest]) @ candidates[i] / TAU]).logsumexp(0)
            robust.append(total - similarity[owner[others] == c].mean())
        first += len(unit[c])
    robust = torch.stack(robust).mean()
    loss = MATCHING * matching + (1 - ETA) * performance + ETA * ROBUST * robust
    return {"loss": loss, "matching": matching, "performance": performance, "robust": robust}, attacked


def update(net, stored, images_optimizer, net_optimizer, real_images, queue, projection, real_per_class):
    device = stored.device
    real = [own[torch.randint(len(own), [real_per_class], device=device)] for own in real_images]
    shift = torch.randint(-4, 5, [1, 2], device=device)
    net.requires_grad_(False)
    found, attacked = losses(net, stored, real, queue, shift, projection)
    stored.grad = torch.autograd.grad(found["loss"], stored)[0]
    images_optimizer.step()
    with torch.no_grad():
        stored.clamp_(0, 1)
    for c in range(K):
        queue[c] = torch.cat([queue[c], attacked[c]])[-PER_CLASS:]
    # The network learns from an attacked batch.
    labels = torch.randint(K, [POOL_BATCH], device=device)
    batch = torch.stack([real_images[c][torch.randint(len(real_images[c]), [])] for c in labels.tolist()])
    batch = (crop((batch - MEAN.to(batch)) / STD.to(batch), torch.randint(-4, 5, [POOL_BATCH, 2], device=device)) * STD.to(batch)
             + MEAN.to(batch)).clamp(0, 1)
    batch = ls_pgd(net, batch, labels)[0]
    net.requires_grad_(True)
    net_optimizer.zero_grad()
    F.cross_entropy(net(batch), labels).backward()
    net_optimizer.step()
    return found["loss"].item()


def check(path):
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        tensors, report = {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()["report"])
    weights = {name.split("model.")[1]: tensor for name, tensor in tensors.items() if ".model." in name}
    net = ConvNet(len(weights["features.0.bias"]))
    net.load_state_dict(weights)
    stored, labels = tensors["images"].requires_grad_(), tensors["real-labels"]
    real = [tensors["real-images"][labels == c] for c in range(K)]
    queue = list(tensors["queue.0000.rows"].chunk(K))
    queue = [own[: int(pushed)] for own, pushed in zip(queue, tensors["queue.0000.pushed"])]
    found, _ = losses(net.requires_grad_(False), stored, real, queue, None, None)
    print(json.dumps({name: [report[name], value.item()] for name, value in found.items()}))


def measure(width, real_per_class, updates, threads, device):
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    net = ConvNet(width).to(device)
    real_images = [torch.rand(max(40, real_per_class), 3, 32, 32, device=device) for _ in range(K)]
    stored = torch.rand(K * IPC, 3, 32, 32, device=device, requires_grad=True)
    images_optimizer = torch.optim.Adam([stored], lr=0.01)
    net_optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    queue = [torch.zeros(0, width * 16, device=device) for _ in range(K)]
    projection = torch.randn(width * 16, PROJECTION, device=device) / PROJECTION**0.5
    seconds = []
    for _ in range(updates + 1):
        start = time.perf_counter()
        update(net, stored, images_optimizer, net_optimizer, real_images, queue, projection, real_per_class)
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    print(json.dumps({"seconds": statistics.median(seconds[1:])}))


if __name__ == "__main__":
    command, *words = sys.argv[1:]
    if command == "check":
        check(*words)
    elif command == "time":
        measure(*map(int, words[:4]), words[4])
    else:
        sys.exit(__doc__)
