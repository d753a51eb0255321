"""``c2r.attack``: the evaluation of the command ``c2r attack`` on a model in memory."""

import json
import os
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Generic, Literal, NamedTuple, TypeVar, Union, overload

import torch

from c2r import _arguments, _core, _progress
from c2r._arguments import Array

Model = Union[Callable[[torch.Tensor], torch.Tensor], torch.jit.ScriptModule, str, "os.PathLike[str]"]
Epsilon = Union[str, float, Fraction, torch.Tensor]

#: What an attack returns: a tensor, or a dictionary of them.
Images = TypeVar("Images", bound=Union[torch.Tensor, dict[str, torch.Tensor]])

#: Images per pass, as of the command.
BATCH_SIZE = 128


#: Where the frames are that warnings leave out.
_PACKAGE = Path(__file__).parent

#: What is doubted about a radius that reaches every image.
_GREY = " turns every image into plain grey"


class Unbounded(float):
    """A radius that reaches every image on purpose, for attacks that look for the smallest perturbation."""


class Doubtful(UserWarning):
    """A reason to doubt a result; the text says what was seen and what to do."""


class Flag(NamedTuple):
    """A reason to doubt a result.

    Attributes:
        name: As in reports, e.g. ``zero-gradient``.
        note: What was seen, and what to do.
    """

    name: str
    note: str


# Tensors have no equality of their own that is one truth value: a result is equal to itself only.
@dataclass(frozen=True, eq=False)
class Result(Generic[Images]):
    """What an attack did, and to which images.

    Attributes:
        adversarial: float32 ``[N, C, H, W]`` in [0, 1], on the device of the images: the image that was judged last, and the
            clean image where nothing was attacked. With ``each`` and several attacks, a dictionary with one such tensor for
            each attack.
        robust: bool ``[N]`` on the CPU: right without an attack, and no attack reached its goal: another class than the
            label, or with ``targets`` that one class.
        clean_accuracy: Share of the images that are classified as their label.
        robust_accuracy: Share of the images that are ``robust``.
        flags: Reasons to doubt the numbers, a list of :class:`Flag`.
        report: What ``c2r attack --output`` writes. With ``each``, the accuracies under each attack are in
            ``report["evaluation"]["report"]["attacks"][i]["robust_accuracy"]``.
    """

    adversarial: Images = field(repr=False)
    robust: torch.Tensor = field(repr=False)
    clean_accuracy: float
    robust_accuracy: float
    flags: list[Flag]
    report: dict[str, Any] = field(repr=False)


