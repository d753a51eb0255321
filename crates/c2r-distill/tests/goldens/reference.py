"""The updates of C2R's images in PyTorch, for whoever wants to read the method so: `Run.update` is one, from top to bottom.

It follows docs/method.md and docs/configuration.md and shares no code with c2r. make_updates.py beside this file makes of it the
numbers that c2r is tested with. Sections and symbols are those of docs/method.md, keys (`c`) those of docs/configuration.md.
Left out is what is random: augmentation, shuffled batches, random starts, the queue's projection, the choice of a network (here
is one) and of real images (each update takes all of them).
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

CLASSES, SHAPE = 3, (3, 8, 8)
MEAN, STD = [0.5, 0.45, 0.4], [0.25, 0.2, 0.3]
ACCURACY = 0.625  # of the network on its training batches, before the first update


class ConvNet(nn.Module):
    """ConvNet-D2-W8-IN (docs/formats.md): logits f are `forward`, embeddings e are `embed`; pixels in [0, 1] go in."""

    def __init__(self, depth=2, filters=8):
        super().__init__()
        self.mean, self.std = (torch.tensor(values).view(1, -1, 1, 1) for values in (MEAN, STD))
        layers = []
        for block in range(depth):
            layers += [nn.Conv2d(filters if block else SHAPE[0], filters, 3, padding=1), nn.GroupNorm(filters, filters)]
            layers += [nn.ReLU(), nn.AvgPool2d(2)]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(filters * (SHAPE[1] >> depth) * (SHAPE[2] >> depth), CLASSES)

    def embed(self, x):
        return self.features((x - self.mean.to(x)) / self.std.to(x)).flatten(1)

    def forward(self, x):
        return self.classifier(self.embed(x))


def decode(images, formation):
    """Mosaics, [M, C, H, W], to [M * formation^2, C, H, W] (docs/formats.md)."""
    (m, c, h, w), f = images.shape, formation
    tiles = images.reshape(m, c, f, h // f, f, w // f).permute(0, 2, 4, 1, 3, 5).reshape(-1, c, h // f, w // f)
    return tiles if f == 1 else F.interpolate(tiles, size=(h, w), mode="bilinear", align_corners=False)


def margin(logits, labels):
    """g(x): the logit of the class less the largest other one."""
    own = logits.gather(1, labels[:, None])[:, 0]
    return own - logits.scatter(1, labels[:, None], -math.inf).max(1)[0]


class Memory:
    """Stored perturbations d^ and the losses that they had, NaN where there is none (LS-PGD, "Continuation")."""

    def __init__(self, images):
        self.d, self.loss = torch.zeros_like(images), torch.full_like(images[:, 0, 0, 0], math.nan)


def attack(net, x, labels, companions, epsilon, memory=None, rows=...):
    """Companions of `x` (section "LS-PGD"); `rows`: their places in the memory."""
    project = lambda z: torch.minimum(torch.maximum(z, x - epsilon), x + epsilon).clamp(0, 1)  # P of the page
    loss = lambda z: F.cross_entropy(net(z), labels, reduction="none")

    def sign(z):
        z = z.detach().requires_grad_()
        return torch.autograd.grad(loss(z).sum(), z)[0].sign()

    if companions["attack"] == "fgsm":
        return project(x + epsilon * sign(x))
    step = companions["rel-step-size"] * epsilon
    if companions["attack"] == "pgd":
        z = x
        for _ in range(companions["steps"]):
            z = project(z + step * sign(z))
        return z
    y = x if memory is None else project(x + memory.d[rows])
    u = sign(y)
    with torch.no_grad():
        steps = [step * companions["growth"] ** q for q in range(companions["candidates"])]
        candidates = torch.stack([project(y + t * u) for t in steps])
        losses, best = torch.stack([loss(candidate) for candidate in candidates]).max(0)
        found = candidates[best, torch.arange(len(x))]
        if memory is not None:
            if companions["reuse"]:  # early stop: a comparison with NaN is false
                keep = loss(y) >= memory.loss[rows]
                found = torch.where(keep[:, None, None, None], y, found)
                losses = torch.where(keep, memory.loss[rows], losses)
            memory.d[rows], memory.loss[rows] = found - x, losses
    return found


def weights(curriculum, scores):
    """w_i of the curriculum: score plus floor, of mean 1."""
    raw = scores + curriculum["floor"] if curriculum["mode"] == "weight" else torch.ones_like(scores)
    return raw / raw.mean()


def chosen(curriculum, scores, labels, progress):
    """Positions of the samples that `prefix` or `pace` keeps; all of them in the other modes."""
    if curriculum["mode"] not in ("prefix", "pace"):
        return torch.arange(len(scores))
    kept = []
    for label in range(CLASSES):
        own = torch.nonzero(labels == label)[:, 0]
        easy_first, n = own[scores[own].argsort()], len(own)
        if curriculum["mode"] == "pace":
            low, high = (start + (end - start) * progress for start, end in (curriculum["low"], curriculum["high"]))
            kept.append(easy_first[math.floor(low * n + 1e-9) : math.ceil(high * n - 1e-9)])
        else:
            k = math.ceil(curriculum["fraction"] * n - 1e-9)
            kept.append(easy_first[-k:] if curriculum["first"] == "hard" else easy_first[:k])
    return torch.cat(kept)


def ordered(curriculum, scores, labels, _progress):
    """Positions of an epoch in the mode `order`."""
    order = scores.argsort(descending=curriculum["first"] == "hard", stable=True)
    if curriculum["class-balanced"]:  # the first of each class, the second of each class, ...
        order = torch.stack([order[labels[order] == label] for label in range(CLASSES)], 1).flatten()
    return order


def class_means(embeddings, labels, w):
    """Weighted mean embedding of each class, [K, D]."""
    member = (labels == torch.arange(CLASSES)[:, None]).to(w) * w
    return member @ embeddings / member.sum(1, keepdim=True).clamp(min=1e-12)


def contrast(anchors, labels, others, queue, crl):
    """The terms of L_CRL, one per anchor, and the cosine of each anchor with its impostor.

    others: (embeddings, labels) of the candidates beside the anchors.
    """
    embeddings, classes = (torch.cat(parts) for parts in zip((anchors, labels), *others))
    cosine = F.normalize(anchors) @ F.normalize(embeddings).T
    candidate = ~torch.eye(len(anchors), len(embeddings), dtype=torch.bool)  # A(i): all but the anchor
    same = labels[:, None] == classes
    positive = (candidate & same).to(cosine)  # P(i)
    among, impostors = cosine.masked_fill(~candidate, -math.inf), cosine.masked_fill(same, -math.inf)
    if queue is not None and len(queue.labels):
        stored = F.normalize(anchors) @ F.normalize(queue.embeddings).T
        stored = stored.masked_fill(labels[:, None] == queue.labels, -math.inf)
        nearest = stored.topk(min(crl["queue"]["top-k"], len(queue.labels)))[0]
        among, impostors = torch.cat([among, nearest], 1), torch.cat([impostors, nearest], 1)
    tau = crl["temperature"]
    terms = (among / tau).logsumexp(1) - (cosine / tau * positive).sum(1) / positive.sum(1)
    return terms, impostors.max(1)[0]


class Queue:
    """The last `per-class` embeddings of each class."""

    def __init__(self, embeddings):
        self.embeddings, self.labels = embeddings[:0], torch.zeros(0, dtype=torch.long)

    def push(self, embeddings, labels, per_class, momentum):
        if len(self.labels) and momentum:
            means = class_means(self.embeddings, self.labels, torch.ones_like(self.embeddings[:, 0]))
            embeddings = momentum * means[labels] + (1 - momentum) * embeddings
        embeddings, labels = torch.cat([self.embeddings, embeddings]), torch.cat([self.labels, labels])
        last = torch.cat([torch.nonzero(labels == label)[-per_class:, 0] for label in range(CLASSES)])
        self.embeddings, self.labels = embeddings[last], labels[last]


class Run:
    """A run with the keys `c`: whatever goes from one update to the next.

    inputs: weights of the network, first images, real images (u8) and their labels. jitter: relative noise on the weights.
    """

    def __init__(self, c, inputs, jitter=0.0, dtype=torch.float32):
        self.c, self.t, self.accuracy = c, 0, ACCURACY
        self.net = ConvNet().to(dtype).requires_grad_(False)
        for name, parameter in self.net.named_parameters():
            parameter.copy_(inputs[f"weights.{name}"]).mul_(1 + jitter * torch.randn_like(parameter))
        self.images = inputs[f"first.{c['images.formation']}"].to(dtype)
        self.labels = torch.arange(CLASSES).repeat_interleave(c["ipc"] * c["images.formation"] ** 2)
        self.real, self.real_labels = inputs["real.images"].to(dtype) / 255, inputs["real.labels"]
        self.moments = [torch.zeros_like(self.images) for _ in range(2)]
        self.velocity = [torch.zeros_like(value) for value in self.net.parameters()]
        self.places = {place: self.place(place) for place in ("synthetic", "matching", "pool")}
        remembers = lambda place, who: self.places[place][0].get("warm-start") and c["aac.remember"] in (who, "both")
        decoded = decode(self.images, c["images.formation"])
        self.memory = Memory(decoded) if remembers("synthetic", "synthetic") else None
        self.real_memory = Memory(self.real) if remembers("matching", "real") else None
        self.queue = Queue(self.net.embed(self.real)) if "queue" in c["crl"] else None
        self.epoch = torch.zeros(0, dtype=torch.long)

    def place(self, place):
        """The attack at a place: its section and its radius (section "Three places, one attack")."""
        over, _, under = self.c.get(f"attacks.{place}.epsilon", self.c["threat.epsilon"]).partition("/")
        return self.c.get(f"attacks.{place}.companions", self.c["companions"]), float(over) / float(under or 1)

    def progress(self):
        """From 0 at the first update to 1 at the last."""
        return self.t / max(self.c["iterations"] - 1, 1)

    def batch(self, decoded):
        """Positions of the decoded images that the update takes (section "Attack-aware curriculum, AAC")."""
        c, curriculum = self.c, self.c["aac.synthetic"]
        if curriculum["mode"] not in ("order", "prefix", "pace"):
            return torch.arange(len(decoded))
        if not len(self.epoch):
            attacked = attack(self.net, decoded, self.labels, *self.places["synthetic"], self.memory)
            scores = (1 - margin(self.net(attacked), self.labels)).clamp(min=0)
            in_order = curriculum["mode"] == "order"
            self.epoch = (ordered if in_order else chosen)(curriculum, scores, self.labels, self.progress())
        n = CLASSES * c["images.batch-per-class"] or len(self.epoch)
        batch, self.epoch = self.epoch[:n], self.epoch[n:]
        return batch

    def update(self):
        """One update of the images; returns what log.jsonl has of it."""
        c, net, real_labels = self.c, self.net, self.real_labels
        images = self.images.clone().requires_grad_()
        decoded = decode(images, c["images.formation"])
        inside = decoded.detach().clamp(0, 1)  # attacks live in [0, 1]
        rows = self.batch(inside)
        x, inside, labels = decoded[rows], inside[rows], self.labels[rows]

        # Companions x~ = x + d, with a constant d; margins under attack, perturbation scores s.
        attacked = attack(net, inside, labels, *self.places["synthetic"], self.memory, rows)
        real_attacked = attack(net, self.real, real_labels, *self.places["matching"], self.real_memory)
        margins, real_margins = margin(net(attacked), labels), margin(net(real_attacked), real_labels)
        scores, real_scores = (1 - margins).clamp(min=0), (1 - real_margins).clamp(min=0)
        e, e_companions = net.embed(x), net.embed(x + (attacked - inside))
        e_real, e_attacked = net.embed(self.real), net.embed(real_attacked)

        # L_DM, of the classes that the batch has.
        target = e_attacked if c["matching.attacked"] else e_real
        kept = chosen(c["aac.matching"], real_scores, real_labels, self.progress())
        ones = torch.ones_like(margins)
        real_means = class_means(target[kept], real_labels[kept], weights(c["aac.matching"], real_scores)[kept])
        apart = (real_means - class_means(e, labels, ones))[labels.unique()]
        variance = target[kept].var(0, unbiased=True).sum()
        distances = {"scaled-l2": apart.square().sum(1) / variance, "squared-l1": (apart.abs().sum(1) / 2).square()}
        matching = distances[c["objective.distance"]].mean()

        # L_perf.
        w = weights(c["aac.synthetic"], scores)
        performance = (w * F.cross_entropy(net.classifier(e), labels, reduction="none")).sum() / w.sum()

        # L_rob: L_CRL, or the backbone's.
        robust, impostors, w_robust = 0 * performance, None, w if c["aac.weighted"] == "both" else ones
        if c["objective.robust"] == "crl":
            ours, theirs = [(e_companions, labels)], [(e_attacked, real_labels)]
            means, impostors = [], []
            if c["objective.anchors"] in ("synthetic", "both"):
                real = {"none": [], "attacked": theirs, "both": theirs + [(e_real, real_labels)]}[c["objective.candidates"]]
                terms, nearest = contrast(e, labels, ours + real, self.queue, c["crl"])
                means, impostors = [(w_robust * terms).sum() / w_robust.sum()], [nearest.mean()]
            if c["objective.anchors"] in ("real", "both"):
                terms, nearest = contrast(e_real, real_labels, theirs + [(e, labels)] + ours, self.queue, c["crl"])
                means, impostors = means + [terms.mean()], impostors + [nearest.mean()]
            robust, impostors = sum(means) / len(means), impostors[0]
        if c["objective.robust"] == "class-mean":
            robust = class_means(e - e_companions, labels, w_robust).square().sum() / CLASSES / variance

        # L.
        confident = performance * self.accuracy if c["objective.by-accuracy"] else performance
        eta, r = c["objective.eta"], c["objective.robust-weight"]
        loss = c["matching.weight"] * matching + c["objective.weight"] * ((1 - eta) * confident + eta * r * robust)
        loss = loss * CLASSES if c["objective.reduction"] == "sum" else loss
        self.descend(torch.autograd.grad(loss, images)[0])

        # The queue takes the embeddings of this update after it, and then the network learns.
        if self.queue is not None:
            self.queue.push(e_attacked, real_labels, c["crl"]["queue"]["per-class"], c["crl"]["queue"]["momentum"])
        for _ in range(c["pool.steps-per-iteration"]):
            self.train()
        self.t += 1
        quantiles = lambda values: values.quantile(torch.tensor([0.1, 0.5, 0.9]).to(values)).tolist()
        return {
            "loss": loss.item(), "matching": matching.item(), "performance": performance.item(),
            "robust": None if c["objective.robust"] == "none" else robust.item(),
            "margin_quantiles": quantiles(margins.detach()), "real_margin_quantiles": quantiles(real_margins),
            "impostor_similarity": None if impostors is None else impostors.item(),
        }

    def descend(self, gradient):
        """Adam, or SGD with momentum 0.5, at a rate on a cosine; in normalized space, a step of 1 moves a pixel by std."""
        c, (first, second), t = self.c, self.moments, self.t + 1
        unit = self.net.std.to(gradient) if c["images.space"] == "normalized" else 1.0
        cosine = (1 + math.cos(math.pi * self.progress())) / 2
        rate = c["images.final-lr"] + (c["images.lr"] - c["images.final-lr"]) * cosine
        gradient = gradient * unit
        if c["images.optimizer"] == "sgd":
            first.mul_(0.5).add_(gradient)
            change = first
        else:
            a, b = (0.9, 0.999) if c["images.optimizer"] == "adam" else (0.5, 0.9)
            first.mul_(a).add_((1 - a) * gradient)
            second.mul_(b).add_((1 - b) * gradient.square())
            change = first / (1 - a**t) / ((second / (1 - b**t)).sqrt() + 1e-8)
        self.images = self.images - rate * unit * change
        if c["images.clamp"]:
            self.images = self.images.clamp(0, 1)

    def train(self):
        """One step of SGD on the attacked real images, all of them in one batch (section "Networks")."""
        c, parameters = self.c, list(self.net.parameters())
        x = attack(self.net, self.real, self.real_labels, *self.places["pool"])
        self.net.requires_grad_(True)
        logits = self.net(x)
        gradients = torch.autograd.grad(F.cross_entropy(logits, self.real_labels), parameters)
        self.net.requires_grad_(False)
        self.accuracy = 0.9 * self.accuracy + 0.1 * (logits.argmax(1) == self.real_labels).double().mean().item()
        for parameter, velocity, gradient in zip(parameters, self.velocity, gradients):
            velocity.mul_(c["pool.momentum"]).add_(gradient + c["pool.weight-decay"] * parameter)
            parameter.sub_(c["pool.lr"] * velocity)
