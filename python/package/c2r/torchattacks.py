"""The classes of torchattacks 3.5.1 that people have in their scripts, run by c2r.

>>> attack = c2r.torchattacks.PGD(model, eps=8 / 255, alpha=2 / 255, steps=10)
>>> adversarial = attack(images, labels)

Arguments have the same names, order, defaults and meaning, and images are pixels in [0, 1] unless
:meth:`Attack.set_normalization_used` says otherwise. What differs:

* Noise is drawn from ``seed`` (0), by an image's position in the batch and not from torch's generator: two calls on the
  same batch give the same images. ``attack.seed`` can be set; for adversarial training, set another one for each step.
* Every image is judged in the ball of radius ``eps`` and in [0, 1], so none lies outside by rounding.
* Losses are summed over the batch, not averaged, so an image's result does not depend on its batch.
* Of :meth:`Attack.set_mode_targeted_least_likely` there is ``kth_min=1`` alone.
* :class:`AutoAttack` runs its attacks with its authors' 100 steps; in torchattacks APGD and FAB have 10.
* What c2r doubts about a result comes as a :class:`c2r.Doubtful` warning. ``attack(inputs, labels)`` has no further arguments.
* ``alpha=0`` is a ``ValueError``, and so is an ``eps`` that reaches every image (1 or more in Linf): that would most often be
  8 where 8/255 is meant. With ``eps=0`` the images come back as they are.
* These are not there, and the error says what to use instead: the methods and attributes ``save``, ``load``, ``device``,
  ``set_device``, ``model_name``, ``normalization_used``, ``targeted``, ``set_model``, ``get_logits``, ``normalize``,
  ``inverse_normalize``, ``to_type``, ``get_output_with_eval_nograd``, ``get_target_label``, ``get_least_likely_label`` and
  ``get_random_target_label``; the classes
  ``MultiAttack``, ``LGV``, ``VANILA``, ``GN``, ``RFGSM``, ``UPGD``, ``DIFGSM``, ``TIFGSM``, ``SINIFGSM``, ``PGDRS``,
  ``PGDRSL2``, ``SPSA``, ``PIFGSM``, ``PIFGSMPP``, ``EADL1``, ``EADEN``, ``JSMA``, ``SparseFool``, ``OnePixel`` and ``Pixle``.
Which images are attacked is as in torchattacks: FGSM, PGD and what else takes steps of fixed length attack all of them, also
those that are misclassified without an attack, so they serve adversarial training. APGD, FAB, Square and AutoAttack leave
misclassified images as they are, and return the clean image where they fail.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from c2r._attack import Unbounded, _device, _evaluating
from c2r._attack import attack as _attack

__all__ = [
    "APGD",
    "APGDT",
    "BIM",
    "CW",
    "EOTPGD",
    "FAB",
    "FFGSM",
    "FGSM",
    "MIFGSM",
    "NIFGSM",
    "PGD",
    "PGDL2",
    "TPGD",
    "VMIFGSM",
    "VNIFGSM",
    "AutoAttack",
    "DeepFool",
    "Jitter",
    "Square",
]

Images = torch.Tensor

# What torchattacks has besides, and what to use instead.
_OTHER_CLASSES = {
    "MultiAttack": 'name several attacks at once: c2r.attack(model, images, labels, "pgd,fab", eps=...)',
    "VANILA": "the images as they are need no attack",
    "GN": 'c2r.attack has "noise", the worst of several uniform perturbations',
    "RFGSM": 'c2r.attack has "r-fgsm", one random and one gradient step; PGD with random_start=True is closest',
    "UPGD": "PGD, MIFGSM and EOTPGD are its parts",
    **dict.fromkeys(
        ("DIFGSM", "TIFGSM", "SINIFGSM", "PIFGSM", "PIFGSMPP", "LGV"), "of its kind there are MIFGSM, NIFGSM, VMIFGSM and VNIFGSM"
    ),
    **dict.fromkeys(("PGDRS", "PGDRSL2"), "for randomized models there is EOTPGD"),
    "SPSA": "without gradients there is Square",
    **dict.fromkeys(("EADL1", "EADEN"), 'in L1 there are FAB, Square and APGD with norm="L1"'),
    **dict.fromkeys(("JSMA", "SparseFool", "OnePixel", "Pixle"), "c2r has the norms Linf, L2 and L1, not L0"),
}
_LABELS = (
    "get_output_with_eval_nograd",
    "get_target_label",
    "get_least_likely_label",
    "get_random_target_label",
)
_OTHER_ATTRIBUTES = {
    "save": "torch.save what it returns; c2r.attack has accuracies and a report, too",
    "load": "torch.load what you saved",
    "device": "it computes where the model's parameters are",
    "set_device": "it computes where the model's parameters are; c2r.attack takes a device",
    "model_name": "take type(attack.model).__name__",
    "normalization_used": "set_normalization_used sets it; images in [0, 1] need none",
    "targeted": 'take attack.get_mode() != "default"',
    "set_model": "set attack.model",
    "get_logits": "call attack.model",
    **dict.fromkeys(("normalize", "inverse_normalize", "to_type"), "convert the images yourself"),
    **dict.fromkeys(_LABELS, "call attack.model"),
}


if not TYPE_CHECKING:
    # A checker of types would take every name for one of ours.
    def __getattr__(name: str) -> Any:
        raise _missing("the module c2r.torchattacks", name, _OTHER_CLASSES)


def _missing(owner: str, name: str, others: dict[str, str]) -> AttributeError:
    """The error for a name that is not there; ``others`` has those of torchattacks, and what to use instead."""
    instead = f", which torchattacks has: {others[name]}" if name in others else ""
    return AttributeError(f"{owner} has no `{name}`{instead}")


class Attack:
    """An attack on one model; calling it with images and labels returns adversarial images."""

    _attack = ""
    _norm = "linf"
    # Whether images that are misclassified without an attack are attacked, and whether the clean image comes back where the
    # attack failed.
    _attacks_all = True
    _keeps_success_only = False
    supported_mode: list[str] = ["default", "targeted"]

    def __init__(self, model: Callable[[Images], torch.Tensor], eps: float | None) -> None:
        self.attack = type(self).__name__
        self.model = model
        #: The radius in pixel units; None for attacks that look for the smallest perturbation.
        self.eps = eps
        #: Seed of the noise.
        self.seed = 0
        self.attack_mode = "default"
        self._targets: str | Callable[[Images, torch.Tensor], torch.Tensor] | None = None
        self._mean: torch.Tensor | None = None
        self._std: torch.Tensor | None = None

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            raise _missing(type(self).__name__, name, _OTHER_ATTRIBUTES)

    def _options(self) -> dict[str, Any]:
        """The options of c2r's attack for this object's."""
        raise NotImplementedError

    def __call__(self, inputs: Images, labels: torch.Tensor) -> Images:
        """Adversarial images, float32 of the shape of ``inputs`` and on their device.

        Args:
            inputs: float32 ``[N, C, H, W]``, pixels in [0, 1], or normalized as ``set_normalization_used`` was told.
            labels: int64 ``[N]``.
        """
        model, pixels, images = self.model, inputs, inputs
        if self._mean is not None and self._std is not None:
            device = _device(self.model, images)
            mean, std = self._mean.to(device), self._std.to(device)
            pixels = (images.to(device) * std + mean).clamp(0, 1)
            model = _Normalized(self.model, mean, std)
        eps = self.eps
        if eps is None:
            # Smaller than the distance of any two images, larger than what an attack of smallest perturbations needs.
            eps = Unbounded(0.999 * float(pixels[0].numel()) ** (0.5 if self._norm == "l2" else 0))
        targets = self._targets
        if callable(targets):
            # A label must differ from its target: it is what the model predicts, or else some other class.
            targets = torch.as_tensor(targets(images, labels)).to(images.device)
            with torch.no_grad(), _evaluating(model):
                logits = model(pixels.to(_device(model, pixels)))
            labels = logits.argmax(1).to(targets.device)
            labels = torch.where(labels == targets, (targets + 1) % logits.shape[1], labels)
        result = _attack(
            model,
            pixels,
            labels,
            self._attack,
            norm=self._norm,
            eps=eps,
            seed=self.seed,
            targets=targets,
            batch_size=len(pixels),
            self_check=False,
            misclassified=self._attacks_all,
            progress=False,
            **self._options(),
        )
        adversarial = result.adversarial
        assert isinstance(adversarial, torch.Tensor), "one attack has one set of images"
        if self._keeps_success_only:
            clean = (pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels).detach()
            adversarial = torch.where(result.robust.to(clean.device).view(-1, 1, 1, 1), clean, adversarial)
        if self._mean is None:
            return adversarial
        return ((adversarial.to(mean.device) - mean) / std).to(images.device)

    forward = __call__

    def set_normalization_used(self, mean: Any, std: Any) -> None:
        """Images that are given and returned are normalized with these values per channel, as the model takes them."""
        self._mean, self._std = (torch.as_tensor(values).float().view(1, -1, 1, 1) for values in (mean, std))

    def set_mode_default(self) -> None:
        """Any wrong class is aimed at."""
        self.attack_mode, self._targets = "default", None

    def _set_targets(self, mode: str, rule: str | Callable[[Images, torch.Tensor], torch.Tensor]) -> None:
        if "targeted" not in self.supported_mode:
            raise ValueError("Targeted mode is not supported.")
        self.attack_mode, self._targets = mode, rule

    def set_mode_targeted_random(self, quiet: bool = False) -> None:
        """A random class other than the label is aimed at."""
        self._set_targets("targeted(random)", "random")

    def set_mode_targeted_least_likely(self, kth_min: int = 1, quiet: bool = False) -> None:
        """The class with the smallest logit is aimed at."""
        if kth_min != 1:
            raise NotImplementedError("c2r aims at the least likely class only: kth_min must be 1")
        self._set_targets("targeted(least-likely)", "least-likely")

    def set_mode_targeted_by_label(self, quiet: bool = False) -> None:
        """``labels`` are the classes that are aimed at."""
        self._set_targets("targeted(label)", lambda images, labels: labels)

    def set_mode_targeted_by_function(self, target_map_function: Any, quiet: bool = False) -> None:
        """``target_map_function(images, labels)`` returns the classes that are aimed at."""
        self._set_targets("targeted(custom)", target_map_function)

    def get_mode(self) -> str:
        """``default``, ``targeted(random)``, ``targeted(least-likely)``, ``targeted(label)`` or ``targeted(custom)``."""
        return self.attack_mode

    def set_model_training_mode(
        self, model_training: bool = False, batchnorm_training: bool = False, dropout_training: bool = False
    ) -> None:
        """Attacks run in evaluation mode, which is the default of torchattacks; anything else is an error."""
        if model_training or batchnorm_training or dropout_training:
            raise NotImplementedError("c2r attacks a model in evaluation mode only")

    def __repr__(self) -> str:
        hidden = {"attack", "model", "attack_mode"}
        shown = {name: value for name, value in vars(self).items() if name not in hidden and name[0] != "_"}
        return f"{self.attack}({', '.join(f'{name}={value}' for name, value in shown.items())})"


class _Normalized(torch.nn.Module):
    def __init__(self, model: Any, mean: torch.Tensor, std: torch.Tensor) -> None:
        super().__init__()
        self.model, self.mean, self.std = model, mean, std

    def forward(self, images: Images) -> torch.Tensor:
        return self.model((images - self.mean) / self.std)


class FGSM(Attack):
    """FGSM, Linf: Goodfellow et al. 2015, arXiv:1412.6572."""

    _attack = "fgsm"

    def __init__(self, model: Any, eps: float = 8 / 255) -> None:
        super().__init__(model, eps)

    def _options(self) -> dict[str, Any]:
        return {}


class _Steps(Attack):
    """Attacks with steps of fixed length."""

    def __init__(self, model: Any, eps: float, alpha: float, steps: int) -> None:
        super().__init__(model, eps)
        self.alpha = alpha
        self.steps = steps

    def _options(self) -> dict[str, Any]:
        return {"step_size": self.alpha, "steps": self.steps}


class BIM(_Steps):
    """BIM, Linf: Kurakin et al. 2017, arXiv:1607.02533; ``steps=0`` is their number of steps for this ``eps``."""

    _attack = "bim"

    def __init__(self, model: Any, eps: float = 8 / 255, alpha: float = 2 / 255, steps: int = 10) -> None:
        super().__init__(model, eps, alpha, steps or int(min(eps * 255 + 4, 1.25 * eps * 255)))


class PGD(_Steps):
    """PGD, Linf: Madry et al. 2018, arXiv:1706.06083."""

    _attack = "pgd"

    def __init__(
        self, model: Any, eps: float = 8 / 255, alpha: float = 2 / 255, steps: int = 10, random_start: bool = True
    ) -> None:
        super().__init__(model, eps, alpha, steps)
        self.random_start = random_start

    def _options(self) -> dict[str, Any]:
        return {**super()._options(), "random_start": self.random_start}


class FFGSM(PGD):
    """FGSM from a random point of the ball, Linf: Wong et al. 2020, arXiv:2001.03994."""

    def __init__(self, model: Any, eps: float = 8 / 255, alpha: float = 10 / 255) -> None:
        super().__init__(model, eps, alpha, 1)


class PGDL2(PGD):
    """PGD, L2. ``eps_for_division`` is taken and not used: c2r divides by no length that is zero."""

    _norm = "l2"

    def __init__(
        self,
        model: Any,
        eps: float = 1.0,
        alpha: float = 0.2,
        steps: int = 10,
        random_start: bool = True,
        eps_for_division: float = 1e-10,
    ) -> None:
        super().__init__(model, eps, alpha, steps, random_start)


class _Momentum(_Steps):
    def __init__(
        self, model: Any, eps: float = 8 / 255, alpha: float = 2 / 255, steps: int = 10, decay: float = 1.0
    ) -> None:
        super().__init__(model, eps, alpha, steps)
        self.decay = decay

    def _options(self) -> dict[str, Any]:
        return {**super()._options(), "decay": float(self.decay)}


class MIFGSM(_Momentum):
    """MI-FGSM, Linf: Dong et al. 2018, arXiv:1710.06081."""

    _attack = "mi-fgsm"


class NIFGSM(_Momentum):
    """NI-FGSM, Linf: Lin et al. 2020, arXiv:1908.06281."""

    _attack = "ni-fgsm"


class VMIFGSM(_Momentum):
    """VMI-FGSM, Linf: Wang & He 2021, arXiv:2103.15571."""

    _attack = "vmi-fgsm"

    def __init__(
        self,
        model: Any,
        eps: float = 8 / 255,
        alpha: float = 2 / 255,
        steps: int = 10,
        decay: float = 1.0,
        N: int = 5,
        beta: float = 3 / 2,
    ) -> None:
        super().__init__(model, eps, alpha, steps, decay)
        self.N = N
        self.beta = beta

    def _options(self) -> dict[str, Any]:
        return {**super()._options(), "neighbours": self.N, "beta": float(self.beta)}


class VNIFGSM(VMIFGSM):
    """VNI-FGSM, Linf: Wang & He 2021, arXiv:2103.15571."""

    _attack = "vni-fgsm"


class TPGD(_Steps):
    """TPGD, Linf: Zhang et al. 2019, arXiv:1901.08573. An inner attack of training, weak as an evaluation.

    torchattacks takes no labels here; c2r needs them to judge, and takes the model's own predictions where there are none.
    """

    _attack = "tpgd"
    supported_mode = ["default"]

    def __init__(self, model: Any, eps: float = 8 / 255, alpha: float = 2 / 255, steps: int = 10) -> None:
        super().__init__(model, eps, alpha, steps)

    def __call__(self, inputs: Images, labels: torch.Tensor | None = None) -> Images:
        if labels is None:
            with torch.no_grad(), _evaluating(self.model):
                labels = self.model(inputs.to(_device(self.model, inputs))).argmax(1).to(inputs.device)
        return super().__call__(inputs, labels)

    forward = __call__


class EOTPGD(PGD):
    """EOT-PGD, Linf: Liu et al. 2019, arXiv:1810.01279."""

    _attack = "eot-pgd"

    def __init__(
        self,
        model: Any,
        eps: float = 8 / 255,
        alpha: float = 2 / 255,
        steps: int = 10,
        eot_iter: int = 2,
        random_start: bool = True,
    ) -> None:
        super().__init__(model, eps, alpha, steps, random_start)
        self.eot_iter = eot_iter

    def _options(self) -> dict[str, Any]:
        return {**super()._options(), "samples": self.eot_iter}


class Jitter(PGD):
    """Jitter, Linf: Schwinn et al. 2021, arXiv:2105.10304."""

    _attack = "jitter"

    def __init__(
        self,
        model: Any,
        eps: float = 8 / 255,
        alpha: float = 2 / 255,
        steps: int = 10,
        scale: float = 10,
        std: float = 0.1,
        random_start: bool = True,
    ) -> None:
        super().__init__(model, eps, alpha, steps, random_start)
        self.scale = scale
        self.std = std

    def _options(self) -> dict[str, Any]:
        return {**super()._options(), "scale": float(self.scale), "std": float(self.std)}


class DeepFool(Attack):
    """DeepFool, smallest L2 perturbation: Moosavi-Dezfooli et al. 2016, arXiv:1511.04599."""

    _attack = "deepfool"
    _norm = "l2"
    _attacks_all = False
    supported_mode = ["default"]

    def __init__(self, model: Any, steps: int = 50, overshoot: float = 0.02) -> None:
        super().__init__(model, None)
        self.steps = steps
        self.overshoot = overshoot

    def _options(self) -> dict[str, Any]:
        return {"steps": self.steps, "overshoot": float(self.overshoot), "overshoot_each_step": True}


class CW(Attack):
    """CW, smallest L2 perturbation: Carlini & Wagner 2017, arXiv:1608.04644."""

    _attack = "cw-l2"
    _norm = "l2"
    _attacks_all = False

    def __init__(self, model: Any, c: float = 1, kappa: float = 0, steps: int = 50, lr: float = 0.01) -> None:
        super().__init__(model, None)
        self.c = c
        self.kappa = kappa
        self.steps = steps
        self.lr = lr

    def _options(self) -> dict[str, Any]:
        return {
            "c": float(self.c),
            "kappa": float(self.kappa),
            "steps": self.steps,
            "lr": float(self.lr),
            "clipped_margin": True,
        }


def _norm_of(norm: str) -> str:
    if norm not in ("Linf", "L2", "L1"):
        raise ValueError(f"norm must be Linf, L2 or L1, not {norm}")
    return norm.lower()


class APGD(Attack):
    """APGD: Croce & Hein 2020, arXiv:2003.01690; ``loss`` is ``ce`` or ``dlr``."""

    _attacks_all = False
    _keeps_success_only = True
    supported_mode = ["default"]

    def __init__(
        self,
        model: Any,
        norm: str = "Linf",
        eps: float = 8 / 255,
        steps: int = 10,
        n_restarts: int = 1,
        seed: int = 0,
        loss: str = "ce",
        eot_iter: int = 1,
        rho: float = 0.75,
        verbose: bool = False,
    ) -> None:
        super().__init__(model, eps)
        if loss not in ("ce", "dlr"):
            raise ValueError(f"loss must be ce or dlr, not {loss}")
        self._attack = f"apgd-{loss}"
        self._norm = _norm_of(norm)
        self.norm = norm
        self.steps = steps
        self.n_restarts = n_restarts
        self.seed = seed
        self.loss = loss
        self.eot_iter = eot_iter
        self.rho = rho

    def _options(self) -> dict[str, Any]:
        return {"steps": self.steps, "restarts": self.n_restarts, "rho": float(self.rho), "samples": self.eot_iter}


class APGDT(APGD):
    """APGD on the targeted DLR loss: Croce & Hein 2020, arXiv:2003.01690; towards ``n_classes - 1`` classes."""

    def __init__(
        self,
        model: Any,
        norm: str = "Linf",
        eps: float = 8 / 255,
        steps: int = 10,
        n_restarts: int = 1,
        seed: int = 0,
        eot_iter: int = 1,
        rho: float = 0.75,
        verbose: bool = False,
        n_classes: int = 10,
    ) -> None:
        super().__init__(model, norm, eps, steps, n_restarts, seed, "dlr", eot_iter, rho)
        self._attack = "apgd-t"
        self.n_classes = n_classes

    def _options(self) -> dict[str, Any]:
        # Not an option of all: c2r.attack has another `targets`.
        return {**super()._options(), "set": {"apgd-t.targets": self.n_classes - 1}}


class FAB(Attack):
    """FAB: Croce & Hein 2020, arXiv:1907.02044; ``n_classes`` counts with ``multi_targeted`` only."""

    _attack = "fab"
    _attacks_all = False
    _keeps_success_only = True

    def __init__(
        self,
        model: Any,
        norm: str = "Linf",
        eps: float | None = 8 / 255,
        steps: int = 10,
        n_restarts: int = 1,
        alpha_max: float = 0.1,
        eta: float = 1.05,
        beta: float = 0.9,
        verbose: bool = False,
        seed: int = 0,
        multi_targeted: bool = False,
        n_classes: int = 10,
    ) -> None:
        super().__init__(model, {"Linf": 0.3, "L2": 1.0, "L1": 5.0}.get(norm) if eps is None else eps)
        self._norm = _norm_of(norm)
        self.norm = norm
        self.steps = steps
        self.n_restarts = n_restarts
        self.alpha_max = alpha_max
        self.eta = eta
        self.beta = beta
        self.seed = seed
        self.multi_targeted = multi_targeted
        self.n_classes = n_classes
        if multi_targeted:
            self._attack = "fab-t"

    def _options(self) -> dict[str, Any]:
        return {
            "steps": self.steps,
            "restarts": self.n_restarts,
            "alpha_max": float(self.alpha_max),
            "eta": float(self.eta),
            "beta": float(self.beta),
            # Not an option of all: c2r.attack has another `targets`.
            "set": {"fab-t.targets": self.n_classes - 1} if self.multi_targeted else None,
        }


class Square(Attack):
    """Square: Andriushchenko et al. 2020, arXiv:1912.00049. The margin loss only."""

    _attack = "square"
    _attacks_all = False
    _keeps_success_only = True

    def __init__(
        self,
        model: Any,
        norm: str = "Linf",
        eps: float = 8 / 255,
        n_queries: int = 5000,
        n_restarts: int = 1,
        p_init: float = 0.8,
        loss: str = "margin",
        resc_schedule: bool = True,
        seed: int = 0,
        verbose: bool = False,
    ) -> None:
        super().__init__(model, eps)
        if loss != "margin":
            raise NotImplementedError(f"c2r's square has the margin loss only, not {loss}")
        self._norm = _norm_of(norm)
        self.norm = norm
        self.n_queries = n_queries
        self.n_restarts = n_restarts
        self.p_init = p_init
        self.resc_schedule = resc_schedule
        self.seed = seed

    def _options(self) -> dict[str, Any]:
        return {
            "queries": self.n_queries,
            "restarts": self.n_restarts,
            "p_init": float(self.p_init),
            "rescale_schedule": self.resc_schedule,
        }


class AutoAttack(Attack):
    """AutoAttack: Croce & Hein 2020, arXiv:2003.01690. The model says how many classes there are, not ``n_classes``."""

    _attacks_all = False
    _keeps_success_only = True
    supported_mode = ["default"]

    def __init__(
        self,
        model: Any,
        norm: str = "Linf",
        eps: float = 8 / 255,
        version: str = "standard",
        n_classes: int = 10,
        seed: int | None = None,
        verbose: bool = False,
    ) -> None:
        super().__init__(model, eps)
        if version not in ("standard", "plus", "rand"):
            raise ValueError("Not valid version. ['standard', 'plus', 'rand']")
        self._norm = _norm_of(norm)
        self._attack = f"autoattack-{version}"
        self.norm = norm
        self.version = version
        self.n_classes = n_classes
        self.seed = 0 if seed is None else seed

    def _options(self) -> dict[str, Any]:
        return {}