@overload
def attack(
    model: Model,
    images: Array,
    labels: Array,
    attack: str | Sequence[str],
    *,
    eps: Epsilon,
    norm: str = "linf",
    batch_size: int | None = None,
    seed: int = 0,
    targets: str | Array | None = None,
    each: Literal[False] = False,
    set: Mapping[str, Any] | None = None,
    device: str | torch.device | None = None,
    workers: int | None = None,
    self_check: bool = True,
    misclassified: bool = False,
    as_is: bool = False,
    trace: bool = False,
    progress: _progress.Progress = True,
    **options: Any,
) -> Result[torch.Tensor]: ...
@overload
def attack(
    model: Model,
    images: Array,
    labels: Array,
    attack: str | Sequence[str],
    *,
    each: bool,
    eps: Epsilon,
    # All the others.
    **options: Any,
) -> Result[torch.Tensor | dict[str, torch.Tensor]]: ...
def attack(
    model: Model,
    images: Array,
    labels: Array,
    attack: str | Sequence[str],
    *,
    eps: Epsilon,
    norm: str = "linf",
    batch_size: int | None = None,
    seed: int = 0,
    targets: str | Array | None = None,
    each: bool = False,
    set: Mapping[str, Any] | None = None,
    device: str | torch.device | None = None,
    workers: int | None = None,
    self_check: bool = True,
    misclassified: bool = False,
    as_is: bool = False,
    trace: bool = False,
    progress: _progress.Progress = True,
    **options: Any,
) -> Result[Any]:
    """Attacks ``model`` on labelled images and says which of them resist.

    An image resists if it is classified as its label without an attack and no attack reaches its goal: any other class, or
    with ``targets`` one class, so that a targeted attack that ends in a third class has failed. Misclassified images count as
    not robust and are not attacked unless ``misclassified=True``. Every image that an attack proposes is projected into the
    ball and judged by a forward pass of its own. The model is called with batches of any size up to ``batch_size``.

    Args:
        model: A callable from float32 images ``[N, C, H, W]`` in [0, 1] to float32 logits ``[N, K]``; normalization
            belongs inside it. It is differentiated by its own autograd graph. A ``torch.nn.Module`` is switched to
            evaluation for the attack and back afterwards. A ``torch.jit.ScriptModule``, or the path of a TorchScript
            file, runs without Python, exactly as in the command ``c2r attack --model``.
        images: float32 ``[N, C, H, W]`` in [0, 1], or uint8, which is divided by 255.
        labels: int64 ``[N]``, in ``0..K-1``.
        attack: An attack or suite, several of them, or several separated by commas: ``clean noise fgsm r-fgsm bim pgd
            mi-fgsm ni-fgsm vmi-fgsm vni-fgsm tpgd eot-pgd jitter cw-linf apgd-ce apgd-dlr apgd-t deepfool cw-l2 fab
            fab-t square``; ``paper-six autoattack-standard autoattack-plus autoattack-rand``.
        eps: The radius in pixel units: ``"8/255"``, a fraction, a float or a tensor of one. With 0, nothing is attacked,
            and the result is that of the clean images: the first point of a curve.
        norm: ``linf``, ``l2`` or ``l1``.
        batch_size: Images per pass, 128 by default; changes results by float rounding only.
        seed: Seed of all noise; a sample's noise belongs to its position in ``images``.
        targets: Aim at one class per image: ``next``, ``random``, ``least-likely`` or ``second-best``, or int64 ``[N]``, none
            of them the image's label.
        each: Judge every attack by itself, on all images that are classified correctly; otherwise an attack runs only on
            what the ones before it left.
        set: Options of one attack: ``{"apgd-ce.steps": 50}``.
        device: Where to compute; by default where the model's parameters are, else where the images are.
        workers: Threads that ask the model at the same time, each with its part of a batch, on the CPU: 1 for a callable,
            which then runs on the caller's thread; all cores for TorchScript. More than 1 needs a model that can be
            called by several threads at once.
        self_check: Look for reasons to doubt the model before attacking it.
        misclassified: Attack images that are misclassified, too: for adversarial training, and for images to try on other
            models. Without ``each``, the first attack does it. They count as not robust all the same.
        as_is: Do not replace average pooling and instance normalization of a TorchScript model by faster equivalents.
        trace: Attack a trace of the module (``torch.jit.trace``) as if it had been given as TorchScript: faster for small
            networks. The trace is first compared with the module on some of the images.
        progress: Show a line on stderr (on a terminal and in notebooks), or call this with ``(attack, done, total,
            text)`` after each batch.
        **options: Options of every attack that is named, e.g. ``steps=20, step_size="2/255"``.

    Raises:
        ValueError: An argument that cannot be right; the text is that of the command.
        TypeError: An argument of another type.
        RuntimeError: The model returned something that an attack cannot be judged on.
        Exception: What the model raises comes back as it is, ``KeyboardInterrupt`` included.
    """
    names = attack.split(",") if isinstance(attack, str) else list(attack)
    if not names:
        raise ValueError('attack names no attack: give one or more, such as "pgd" or "autoattack-standard"')
    if isinstance(model, Mapping) and not callable(model):
        raise TypeError(
            "the model is a dictionary, perhaps a state_dict, which has weights and no network: "
            "net.load_state_dict(state_dict), then give net"
        )
    if isinstance(model, type) and issubclass(model, torch.nn.Module):
        raise TypeError(f"the model is the class {model.__qualname__}: give a network, such as {model.__qualname__}()")
    if not callable(model) and not isinstance(model, (str, os.PathLike)):
        raise TypeError(f"the model must be a callable or the path of a TorchScript file, not {type(model).__qualname__}")
    images = _arguments.tensor("images", images)
    labels = _arguments.tensor("labels", labels).to(images.device)
    classes = None if targets is None or isinstance(targets, str) else _arguments.classes("targets", targets, len(images))
    if trace and (not isinstance(model, torch.nn.Module) or isinstance(model, torch.jit.ScriptModule)):
        raise TypeError(f"trace=True needs a torch.nn.Module that is not TorchScript yet, not {type(model).__qualname__}")
    _arguments.outside_inference_mode("c2r.attack")
    request = SimpleNamespace(
        model=None,
        path=None,
        name=_name(model),
        device=_arguments.device(device if device is not None else _device(model, images)),
        images=images.detach(),
        labels=labels.detach(),
        attacks=names,
        norm=_arguments.word("norm", norm, "linf, l2 or l1"),
        eps=_text("eps", eps),
        targets="given" if classes is not None else targets,
        target_classes=classes,
        each=each,
        batch_size=BATCH_SIZE if batch_size is None else _arguments.whole("batch_size", batch_size, 1),
        seed=_arguments.seed(seed),
        workers=_arguments.whole("workers", workers, 1) if workers is not None else 1,
        self_check=self_check,
        misclassified=misclassified,
        as_is=as_is,
        options=[(key.replace("_", "-"), _text(key, value)) for key, value in options.items() if value is not None],
        set=[(*_key(key), _text(key, value)) for key, value in (set or {}).items()],
        progress=_progress.callback(progress),
        grad=torch.autograd.grad,
    )
    if trace:
        model = _traced(model, images.to(_device(model, images) if device is None else device))
    with tempfile.TemporaryDirectory(prefix="c2r-") as folder:
        if isinstance(model, (str, os.PathLike)):
            request.path = Path(model)
        elif isinstance(model, torch.jit.ScriptModule):
            request.path = Path(folder) / "model.pt"
            with warnings.catch_warnings():
                # TorchScript is deprecated, which its users know.
                warnings.simplefilter("ignore")
                torch.jit.save(model, str(request.path))
        else:
            request.model = model
        if request.path is not None and workers is None:
            request.workers = torch.get_num_threads()
        try:
            with _evaluating(model):
                sets, robust, text = _arguments.ask(_core.attack, request)
        finally:
            _progress.close(request.progress)
    report = json.loads(text)
    inner = report["evaluation"]["report"]
    flags = [Flag(flag["flag"], note) for flag, note in zip(inner["flags"], inner["flag_notes"])]
    doubts = [note.removeprefix("doubtful: ") for note in report["notes"] if note.startswith("doubtful: ")]
    for doubt in (*doubts, *(f"{flag.name}: {flag.note}" for flag in flags)):
        if not (isinstance(eps, Unbounded) and _GREY in doubt):
            warnings.warn(doubt, Doubtful, stacklevel=_level_of_the_user())
    adversarial = sets[0][1] if len(sets) == 1 else dict(sets)
    return Result(adversarial, torch.tensor(robust), inner["clean_accuracy"], inner["robust_accuracy"], flags, report)


