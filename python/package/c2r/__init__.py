"""Adversarial attacks, robust dataset distillation and honest evaluation, on any PyTorch model.

>>> import c2r
>>> result = c2r.attack(model, images, labels, "autoattack-standard", norm="linf", eps="8/255")
>>> result.robust_accuracy, result.adversarial.shape

* :func:`attack` runs the attacks of the command ``c2r attack`` on any callable from pixels to logits.
* :mod:`c2r.torchattacks` and :mod:`c2r.autoattack` take the calls that scripts make to those two packages.
* :func:`load_set`, :func:`save_set`, :func:`distill` and :func:`train` are for distilled sets.

``python -m c2r doctor`` says whether everything is in place.
"""

import torch as _torch

# The torch whose libtorch the extension is linked to; another one has other symbols.
_TORCH = "2.11"
if not _torch.__version__.startswith(_TORCH + "."):
    raise ImportError(
        f"c2r was built for torch {_TORCH}, and torch {_torch.__version__} is installed in {_torch.__path__[0]}; "
        f"run: python -m pip install 'torch=={_TORCH}.*'"
    )

from c2r import autoattack, torchattacks  # noqa: E402
from c2r._attack import Doubtful, Flag, Result, attack  # noqa: E402
from c2r._core import __version__  # noqa: E402
from c2r._sets import DistilledSet, distill, load_set, save_set, train  # noqa: E402
from c2r.convnet import ConvNet  # noqa: E402

__all__ = [
    "ConvNet",
    "DistilledSet",
    "Doubtful",
    "Flag",
    "Result",
    "__version__",
    "attack",
    "autoattack",
    "distill",
    "load_set",
    "save_set",
    "torchattacks",
    "train",
]
