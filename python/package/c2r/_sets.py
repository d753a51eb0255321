"""Distilled sets: reading, writing, making and training on them."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Union

import torch

from c2r import _arguments, _core, _progress
from c2r._arguments import Array
from c2r._attack import Epsilon, _text

Tensors = tuple[Array, Array]

_TORCH_SAVE = '; or: torch.save({"images": images, "labels": labels}, path)'
#: What others write under these extensions, and how.
_OTHER_FORMATS = {
    ".pt": _TORCH_SAVE,
    ".pth": _TORCH_SAVE,
    ".npy": "; numpy.save writes one array, .npz holds images and labels",
    ".png": "",
}

#: Seconds between saved states of a distillation, as of the command.
CHECKPOINT_SECONDS = 300.0


class DistilledSet(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """A distilled set; as a ``torch.utils.data.Dataset`` it yields ``(image, label)``, or ``(image, soft label)``.

    :func:`train` and :func:`save_set` take what is stored, and refuse a set whose ``images`` or ``labels`` were changed.
    A changed set is a set of its own: write it with ``save_set(path, stored, stored_labels, formation=..., ...)`` and read it
    with :func:`load_set`.

    Attributes:
        images: float32 ``[n, C, H, W]`` in [0, 1], mosaics cut apart and enlarged: what a network is trained on.
        labels: int64 ``[n]``.
        soft_labels: float32 ``[n, K]``, rows summing to 1, or None.
        stored: float32 ``[M, C, H, W]``: the images as they are stored and counted; M is n, or n / 4 where each is a mosaic
            of 2 x 2.
        stored_labels: int64 ``[M]``.
        formation: Images per side of a stored image: 1, or 2 for mosaics.
        provenance: Where the set comes from: ``dataset, classes, images_per_class, method, seed, iterations, config,
            versions, data_sha256, mean, std, extra_storage, schema_version`` (docs/formats.md).
        path: The file or folder that it was read from, or None.
    """

    images: torch.Tensor
    labels: torch.Tensor
    soft_labels: torch.Tensor | None
    stored: torch.Tensor
    stored_labels: torch.Tensor
    formation: int
    provenance: dict[str, Any]
    path: Path | None

    def __init__(self, parts: Mapping[str, Any], path: Path | None = None) -> None:
        self.images, self.labels = parts["images"], parts["labels"]
        self.soft_labels = parts["soft_labels"]
        self.stored, self.stored_labels = parts["stored"], parts["stored_labels"]
        self.formation = parts["formation"]
        self.provenance = json.loads(parts["header"])
        self.path = path

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.images[index], (self.labels if self.soft_labels is None else self.soft_labels)[index]

    def __repr__(self) -> str:
        about = self.provenance
        kind = "images" if self.formation == 1 else f"mosaics of {self.formation}x{self.formation}"
        return (
            f"DistilledSet({about['dataset']}, {about['classes']} classes of {about['images_per_class']} {kind}, "
            f"by {about['method']}, seed {about['seed']})"
        )

    def _given(self) -> SimpleNamespace:
        """What the compiled half takes, if ``images`` and ``labels`` still are what is stored."""
        given = SimpleNamespace(
            stored=self.stored,
            stored_labels=self.stored_labels,
            soft_labels=self.soft_labels,
            formation=self.formation,
            header=json.dumps(self.provenance),
        )
        for name, stored in zip(("images", "labels"), _core.decode(given)):
            shown = torch.as_tensor(getattr(self, name)).detach().to(stored.device, stored.dtype)
            if shown.shape != stored.shape or not torch.allclose(shown, stored, rtol=0, atol=1e-6):
                raise ValueError(
                    f"`{name}` of this set are not what it stores: they were changed. A changed set is a set of its own: "
                    'write it, c2r.save_set("changed.safetensors", stored, stored_labels, formation=..., method=...), and use '
                    "what c2r.load_set reads"
                )
        return given


def load_set(path: Union[str, "os.PathLike[str]"]) -> DistilledSet:
    """Reads a distilled set: safetensors, ``.npz`` or a PNG folder of c2r, or the run folder of a distillation.

    Raises:
        ValueError: The file cannot be read or is not such a set; the text names the file and what is wrong.
    """
    return DistilledSet(_core.load_set(os.fspath(path)), Path(path))


def save_set(
    path: Union[str, "os.PathLike[str]"],
    images: DistilledSet | Array,
    labels: Array | None = None,
    soft_labels: Array | None = None,
    *,
    formation: int = 1,
    dataset: str = "unknown",
    method: str = "unknown",
    seed: int = 0,
    iterations: int = 0,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    quantize: bool = False,
) -> None:
    """Writes a distilled set, whole or not at all: ``.npz``, a folder of PNG images where ``path`` has no extension, else
    safetensors. A file or folder that is there is replaced, and missing folders are made.

    Args:
        path: Where to.
        images: A :class:`DistilledSet`, and nothing else is needed; or float32 ``[M, C, H, W]`` in [0, 1], or uint8, which
            is divided by 255.
        labels: int64 ``[M]``, the same number of each class.
        soft_labels: float32 ``[M, K]``, rows summing to 1; for mosaics one row for each part, ``[M * formation**2, K]``.
        formation: Images per side of each of ``images``: 2 if they are mosaics, as in :attr:`DistilledSet.stored`.
        dataset: Name of the real dataset, e.g. ``cifar10``.
        method: How the images were made, as tables are to call it.
        seed: Seed of the distillation.
        iterations: Iterations that were run.
        mean: Mean of each channel to normalize with; that of the images by default.
        std: Standard deviation of each channel to normalize with; that of the images by default.
        quantize: Let PNG images round pixels that are not multiples of 1/255.

    Raises:
        ValueError: The tensors do not make a set, or the path has the extension of another format; the text says what
            breaks which rule.
    """
    suffix = Path(path).suffix.lower()
    if suffix in _OTHER_FORMATS:
        raise ValueError(
            f"save_set does not write {suffix}: end {os.fspath(path)} with .safetensors or .npz, or leave the extension out "
            f"for a folder of PNG images{_OTHER_FORMATS[suffix]}"
        )
    if isinstance(images, DistilledSet):
        return _core.save_set(images._given(), os.fspath(path), quantize)
    if labels is None:
        raise ValueError("labels are missing")
    images, labels = _arguments.tensor("images", images), _arguments.tensor("labels", labels)
    if images.dim() != 4 or labels.shape != images.shape[:1] or not labels.numel():
        raise ValueError(
            f"images must be [M, C, H, W] and labels [M], not {list(images.shape)} and {list(labels.shape)}"
        )
    if images.dtype == torch.uint8:
        images = images / 255
    if soft_labels is not None:
        soft_labels = _arguments.tensor("soft_labels", soft_labels)
    classes = int(labels.max()) + 1 if soft_labels is None else soft_labels.shape[1]
    header = {
        "schema_version": 1,
        "dataset": dataset,
        "classes": classes,
        "images_per_class": len(labels) // classes,
        "method": method,
        "seed": _arguments.seed(seed),
        "iterations": _arguments.whole("iterations", iterations, 0),
        "config": {},
        "versions": {"c2r": _core.__version__, "torch": torch.__version__},
        "data_sha256": "",
        "mean": list(mean) if mean is not None else images.mean((0, 2, 3)).tolist(),
        "std": list(std) if std is not None else images.std((0, 2, 3)).tolist(),
        "extra_storage": "" if soft_labels is None else f"soft labels, {soft_labels.numel()} floats",
    }
    formation = _arguments.whole("formation", formation, 1)
    given = SimpleNamespace(
        stored=images, stored_labels=labels, soft_labels=soft_labels, formation=formation, header=json.dumps(header)
    )
    return _core.save_set(given, os.fspath(path), quantize)


def distill(
    dataset: str | Tensors,
    ipc: int,
    profile: str = "faithful",
    *,
    eps: Epsilon | None = None,
    name: str = "tensors",
    classes: int | None = None,
    data: Union[str, "os.PathLike[str]", None] = None,
    run_dir: Union[str, "os.PathLike[str]", None] = None,
    force: bool = False,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    device: str | torch.device = "cpu",
    progress: _progress.Progress = True,
    **overrides: Any,
) -> DistilledSet:
    """Distils a training set into a few images per class, as the command ``c2r distill`` does.

    Args:
        dataset: ``(images, labels)``: uint8 ``[N, C, H, W]``, or float32 in [0, 1], which is rounded to multiples of 1/255
            as in image files; int64 ``[N]``. Or the name of a dataset that c2r knows: ``digits``, ``cifar10``, ...
        ipc: Images per class.
        profile: ``faithful``, ``plus``, ``dm``, ``mtt``, ... (``c2r distill --help`` lists them).
        eps: Radius of the attacks in the distillation, pixel units (the key ``threat.epsilon``); by default the profile's.
        name: What results call images in memory.
        classes: Number of classes; the largest label and one more by default.
        data: Folder that holds the downloaded datasets.
        run_dir: A folder for checkpoints and the set. The same call on the same folder resumes an interrupted run
            and reads a finished one.
        force: Discard an earlier run in the folder.
        checkpoint_seconds: Seconds between saved states in ``run_dir``.
        device: Where to compute.
        progress: Show a line on stderr, or call this with ``(stage, done, total, text)`` after each step. The total counts the
            training of networks, too.
        **overrides: Keys of the configuration (docs/configuration.md), as ``--set`` takes them: ``iterations=100, seed=1``;
            in sections ``**{"pool.lr": 0.01}``. A dictionary replaces a section as a whole.

    Raises:
        ValueError: A key or value that cannot be, or another run in the folder.
        KeyboardInterrupt: After the state is saved, where there is a ``run_dir``.
    """
    _arguments.outside_inference_mode("c2r.distill")
    known = isinstance(dataset, str)
    images, labels = (None, None) if isinstance(dataset, str) else _arguments.pair("dataset", dataset)
    reporter = _progress.callback(progress)
    request = SimpleNamespace(
        name=dataset if known else name,
        data=None if data is None else os.fspath(data),
        images=images,
        labels=labels,
        n_classes=_classes(classes, labels),
        profile=profile,
        set=_assignments({"ipc": ipc, **({} if eps is None else {"threat.epsilon": _text("eps", eps)}), **overrides}),
        run_dir=None if run_dir is None else os.fspath(run_dir),
        force=force,
        checkpoint_seconds=_seconds(checkpoint_seconds),
        device=_arguments.device(device),
        progress=reporter,
    )
    try:
        parts = _arguments.ask(_core.distill, request)
    finally:
        _progress.close(reporter)
    return DistilledSet(parts, None if run_dir is None else Path(run_dir))


def train(
    set: DistilledSet | Tensors,
    protocol: str = "natural",
    *,
    model: str | None = None,
    eps: Epsilon | None = None,
    seed: int = 0,
    name: str = "tensors",
    classes: int | None = None,
    device: str | torch.device = "cpu",
    progress: _progress.Progress = True,
    **overrides: Any,
) -> dict[str, torch.Tensor]:
    """Trains a network on a distilled set, or on real images as the upper reference, as ``c2r train`` does.

    The last step counts, and no test image is looked at.

    Args:
        set: What :func:`distill` or :func:`load_set` returned, or ``(images, labels)`` as for :func:`distill`.
        protocol: ``natural``, ``pgd-at``, ``trades`` or ``dd-robustbench``.
        model: The network: ``ConvNet-D3-W128-IN`` and the like, ``ResNet18-IN``, ``VGG11-IN`` or ``AlexNet-NONE``; by default
            the ConvNet of the dataset's tables.
        eps: Radius of adversarial training in pixel units, by default the dataset's, and 2/255 for tensors. Of no effect in
            natural training.
        seed: Seed of initialization, order and augmentation.
        name, classes: As in :func:`distill`.
        device: Where to compute.
        progress: Show a line on stderr, or call this with ``("train", done, total, text)`` after each step.
        **overrides: Keys of the protocol: ``lr=0.02``, ``length={"steps": 500}``.

    Returns:
        A state dict, ``mean`` and ``std`` of the pixels included. That of a ConvNet is for :class:`c2r.ConvNet`:
        ``c2r.ConvNet.of(state, (H, W))``. The package has no module for the other networks; their parameters have the names
        that the field's own code gives them. The command attacks them, once ``torch.save`` wrote the state dict without
        ``mean`` and ``std``: ``c2r attack --state-dict net.pt --arch ResNet18-IN --normalized MEAN/STD``.

    Raises:
        ValueError: A key or value that cannot be.
    """
    _arguments.outside_inference_mode("c2r.train")
    distilled = set if isinstance(set, DistilledSet) else None
    images, labels = (None, None) if isinstance(set, DistilledSet) else _arguments.pair("set", set)
    reporter = _progress.callback(progress)
    request = SimpleNamespace(
        distilled=None if distilled is None else distilled._given(),
        path=None if distilled is None or distilled.path is None else os.fspath(distilled.path),
        name=name,
        images=images,
        labels=labels,
        n_classes=_classes(classes, labels),
        protocol=protocol,
        set=_assignments(overrides),
        model=model if model is None else _arguments.word("model", model, "the name of a network, such as ConvNet-D3-W128-IN"),
        eps=None if eps is None else _text("eps", eps),
        seed=_arguments.seed(seed),
        device=_arguments.device(device),
        progress=reporter,
    )
    try:
        parameters, _, mean, std = _arguments.ask(_core.train, request)
    finally:
        _progress.close(reporter)
    state = {parameter: tensor.detach() for parameter, tensor in parameters}
    state["mean"], state["std"] = (torch.tensor(values).view(1, -1, 1, 1) for values in (mean, std))
    return state


def _classes(classes: int | None, labels: torch.Tensor | None) -> int:
    if classes is not None:
        return _arguments.whole("classes", classes, 1)
    return 0 if labels is None or not labels.numel() else int(labels.max()) + 1


def _seconds(value: Any) -> float:
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = -1.0
    # Written so that NaN fails.
    if not seconds >= 0:
        raise ValueError(f"checkpoint_seconds must be a number, 0 or more, not {value!r}")
    return seconds


def _assignments(overrides: Mapping[str, Any]) -> list[str]:
    """``key=value`` in TOML."""
    return [f"{_key(key)}={_toml(key, value)}" for key, value in overrides.items() if value is not None]


def _key(key: str) -> str:
    return key.replace("_", "-")


def _toml(key: str, value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(inner)} = {_toml(inner, each)}" for inner, each in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_toml(key, each) for each in value)}]"
    return json.dumps(value) if isinstance(value, str) else _text(key, value)
