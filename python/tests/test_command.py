"""`c2r.attack` against the command `c2r attack`: the same libtorch, the same model, the same bytes."""

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import c2r

# Wall clock, and what the two are told about themselves.
TIMES = {"seconds", "clean_seconds", "check_seconds"}
OWN = {"argv", "versions", "notes", "model", "model_sha256", "inputs", "test_sha256"}


def run(command: Path, *words: str) -> subprocess.CompletedProcess:
    """The command on the libtorch of this Python, at its number of threads."""
    libraries = os.path.join(os.path.dirname(torch.__file__), "lib")
    environment = {**os.environ, "LD_LIBRARY_PATH": libraries}
    words = ("--device", "cpu", "--threads", str(torch.get_num_threads()), "--quiet", *words)
    return subprocess.run([command, *words], capture_output=True, text=True, env=environment, check=False)


def compared(value):
    """A report without what differs by right."""
    if isinstance(value, dict):
        return {key: compared(inner) for key, inner in value.items() if key not in TIMES | OWN}
    return [compared(inner) for inner in value] if isinstance(value, list) else value


@pytest.fixture(autouse=True)
def two_threads():
    """Two workers on either side."""
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.fixture
def files(tmp_path, net, images, labels):
    script = tmp_path / "model.pt"
    torch.jit.save(torch.jit.trace(net, images[:2]), str(script))
    inputs = tmp_path / "inputs.safetensors"
    save_file({"images": images, "labels": labels}, inputs)
    return script, inputs


@pytest.mark.filterwarnings("ignore::c2r.Doubtful")
@pytest.mark.parametrize(
    ("words", "options"),
    [
        ("--attack pgd --eps 8/255 --steps 7", {"attack": "pgd", "eps": "8/255", "steps": 7}),
        (
            "--attack autoattack-standard --eps 4/255 --seed 3 --queries 40",
            {"attack": "autoattack-standard", "eps": "4/255", "seed": 3, "queries": 40},
        ),
        ("--attack fgsm,pgd,vmi-fgsm --each --norm l2 --eps 0.3 --set pgd.steps=3", None),
        (
            "--attack fgsm,pgd --each --norm l2 --eps 0.3 --set pgd.steps=3 --targets random",
            {
                "attack": "fgsm,pgd",
                "each": True,
                "norm": "l2",
                "eps": 0.3,
                "set": {"pgd.steps": 3},
                "targets": "random",
            },
        ),
        (
            "--attack cw-linf,square --eps 0.05 --batch-size 7 --set square.queries=30",
            {"attack": ["cw-linf", "square"], "eps": 0.05, "batch_size": 7, "set": {"square.queries": 30}},
        ),
    ],
)
def test_the_same_bytes_and_the_same_report(command, tmp_path, files, images, labels, words, options):
    script, inputs = files
    output, saved = tmp_path / "attack.json", tmp_path / "saved.safetensors"
    given = ["attack", "--model", str(script), "--inputs", str(inputs), *words.split()]
    ran = run(command, *given, "--output", str(output), "--save", str(saved))
    if options is None:
        # VMI-FGSM is for Linf: both refuse it with the same words.
        with pytest.raises(ValueError) as caught:
            c2r.attack(str(script), images, labels, "fgsm,pgd,vmi-fgsm", norm="l2", eps=0.3, each=True, progress=False)
        assert ran.returncode == 2 and str(caught.value) in ran.stderr
        return
    assert ran.returncode == 0, ran.stderr
    theirs = load_file(saved)
    for model in (str(script), torch.jit.load(str(script))):
        result = c2r.attack(model, images, labels, progress=False, **options)
        ours = result.adversarial if isinstance(result.adversarial, dict) else {"": result.adversarial}
        for name, tensor in ours.items():
            assert torch.equal(tensor, theirs[f"images.{name}" if name else "images"]), name
        assert compared(result.report) == compared(json.loads(output.read_text()))


