"""The class ``AutoAttack`` of the package autoattack (Croce & Hein), run by c2r.

>>> adversary = c2r.autoattack.AutoAttack(model, norm="Linf", eps=8 / 255, version="standard")
>>> adversarial = adversary.run_standard_evaluation(images, labels, bs=250)

RobustBench imports the package autoattack, which PyPI does not have. :func:`install` makes it import this module instead:

>>> c2r.autoattack.install()
>>> import robustbench
>>> robustbench.benchmark(model, dataset="cifar10", threat_model="Linf", eps=8 / 255)

What differs:

* The ready suites have the parameters that their authors fix. With ``version="custom"`` every attack of
  ``attacks_to_run`` has the parameters of the standard suite. Setting one through ``adversary.apgd`` and the like is an
  ``AttributeError``; :func:`c2r.attack` takes every option.
* Without ``seed``, the seed is 0 and not the clock.
* ``state_path`` is a ``NotImplementedError``: the command ``c2r attack --output`` resumes.
* The checks of autoattack come as :class:`c2r.Doubtful` warnings.
* An ``eps`` that reaches every image (1 or more in Linf) is a ``ValueError``: that would most often be 8 where 8/255 is meant.
"""

import sys
import types
from collections.abc import Sequence
from typing import Any

import torch

from c2r._attack import Result
from c2r._attack import attack as _attack

__all__ = ["AutoAttack", "install"]

_SUITES = {
    "standard": ["apgd-ce", "apgd-t", "fab-t", "square"],
    "plus": ["apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"],
    "rand": ["apgd-ce", "apgd-dlr"],
}
_KNOWN = ["apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"]
_PARTS = ("apgd", "fab", "square", "apgd_targeted")


def install() -> None:
    """Makes ``import autoattack`` import this module, whether or not the package autoattack is installed.

    Call it before the first import of what uses autoattack. Where that was imported before, set its name instead:
    ``robustbench.eval.AutoAttack = c2r.autoattack.AutoAttack``.
    """
    state = types.ModuleType("autoattack.state", "Of autoattack's states, RobustBench imports this class by name.")
    state.EvaluationState = EvaluationState  # type: ignore[attr-defined]
    sys.modules["autoattack"] = sys.modules[__name__]
    sys.modules["autoattack.state"] = state


class EvaluationState:
    """The saved state of autoattack, which c2r does not have: the command ``c2r attack --output`` resumes."""

    @classmethod
    def from_disk(cls, path: Any) -> "EvaluationState":
        """Always an error."""
        raise NotImplementedError(f"c2r keeps no state of AutoAttack and cannot read {path}: leave state_path out")


