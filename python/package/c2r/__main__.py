"""``python -m c2r doctor``: whether everything is in place."""

import argparse
import platform
import sys

import torch

import c2r


def doctor() -> int:
    """Prints what is installed, and attacks a model of one line; returns 0 if that worked."""
    print(f"c2r      {c2r.__version__} in {c2r.__path__[0]}")
    print(f"python   {platform.python_version()} in {sys.executable}")
    print(f"torch    {torch.__version__} in {torch.__path__[0]}")
    print(f"threads  {torch.get_num_threads()}")
    devices = ["cpu"]
    if torch.cuda.is_available():
        devices += [f"cuda:{index}" for index in range(torch.cuda.device_count())]
        print(f"cuda     {torch.version.cuda}, " + ", ".join(map(torch.cuda.get_device_name, devices[1:])))
    elif torch.version.cuda is None:
        print("cuda     not in this torch: models are attacked on the CPU")
    else:
        print(
            f"cuda     {torch.version.cuda}, but no GPU was found (does nvidia-smi run?): models are attacked on the CPU"
        )
    failed = False
    for device in devices:
        # Dark or bright: one image far from the boundary, one near it.
        images = torch.tensor([0.1, 0.48], device=device).view(2, 1, 1, 1).expand(2, 1, 4, 4).contiguous()
        try:
            result = c2r.attack(
                lambda x: torch.stack([0.5 - x.mean((1, 2, 3)), x.mean((1, 2, 3)) - 0.5], 1),
                images,
                torch.zeros(2, dtype=torch.int64),
                "pgd",
                eps="8/255",
                self_check=False,
                progress=False,
            )
            right = (result.clean_accuracy, result.robust_accuracy) == (1.0, 0.5)
            verdict = "works" if right else f"is wrong: robust accuracy {result.robust_accuracy}, expected 0.5"
        except Exception as error:
            right, verdict = False, f"fails: {error}"
        failed |= not right
        print(f"attack   on {device} {verdict}")
    return int(failed)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m c2r", description=c2r.__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("doctor", help="say what is installed, and attack a model of one line")
    parser.parse_args()
    return doctor()


if __name__ == "__main__":
    sys.exit(main())
