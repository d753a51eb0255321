"""What the functions of the package take: checks whose errors say which argument cannot be, and why."""

import operator
import re
import reprlib
from collections.abc import Callable
from typing import Any, Protocol, TypeVar, Union

import torch
from torch.utils.data import DataLoader, Dataset

T = TypeVar("T")


class _HasArray(Protocol):
    def __array__(self) -> Any: ...


#: A tensor, or an array of NumPy, which c2r does without.
Array = Union[torch.Tensor, _HasArray]

#: The largest seed.
SEEDS = 2**64 - 1

_FIELD = re.compile(r"argument '\w+': failed to extract field \w+\.(\w+)$")


def tensor(name: str, value: Any) -> torch.Tensor:
    """A tensor or an array as a tensor; an array's float64 becomes float32, its int32 int64."""
    if isinstance(value, (DataLoader, Dataset)):
        before = "" if isinstance(value, DataLoader) else "loader = torch.utils.data.DataLoader(dataset, batch_size=500); "
        raise TypeError(
            f"{name} must be a tensor or an array, not a {type(value).__name__}: "
            f"{before}images, labels = map(torch.cat, zip(*loader))"
        )
    if isinstance(value, torch.Tensor):
        return value
    # What NumPy makes of numbers by default.
    tensor = torch.as_tensor(value)
    wider = {torch.float64: torch.float32, torch.int32: torch.int64}
    return tensor.to(wider.get(tensor.dtype, tensor.dtype))


def pair(name: str, value: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """``(images, labels)`` as tensors."""
    if not isinstance(value, (tuple, list)):
        value = (tensor(name, value),)
    if len(value) != 2:
        raise TypeError(f"{name} must be two tensors or arrays, (images, labels)")
    images, labels = value
    return tensor("images", images), tensor("labels", labels)


def whole(name: str, value: Any, least: int, most: int | None = None) -> int:
    """A whole number of ``least..most``, of any type that counts."""
    try:
        number = operator.index(value)
    except TypeError:
        raise ValueError(f"{name} must be a whole number, not {reprlib.repr(value)}") from None
    if number < least or (most is not None and number > most):
        allowed = f"{least} or more" if most is None else f"in {least}..={most}"
        raise ValueError(f"{name} must be {allowed}, not {number}")
    return number


def word(name: str, value: Any, allowed: str) -> str:
    """A word; which ones there are, the compiled half checks."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be {allowed}, as a string, not {reprlib.repr(value)}")
    return value


def classes(name: str, value: Any, n: int) -> list[int]:
    """A class for each of ``n`` images."""
    found = torch.as_tensor(value)
    if found.shape != (n,) or found.is_floating_point() or found.is_complex() or found.dtype == torch.bool:
        raise ValueError(f"{name} must be a rule or whole numbers [{n}], a class for each image, not {reprlib.repr(value)}")
    return found.tolist()


def seed(value: Any) -> int:
    """A seed."""
    return whole("seed", value, 0, SEEDS)


def device(value: Any) -> str:
    """A device that is there, as ``str(torch.device)`` writes it."""
    wanted = torch.device(value)
    if wanted.type != "cuda":
        return str(wanted)
    if torch.version.cuda is None:
        reason = "this torch was built without it"
    elif not torch.cuda.is_available():
        reason = "no GPU was found (does nvidia-smi run?)"
    elif (wanted.index or 0) >= torch.cuda.device_count():
        reason = f"the last GPU is cuda:{torch.cuda.device_count() - 1}"
    else:
        return str(wanted)
    raise ValueError(f"device {wanted} is not available: {reason}; choose `cpu`")


def outside_inference_mode(function: str) -> None:
    """Refuses a mode that no gradient comes out of."""
    if torch.is_inference_mode_enabled():
        raise RuntimeError(f"{function} needs gradients, which torch.inference_mode() turns off for good; call it outside")


def ask(function: Callable[[Any], T], request: Any) -> T:
    """What the compiled half answers. It names a field of a wrong type; here is what was given, and why it is wrong."""
    try:
        return function(request)
    except TypeError as error:
        field = _FIELD.search(str(error))
        if field is None:
            raise
        given = reprlib.repr(getattr(request, field[1], None))
        reason = f"{field[1]} cannot be {given}: {error.__cause__}"
    raise TypeError(reason)