class AutoAttack:
    """AutoAttack (Croce & Hein 2020, arXiv:2003.01690).

    Args:
        model: A callable from images in [0, 1] to logits.
        norm: ``Linf``, ``L2`` or ``L1``.
        eps: The radius in pixel units.
        seed: Seed of all noise; None is 0.
        verbose: Print the accuracy after each attack.
        attacks_to_run: With ``version="custom"``: any of ``apgd-ce apgd-dlr fab square apgd-t fab-t``.
        version: ``standard``, ``plus``, ``rand`` or ``custom``.
        is_tf_model: Not there.
        device: Where to compute; by default where the model is.
        log_path: A file that the lines of ``verbose`` are appended to.
    """

    def __init__(
        self,
        model: Any,
        norm: str = "Linf",
        eps: float = 0.3,
        seed: int | None = None,
        verbose: bool = True,
        attacks_to_run: Sequence[str] = (),
        version: str = "standard",
        is_tf_model: bool = False,
        device: str | torch.device | None = None,
        log_path: str | None = None,
    ) -> None:
        if norm not in ("Linf", "L2", "L1"):
            raise ValueError(f"norm must be Linf, L2 or L1, not {norm}")
        if version not in (*_SUITES, "custom"):
            raise ValueError(f"version must be standard, plus, rand or custom, not {version}")
        if is_tf_model:
            raise NotImplementedError("c2r attacks PyTorch models only")
        if version != "custom" and attacks_to_run:
            raise ValueError("attacks_to_run will be overridden unless you use version='custom'")
        self.model = model
        self.norm = norm
        self.epsilon = eps
        self.seed = seed
        self.verbose = verbose
        self.attacks_to_run: list[str] = list(_SUITES.get(version, attacks_to_run))
        self.version = version
        self.device = device
        self.log_path = log_path
        #: The :class:`c2r.Result` of the last evaluation.
        self.result: Result[torch.Tensor] | None = None

    def __getattr__(self, name: str) -> Any:
        if name in _PARTS:
            raise AttributeError(
                f"c2r's AutoAttack has no `{name}` to change: c2r.attack takes the options of every attack"
            )
        raise AttributeError(
            f"{type(self).__name__} has no attribute `{name}`: c2r.attack has what this class leaves out"
        )

    def _run(self, names: Sequence[str], images: torch.Tensor, labels: torch.Tensor, bs: int) -> Result[torch.Tensor]:
        unknown = [name for name in names if name not in _KNOWN]
        if unknown or not names:
            raise ValueError(f"attacks_to_run must be of {', '.join(_KNOWN)}, not {', '.join(unknown) or 'empty'}")
        ready = list(names) == _SUITES.get(self.version)
        self.result = _attack(
            self.model,
            images,
            labels,
            f"autoattack-{self.version}" if ready else names,
            set=self._options(names, ready),
            norm=self.norm.lower(),
            eps=self.epsilon,
            seed=0 if self.seed is None else self.seed,
            batch_size=bs,
            device=self.device,
            progress=self.verbose,
        )
        self._log(self.result)
        return self.result

    def _options(self, names: Sequence[str], is_suite: bool) -> dict[str, Any]:
        """What the suite of this version changes in its attacks, for those that are run without the suite."""
        # A perturbation inside the ball is enough.
        options: dict[str, Any] = {f"{name}.minimize": False for name in names if name.startswith("fab")}
        if is_suite:
            return options
        changes: list[tuple[str, str, int]] = []
        if self.version == "rand":
            changes = [("apgd-ce", "samples", 20), ("apgd-dlr", "samples", 20)]
        elif self.version == "plus":
            changes = [("apgd-ce", "restarts", 5), ("apgd-dlr", "restarts", 5), ("fab", "restarts", 5)]
        elif self.norm == "L1":
            changes = [("apgd-ce", "restarts", 5), ("apgd-t", "targets", 5)]
        options.update({f"{name}.{option}": value for name, option, value in changes if name in names})
        return options

    def _log(self, result: Result[torch.Tensor]) -> None:
        lines = [f"initial accuracy: {result.clean_accuracy:.2%}"]
        report = result.report["evaluation"]["report"]
        for entry in report["attacks"]:
            for stage in entry["stages"]:
                left = stage["survivors"] / report["n"]
                lines.append(f"robust accuracy after {stage['attack'].upper()}: {left:.2%} ({stage['seconds']:.1f} s)")
        lines.append(f"robust accuracy: {result.robust_accuracy:.2%}")
        if self.verbose:
            print("\n".join(lines))
        if self.log_path is not None:
            with open(self.log_path, "a", encoding="utf-8") as log:
                log.write("\n".join(lines) + "\n")

    def run_standard_evaluation(
        self,
        x_orig: torch.Tensor,
        y_orig: torch.Tensor,
        bs: int = 250,
        return_labels: bool = False,
        state_path: Any = None,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Adversarial images, and with ``return_labels`` what the model takes them for.

        Args:
            x_orig: float32 ``[N, C, H, W]`` in [0, 1].
            y_orig: int64 ``[N]``.
            bs: Images per pass.
        """
        if state_path is not None:
            raise NotImplementedError("c2r keeps no state here: the command `c2r attack --output` resumes")
        return self._adversarial(self._run(self.attacks_to_run, x_orig, y_orig, bs), x_orig, y_orig, return_labels)

    @staticmethod
    def _adversarial(
        result: Result[torch.Tensor], images: torch.Tensor, labels: torch.Tensor, return_labels: bool
    ) -> Any:
        """The images that were broken; the others clean, as autoattack returns them."""
        robust = result.robust.to(images.device).view(-1, 1, 1, 1)
        assert isinstance(result.adversarial, torch.Tensor), "a suite has one set of images"
        if images.dtype == torch.uint8:
            images = images.float() / 255
        adversarial = torch.where(robust, images, result.adversarial)
        if not return_labels:
            return adversarial
        samples = result.report["evaluation"]["report"]["attacks"][-1]["samples"]
        predictions = torch.tensor(
            [sample["prediction"] for sample in samples], dtype=labels.dtype, device=labels.device
        )
        return adversarial, torch.where(result.robust.to(labels.device), labels, predictions)

    def run_standard_evaluation_individual(
        self, x_orig: torch.Tensor, y_orig: torch.Tensor, bs: int = 250, return_labels: bool = False
    ) -> dict[str, Any]:
        """:meth:`run_standard_evaluation` of each attack by itself, by its name."""
        found: dict[str, Any] = {}
        for name in self.attacks_to_run:
            result = self._run([name], x_orig, y_orig, bs)
            found[name] = self._adversarial(result, x_orig, y_orig, return_labels)
        return found

    def clean_accuracy(self, x_orig: torch.Tensor, y_orig: torch.Tensor, bs: int = 250) -> float:
        """Share of the images that the model classifies as their label."""
        return _attack(
            self.model,
            x_orig,
            y_orig,
            "clean",
            eps=self.epsilon,
            norm=self.norm.lower(),
            batch_size=bs,
            device=self.device,
            self_check=False,
            progress=False,
        ).clean_accuracy