def test_an_eager_model_is_attacked_as_its_trace(files, net, images, labels):
    """Equal up to float rounding: TorchScript runs other kernels."""
    script, _ = files
    for attack in ("pgd", "apgd-ce"):
        eager = c2r.attack(net, images, labels, attack, eps="8/255", progress=False)
        traced = c2r.attack(str(script), images, labels, attack, eps="8/255", progress=False)
        assert torch.equal(eager.robust, traced.robust)
        assert torch.allclose(eager.adversarial, traced.adversarial, atol=1e-4)


def test_a_report_is_one_that_the_command_reads(command, tmp_path, net, images, labels):
    report = tmp_path / "attack.json"
    report.write_text(json.dumps(c2r.attack(net, images, labels, "pgd", eps="8/255", progress=False).report))
    ran = run(command, "inspect", str(report))
    assert ran.returncode == 0 and "pgd" in ran.stdout, ran.stderr


def test_the_same_set_and_the_same_network(command, tmp_path):
    ran = run(
        command,
        "distill",
        "--dataset",
        "digits",
        "--ipc",
        "1",
        "--iterations",
        "3",
        "--seed",
        "7",
        "--config",
        "dm",
        "--run-dir",
        str(tmp_path / "theirs"),
    )
    assert ran.returncode == 0, ran.stderr
    ours = c2r.distill("digits", 1, "dm", iterations=3, seed=7, progress=False)
    theirs = c2r.load_set(tmp_path / "theirs")
    assert torch.equal(ours.images, theirs.images) and torch.equal(ours.labels, theirs.labels)
    assert {**ours.provenance, "versions": {}} == {**theirs.provenance, "versions": {}}
    ran = run(
        command,
        "train",
        "--synthetic",
        str(tmp_path / "theirs"),
        "--protocol",
        "natural",
        "--seed",
        "2",
        "--set",
        "length={steps=4}",
        "--run-dir",
        str(tmp_path / "network"),
    )
    assert ran.returncode == 0, ran.stderr
    state = c2r.train(ours, "natural", seed=2, length={"steps": 4}, progress=False)
    parameters = load_file(tmp_path / "network" / "model.safetensors")
    assert set(parameters) == set(state) - {"mean", "std"}
    assert all(torch.equal(parameters[name], state[name]) for name in parameters)


@pytest.mark.filterwarnings("ignore::c2r.Doubtful")
def test_an_exported_network_elsewhere(command, tmp_path, robustbench, monkeypatch):
    """RobustBench takes it, and the authors' AutoAttack leaves as many images as c2r's."""
    from pyautoattack import AutoAttack

    torch.set_num_threads(1)
    network, exported = tmp_path / "network", tmp_path / "network.pt"
    for words in (
        f"train --dataset digits --set length={{steps=60}} --run-dir {network}",
        f"export {network} --to torchscript {exported}",
    ):
        ran = run(command, *words.split())
        assert ran.returncode == 0, ran.stderr
    model = torch.jit.load(exported).eval()
    real = c2r.distill("digits", 2, "random-real", seed=1, progress=False)
    images, labels = real.images, real.labels
    expected = c2r.attack(model, images, labels, "apgd-ce,apgd-t", eps=0.1, progress=False)
    assert 0.2 < expected.robust_accuracy < 0.9
    theirs = AutoAttack(model, norm="Linf", eps=0.1, version="custom", attacks=["apgd-ce", "apgd-t"], device="cpu", seed=0)
    found, _ = theirs.run_standard_evaluation(images, labels, batch_size=len(images))
    with torch.no_grad():
        robust = (model(found).argmax(1) == labels).float().mean().item()
    assert robust == pytest.approx(expected.robust_accuracy, abs=0.051), "one image of 20"
    few = images[:6], labels[:6]
    monkeypatch.setattr(robustbench.eval, "load_clean_dataset", lambda *_: few)
    # So large that the first attack of the suite breaks every image.
    call = {"n_examples": 6, "dataset": "cifar10", "threat_model": "Linf", "eps": 0.5, "batch_size": 6}
    with torch.no_grad():
        right = (model(few[0]).argmax(1) == few[1]).float().mean().item()
    assert robustbench.benchmark(model, **call) == (pytest.approx(right), 0)
