"""The Python side of `cargo xtask bench data --peers`: torchvision reads the same JPEGs.

    python peers.py make REGISTRY OUT N [PICTURES]   writes OUT/imagenette2-320 with N training and N / 10 test JPEGs of
                                                     500x375 (about what ILSVRC has): PICTURES scaled up with some noise,
                                                     or else noise with the spectrum of photographs
    python peers.py load FOLDER THREADS              ImageFolder, Resize, CenterCrop, into one uint8 tensor; prints seconds
    python peers.py compare FOLDER CACHE             the pixels of c2r's cache beside Pillow's

What is timed is listing, decoding and resizing with a DataLoader of THREADS workers; imports come before. Bytes are kept,
not floats, which spares torchvision a conversion.
"""

import json
import pathlib
import sys
import time
import tomllib

import numpy as np
from PIL import Image

SIZE = 128


def noise(rng):
    """A picture whose amplitudes fall with the frequency, as in photographs, and whose channels resemble each other."""
    height, width = 375, 500
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = 1
    planes = []
    for _ in range(3):
        spectrum = rng.normal(size=frequency.shape) + 1j * rng.normal(size=frequency.shape)
        plane = np.fft.irfft2(spectrum / frequency**1.2, s=(height, width))
        planes.append(plane / plane.std())
    mixed = np.stack([planes[0], planes[0] + 0.3 * planes[1], planes[0] + 0.3 * planes[2]], -1)
    return Image.fromarray(np.clip(128 + 50 * mixed, 0, 255).astype(np.uint8))


def scaled_up(path, rng):
    picture = Image.open(path).convert("RGB").resize((500, 375), Image.BICUBIC)
    grain = rng.normal(scale=8, size=(375, 500, 1))
    return Image.fromarray(np.clip(np.asarray(picture) + grain, 0, 255).astype(np.uint8))


def make(registry, out, n, pictures=None):
    datasets = tomllib.loads(pathlib.Path(registry).read_text())["dataset"]
    wnids = next(dataset["wnids"] for dataset in datasets if dataset["name"] == "imagenette")
    rng = np.random.default_rng(0)
    endings = (".jpg", ".jpeg", ".png")
    found = sorted(p for p in pathlib.Path(pictures).rglob("*") if p.suffix.lower() in endings) if pictures else []
    if pictures and not found:
        sys.exit(f"no JPEG or PNG below {pictures}")
    for split, count in [("train", int(n)), ("val", int(n) // 10)]:
        for index in range(count):
            folder = pathlib.Path(out, "imagenette2-320", split, wnids[index % len(wnids)])
            folder.mkdir(parents=True, exist_ok=True)
            picture = scaled_up(found[rng.integers(len(found))], rng) if found else noise(rng)
            picture.save(folder / f"{index}.JPEG", quality=90)


def load(folder, threads):
    import torch
    from torchvision import datasets, transforms

    torch.set_num_threads(1)
    transform = transforms.Compose(
        [transforms.Resize((SIZE, SIZE)), transforms.CenterCrop(SIZE), transforms.PILToTensor()]
    )
    start = time.perf_counter()
    n, total = 0, 0
    for split in ["train", "val"]:
        data = datasets.ImageFolder(f"{folder}/{split}", transform)
        batches = torch.utils.data.DataLoader(data, batch_size=256, num_workers=int(threads))
        images = torch.empty((len(data), 3, SIZE, SIZE), dtype=torch.uint8)
        at = 0
        for batch, _ in batches:
            images[at : at + len(batch)] = batch
            at += len(batch)
        n += at
        total += int(images[:, :, ::16, ::16].sum())
    print(json.dumps({"images": n, "seconds": time.perf_counter() - start, "sum": total}))


def compare(folder, cache):
    from safetensors.numpy import load_file

    ours = load_file(cache)["train.images"]
    paths = [p for wnid in sorted(pathlib.Path(folder, "train").iterdir()) for p in sorted(wnid.iterdir())]
    assert len(paths) == len(ours)
    differences = np.zeros(256, dtype=np.int64)
    for path, image in zip(paths, ours):
        theirs = np.asarray(Image.open(path).convert("RGB").resize((SIZE, SIZE), Image.BILINEAR)).transpose(2, 0, 1)
        differences += np.bincount(np.abs(theirs.astype(int) - image).ravel(), minlength=256)
    values = np.arange(256)
    n = differences.sum()
    print(
        json.dumps(
            {
                "mean": float((differences * values).sum() / n),
                "max": int(values[differences > 0].max()),
                "equal": float(differences[0] / n),
                "within_one": float(differences[:2].sum() / n),
            }
        )
    )


if __name__ == "__main__":
    {"make": make, "load": load, "compare": compare}[sys.argv[1]](*sys.argv[2:])
