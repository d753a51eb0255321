"""Writes the files of this folder with the real libraries, from the digits of data/digits.

    python make.py        # in an environment with torch 2.11.0, numpy 2.4 and safetensors 0.8

Each file is in a layout that the field publishes; `expected.safetensors` holds the same tensors as the reader must
return them. Only `call.pt` is hostile: unpickled by Python, it prints a line.
"""

import argparse
import collections
import csv
import pathlib
import pickle

import numpy as np
import torch
from safetensors.torch import save_file

HERE = pathlib.Path(__file__).parent
DIGITS = HERE / "../../../../data/digits/optdigits.csv"
MEAN, STD = 0.3054, 0.3753
IPC = 2


def digits():
    """The first IPC images of each class: pixels f32 [20, 1, 8, 8] in [0, 1], labels i64 [20], grouped."""
    by_class = collections.defaultdict(list)
    for row in csv.reader(open(DIGITS)):
        *pixels, label = map(int, row)
        by_class[label].append([(value * 255 + 8) // 16 for value in pixels])
    chosen = [image for label in range(10) for image in by_class[label][:IPC]]
    images = torch.tensor(chosen, dtype=torch.uint8).view(-1, 1, 8, 8)
    return images.float() / 255, torch.arange(10).repeat_interleave(IPC)


class Call:
    def __reduce__(self):
        return print, ("this file runs what it likes",)


def main():
    images, labels = digits()
    normalized = (images - MEAN) / STD
    second = normalized.flip(0).contiguous()
    expected = {"pixels": images, "normalized": normalized, "second": second, "labels": labels}

    # DC, DSA, DM: one entry per experiment, and accuracies that are numpy scalars.
    accuracies = {"ConvNet": [np.float64(0.5), np.float64(0.25)], "MLP": []}
    torch.save(
        {"data": [[normalized, labels], [second, labels.flip(0)]], "accs_all_exps": accuracies, "lr": 0.01},
        HERE / "dc.pt",
    )
    # MTT and its successors: a file for each tensor; DATM's labels are logits.
    logits = torch.nn.functional.one_hot(labels, 10).float() * 4 - 1
    expected["logits"] = logits
    torch.save(normalized, HERE / "images_best.pt")
    torch.save(logits, HERE / "labels_best.pt")
    # Whatever a tensor can look like: views, strides, dtypes, parameters, scalars, nothing.
    odd = collections.OrderedDict(
        nhwc=images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2),
        part=images[3:5],
        transposed=images[0, 0].t(),
        parameter=torch.nn.Parameter(images[:1].clone(), requires_grad=False),
        half=images[:1].half(),
        bfloat16=images[:1].bfloat16(),
        double=images[:1].double(),
        bytes=(images[:1] * 255).byte(),
        int32=labels.int(),
        scalar=torch.tensor(7),
        empty=torch.zeros(0, 3),
        truth=labels > 4,
    )
    torch.save(odd, HERE / "odd.pt")
    expected.update({f"odd.{name}": tensor.detach().clone().contiguous() for name, tensor in odd.items() if name != "truth"})
    torch.save(torch.nn.Linear(2, 3).requires_grad_(False).state_dict(), HERE / "state_dict.pt")
    torch.save({"images": images}, HERE / "legacy.pt", _use_new_zipfile_serialization=False)
    torch.save({"images": images[:1], "call": Call()}, HERE / "call.pt")
    torch.save({"images": images[:1]}, HERE / "protocol4.pt", pickle_protocol=4)
    torch.jit.script(torch.nn.Linear(2, 3)).save(HERE / "model.pt")
    save_file(expected, HERE / "expected.safetensors")

    # Views with something left to do: the storage holds the negatives of the values.
    waiting = torch.complex(torch.zeros_like(images), -images).conj().imag
    assert waiting.is_neg() and waiting.equal(images)
    torch.save({"images": waiting, "labels": labels.tolist(), "names": ["zero", "one"]}, HERE / "negative.pt")
    torch.save({"images": images.numpy(), "labels": labels.numpy(), "lr": np.float64(0.5)}, HERE / "numpy.pt")
    torch.save({"images": images[:1], "args": argparse.Namespace(lr=0.5)}, HERE / "args.pt")
    with open(HERE / "python.pkl", "wb") as file:
        pickle.dump({"images": images.numpy()}, file)
    # Batches of CIFAR as other programs write them; those of the archive were written by Python 2.
    batch = {"data": (np.arange(2 * 3072) % 251).astype(np.uint8).reshape(2, 3072), "labels": [3, 9], "filenames": ["a", "b"]}
    for protocol in range(2, 6):
        keys = {key.encode() if protocol == 3 else key: value for key, value in batch.items()}
        with open(HERE / f"batch_{protocol}.pkl", "wb") as file:
            pickle.dump(keys, file, protocol=protocol)

    np.savez(HERE / "plain.npz", images=images.numpy(), labels=labels.numpy())
    np.savez_compressed(
        HERE / "nhwc.npz",
        x=(images * 255).byte().permute(0, 2, 3, 1).numpy(),
        y=labels.numpy().astype(np.int32),
        fortran=np.asfortranarray(images[:, 0].numpy().astype(">f8")),
    )
    np.save(HERE / "images.npy", images.numpy().astype(np.float16))
    np.savez(HERE / "objects.npz", images=np.array([{"a": 1}], dtype=object))


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
