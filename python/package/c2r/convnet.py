"""The ConvNet of the field of dataset distillation, in plain PyTorch."""

from collections.abc import Mapping, Sequence

import torch
from torch import nn


class ConvNet(nn.Module):
    """Blocks of convolution, instance normalization, ReLU and average pooling, and a linear layer; pixels in [0, 1] in.

    Args:
        channels, classes: Of the images.
        size: Height and width of the images.
        depth, width: Number of blocks and of channels in each: ``ConvNet-D3-W128-IN`` has 3 and 128.
        norm: Whether blocks normalize (``IN`` in the name).
        mean, std: Of each channel.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self,
        channels: int,
        classes: int,
        size: Sequence[int],
        depth: int = 3,
        width: int = 128,
        norm: bool = True,
        mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,),
    ) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))
        layers: list[nn.Module] = []
        for block in range(depth):
            convolution = nn.Conv2d(channels if block == 0 else width, width, 3, padding=1)
            normalization = nn.GroupNorm(width, width) if norm else nn.Identity()
            layers += [convolution, normalization, nn.ReLU(), nn.AvgPool2d(2)]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(width * (size[0] >> depth) * (size[1] >> depth), classes)

    @classmethod
    def of(cls, state: Mapping[str, torch.Tensor], size: int | Sequence[int]) -> "ConvNet":
        """The network of a state dict that :func:`c2r.train` returned, for images of this height and width (or side).

        Raises:
            ValueError: The state dict is that of another network, such as ``ResNet18-IN``, or of images of another size.
        """
        size = (size, size) if isinstance(size, int) else size
        weights = [tensor for name, tensor in state.items() if name.startswith("features.") and tensor.dim() == 4]
        modules = ["classifier", *(f"features.{4 * block}" for block in range(len(weights)))]
        if "features.1.weight" in state:
            modules += [f"features.{4 * block + 1}" for block in range(len(weights))]
        names = {"mean", "std", *(f"{module}.{kind}" for module in modules for kind in ("weight", "bias"))}
        apart = sorted(names.symmetric_difference(state))
        if state and all(name.startswith("module.") for name in state):
            raise ValueError(
                "the names of the state dict begin with `module.`, as DataParallel writes them: "
                'give {name.removeprefix("module."): value for name, value in state.items()}'
            )
        if apart in (["mean"], ["std"], ["mean", "std"]) and names.issuperset(state):
            raise ValueError(
                f"the state dict lacks {' and '.join(f'`{name}`' for name in apart)} of the pixels, float32 [1, C, 1, 1], which "
                "c2r.train returns with it: add what the network normalizes with"
            )
        if len(tuple(size)) != 2:
            raise ValueError(f"size must be (height, width), not {tuple(size)}")
        if not weights or apart or any(weight.shape[2:] != (3, 3) for weight in weights):
            raise ValueError(
                f"the state dict is not that of a ConvNet{f', as `{apart[0]}` shows' if apart else ''}; c2r.ConvNet is no "
                "other network. The command takes the others: write the state dict without `mean` and `std` by torch.save, "
                "then c2r attack --state-dict net.pt --arch ResNet18-IN --normalized MEAN/STD"
            )
        network_size = len(state["classifier.weight"][0]) // weights[-1].shape[0]
        if (size[0] >> len(weights)) * (size[1] >> len(weights)) != network_size:
            raise ValueError(
                f"size {tuple(size)} does not fit: behind {len(weights)} blocks, the network has {network_size} values in each "
                "channel"
            )
        network = cls(
            channels=weights[0].shape[1],
            classes=len(state["classifier.bias"]),
            size=size,
            depth=len(weights),
            width=weights[0].shape[0],
            norm="features.1.weight" in state,
            mean=state["mean"].flatten().tolist(),
            std=state["std"].flatten().tolist(),
        )
        network.load_state_dict(dict(state))
        return network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits ``[N, K]`` of images ``[N, C, H, W]`` in [0, 1]."""
        return self.classifier(self.features((images - self.mean) / self.std).flatten(1))