def _level_of_the_user() -> int:
    """The ``stacklevel`` for the function that calls this one, so that a warning names the line outside this package."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and Path(frame.f_code.co_filename).parent == _PACKAGE:
        level, frame = level + 1, frame.f_back
    return level


class _Held:
    """A module that attacks have switched to evaluation."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.module = module
        #: As it was before the first of them.
        self.training = module.training
        #: How many attacks are at it.
        self.holders = 0


# By identity: modules may define an equality of their own. Every attack that is at one keeps it alive.
_HELD: dict[int, _Held] = {}
_HELD_LOCK = threading.Lock()


@contextmanager
def _evaluating(model: Model) -> Iterator[None]:
    """Switches a module to evaluation, and what was in training mode back.

    Several attacks may be at one module, each on its thread: the last one switches back.
    """
    modules: list[torch.nn.Module] = []
    if isinstance(model, torch.nn.Module) and not isinstance(model, torch.jit.ScriptModule):
        modules = list(model.modules())
    with _HELD_LOCK:
        for module in modules:
            _HELD.setdefault(id(module), _Held(module)).holders += 1
    try:
        if any(module.training for module in modules):
            _evaluate(model, modules)
        yield
    finally:
        with _HELD_LOCK:
            for module in modules:
                held = _HELD[id(module)]
                held.holders -= 1
                if held.holders == 0:
                    del _HELD[id(module)]
                    if held.training:
                        module.training = True


def _evaluate(model: Any, modules: list[torch.nn.Module]) -> None:
    try:
        model.eval()
    except NotImplementedError:
        # Modules of torch.export have no modes: what training or evaluation means is part of their graph.
        for module in modules:
            module.training = False


def _traced(module: torch.nn.Module, images: torch.Tensor) -> torch.jit.ScriptModule:
    """The module as TorchScript, which gives the same logits for a batch of another size, and the same gradient."""
    few = images[:8].to(torch.float32) / (255 if images.dtype == torch.uint8 else 1)

    def found(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
        pixels = few.detach().clone().requires_grad_(True)
        logits = model(pixels)
        (gradient,) = torch.autograd.grad(logits.logsumexp(1).sum(), pixels)
        return logits.detach(), gradient

    with _evaluating(module), warnings.catch_warnings():
        # TorchScript is deprecated, and what the tracer doubts is compared below.
        warnings.simplefilter("ignore")
        try:
            traced = torch.jit.trace(module, few[:1], check_trace=False)
            pairs = list(zip(found(module), found(traced)))
        except Exception as error:
            reason = str(error).strip().partition("\n")[0]
            raise ValueError(
                f"the module cannot be traced ({type(error).__name__}: {reason}); leave trace=True out"
            ) from error
    apart = max(((a - b).abs().max() / a.abs().max().clamp(min=1e-12)).item() for a, b in pairs)
    if not apart <= 1e-3:
        raise ValueError(
            f"the trace of the module gives other logits or gradients (apart by {apart:.1g} of the largest): what it does "
            "depends on the batch, on chance or on values, which a trace does not record; leave trace=True out"
        )
    return traced


def _device(model: Model, images: torch.Tensor) -> torch.device:
    if isinstance(model, torch.nn.Module):
        for tensor in (*model.parameters(), *model.buffers()):
            return tensor.device
    return images.device


def _name(model: Model) -> str:
    if isinstance(model, (str, os.PathLike)):
        return os.fspath(model)
    kind = getattr(model, "__qualname__", None) or type(model).__qualname__
    return f"{getattr(model, '__module__', None) or type(model).__module__}.{kind}"


def _text(name: str, value: Any) -> str:
    """A value as the command line has it; ``name`` is for the error."""
    if isinstance(value, torch.Tensor):
        if value.dim() > 0:
            raise ValueError(f"{name} must be one number, not a tensor of shape {list(value.shape)}")
        value = value.item()
    if isinstance(value, bool):
        return str(value).lower()
    # repr(value) of NumPy's floats would contain the name of their type.
    return float.__repr__(value) if isinstance(value, float) else str(value)


def _key(key: str) -> tuple[str, str]:
    attack, dot, option = key.partition(".")
    if not dot:
        raise ValueError(f"set has the key `{key}`, which is not ATTACK.OPTION")
    return attack, option.replace("_", "-")
