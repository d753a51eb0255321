"""`c2r.attack`: right numbers, and what happens to models that fail."""

import os
import signal
import subprocess
import sys
import threading
import time
import warnings

import pytest
import torch
from torch import nn

import c2r
from conftest import CLASSES


def brightness(images: torch.Tensor) -> torch.Tensor:
    """Class 0 below a mean of 0.5: the Linf margin of an image is its mean's distance from 0.5."""
    mean = images.mean((1, 2, 3))
    return torch.stack([0.5 - mean, mean - 0.5], 1)


def grey(*values: float) -> torch.Tensor:
    return torch.tensor(values).view(-1, 1, 1, 1).expand(-1, 1, 4, 4).contiguous()


def quiet(*arguments, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", c2r.Doubtful)
        return c2r.attack(*arguments, progress=False, **options)


@pytest.mark.parametrize("attack", ["fgsm", "pgd", "apgd-ce", "square", "deepfool", "autoattack-standard"])
def test_margins_known_in_closed_form(attack):
    if attack == "autoattack-standard":
        # Its targeted DLR loss needs four classes.
        model = lambda x: torch.cat([brightness(x), torch.full((len(x), 2), -9.0)], 1)  # noqa: E731
    else:
        model = brightness
    images = grey(0.1, 0.46, 0.48, 0.52, 0.9, 0.2)
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    result = quiet(model, images, labels, attack, eps="8/255")
    # 8/255 is 0.031: the two images that are 0.02 away break, the last one is wrong to begin with.
    assert result.robust.tolist() == [True, True, False, False, True, False]
    assert (result.clean_accuracy, result.robust_accuracy) == (5 / 6, 3 / 6)
    assert (result.adversarial - images).abs().max() <= 8 / 255 + 1e-6
    assert model(result.adversarial).argmax(1).eq(labels).tolist() == result.robust.tolist()
    assert torch.equal(result.adversarial[5], images[5])


def test_pgd_without_a_random_start_is_pgd(net, images, labels):
    """By hand, in PyTorch."""
    eps, step = 0.04, 0.015
    x = images.clone()
    for _ in range(4):
        x.requires_grad_(True)
        loss = nn.functional.cross_entropy(net(x), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, x)
        x = (x.detach() + step * gradient.sign()).clamp(images - eps, images + eps).clamp(0, 1)
    result = quiet(net, images, labels, "pgd", eps=eps, steps=4, step_size=step, random_start=False)
    with torch.no_grad():
        right = net(images).argmax(1) == labels
        expected = net(x).argmax(1) == labels
    assert torch.equal(result.robust, right & expected)
    assert 0 < result.robust_accuracy < result.clean_accuracy == 22 / 24
    assert torch.allclose(result.adversarial[right], x[right], atol=1e-6)


def test_the_model_is_as_it_was(net, images, labels):
    net.train()
    net.layers[1].eval()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    seen = []
    hook = net.register_forward_pre_hook(lambda *_: seen.append(any(m.training for m in net.modules())))
    result = quiet(net, images, labels, "pgd", eps=0.02)
    hook.remove()
    assert not any(seen), "it is attacked in evaluation mode"
    assert not result.flags, result.flags
    assert net.training and net.layers[5].training and not net.layers[1].training
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in net.parameters())
    assert torch.is_grad_enabled()


def test_one_model_is_attacked_from_two_threads_in_evaluation(net, images, labels):
    """The attack that began first ends first, and leaves the model to the other one as that needs it."""
    net.train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    alone = quiet(net, images, labels, "pgd", eps=0.02)
    found = []

    class Waits(nn.Module):
        """Another module around the same one."""

        def __init__(self):
            super().__init__()
            self.net, self.called, self.may_go_on = net, threading.Event(), threading.Event()

        def forward(self, x):
            self.called.set()
            assert self.may_go_on.wait(60)
            return self.net(x)

    models = [Waits(), Waits()]
    threads = [
        threading.Thread(target=lambda model=model: found.append(quiet(model, images, labels, "pgd", eps=0.02)))
        for model in models
    ]
    for model, thread in zip(models, threads):
        thread.start()
        assert model.called.wait(60)
    for model, thread in zip(models, threads):
        model.may_go_on.set()
        thread.join()
    assert all(torch.equal(result.adversarial, alone.adversarial) for result in found) and len(found) == 2
    assert net.training and net.layers[1].training and net.layers[5].training
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


def test_a_module_of_torch_export_is_attacked(net, images, labels):
    batches = {0: torch.export.Dim("n", min=1, max=512)}
    exported = torch.export.export(net, (images,), dynamic_shapes=(batches,)).module()
    was = exported.training
    result = quiet(exported, images, labels, "pgd", eps=0.02)
    assert exported.training == was
    assert result.robust_accuracy == quiet(net, images, labels, "pgd", eps=0.02).robust_accuracy
    inner = nn.Sequential(exported, nn.Dropout(0.5))
    assert quiet(inner, images, labels, "pgd", eps=0.02).robust_accuracy == result.robust_accuracy
    assert inner.training and inner[1].training


def test_results_do_not_depend_on_batches_workers_and_order_of_calls(net, images, labels):
    runs = [
        quiet(net, images, labels, "pgd", eps=0.03, seed=5, **options)
        for options in ({}, {"batch_size": 5}, {"workers": 2}, {"workers": 3, "batch_size": 7})
    ]
    for other in runs[1:]:
        assert torch.equal(runs[0].robust, other.robust)
        assert torch.allclose(runs[0].adversarial, other.adversarial, atol=1e-5)
    assert not torch.equal(runs[0].adversarial, quiet(net, images, labels, "pgd", eps=0.03, seed=6).adversarial)


def test_mistakes_are_found(net, images, labels):
    train_mode = lambda x: nn.functional.dropout(net(x), 0.5, training=True)  # noqa: E731
    with pytest.warns(c2r.Doubtful, match="randomized-model"):
        c2r.attack(train_mode, images, labels, "fgsm", eps=0.02, progress=False)
    with pytest.warns(c2r.Doubtful, match="probabilities-not-logits"):
        result = c2r.attack(lambda x: net(x).softmax(1), images, labels, "fgsm", eps=0.02, progress=False)
    assert [flag.name for flag in result.flags] == ["probabilities-not-logits"]

    def refused(message, *, kind=ValueError, **changes):
        given = {"model": net, "images": images, "labels": labels, "attack": "pgd", "eps": 0.02, **changes}
        with pytest.raises(kind, match=message):
            quiet(**given)

    refused("outside \\[0, 1\\]: images must be pixels, not normalized", images=images * 4 - 2)
    refused("got Double; in Python, write images.float\\(\\)", images=images.double())
    refused("got Int; in Python, write labels.long\\(\\)", labels=labels.int())
    refused("net.load_state_dict", kind=TypeError, model=net.state_dict())
    refused("must be a callable or the path of a TorchScript file, not NoneType", kind=TypeError, model=None)
    refused("did you mean `pgd`", attack="PGD")
    refused("outside 0..=3: the model has 4 outputs", labels=labels + CLASSES)
    refused('eps 8 reaches every image.*write "8/255"', eps=8)
    refused("`pgdd` is not an attack", attack="pgdd")
    refused("`fgsm` has no option `steps`", attack="fgsm", steps=3)
    refused("norm", norm="l3")
    refused("targets must be next", targets="worst")
    refused("ATTACK.OPTION", set={"steps": 3})
    refused("`fgsm.loss` names an attack that is neither chosen", set={"fgsm.loss": "cw"})
    refused("`pgd` is chosen twice", attack="pgd,pgd")
    refused("batch_size must be 1 or more", batch_size=0)
    refused("must return logits of shape", kind=RuntimeError, model=lambda x: net(x).flatten())
    refused("not finite", kind=RuntimeError, model=lambda x: net(x) * float("nan"))
    refused("no gradient flows", kind=RuntimeError, model=lambda x: net(x).detach(), self_check=False)
    refused("return the logits alone", kind=TypeError, model=lambda x: (net(x), 1))
    refused("names no attack", attack=[])
    refused("names no attack", attack=())
    for wrong in (-1, 2**64):
        refused(r"seed must be in 0\.\.=18446744073709551615", seed=wrong)
    for wrong in (1.5, "1", None):
        refused("seed must be a whole number", seed=wrong)
    refused("batch_size must be a whole number, not 1.5", batch_size=1.5)
    refused("workers must be 1 or more", workers=0)
    refused("norm must be linf, l2 or l1", kind=TypeError, norm=None)
    refused("self_check cannot be 'no'", kind=TypeError, self_check="no")
    refused("eps must be one number, not a tensor of shape \\[1\\]", eps=torch.tensor([0.1]))
    dataset = torch.utils.data.TensorDataset(images, labels)
    refused(r"not a TensorDataset: .* map\(torch.cat, zip\(\*loader\)\)", kind=TypeError, images=dataset)
    loader = torch.utils.data.DataLoader(dataset, batch_size=10)
    refused(r"not a DataLoader: images, labels = map", kind=TypeError, images=loader)
    images_of_loader, labels_of_loader = map(torch.cat, zip(*loader))
    assert torch.equal(images_of_loader, images) and torch.equal(labels_of_loader, labels), "as the error says"
    with torch.inference_mode():
        refused("inference_mode", kind=RuntimeError)


def test_wrong_types_are_named_with_what_is_taken(net, images, labels):
    def error(model=net, images=images, labels=labels, **options):
        with pytest.raises((TypeError, ValueError, RuntimeError)) as raised:
            c2r.attack(model, images, labels, "pgd", eps=0.1, progress=False, **options)
        return str(raised.value)

    assert "norm must be linf, l2 or l1, as a string, not 2" in error(norm=2)
    assert "targets must be a rule or whole numbers [24]" in error(targets=1)
    assert "give a network, such as Net()" in error(model=type(net))
    assert 'lambda x: model(x)["logits"]' in error(model=lambda x: {"logits": net(x)})
    assert "in Python, return logits.float()" in error(model=lambda x: net(x).bfloat16())
    with pytest.raises(TypeError, match="model must be the name of a network"):
        c2r.train((images, labels), model=net)


def test_targets_may_be_classes(net, images, labels):
    chosen = (labels + 1 + torch.arange(len(labels)) % 2) % CLASSES
    options = {"attack": "pgd", "eps": 0.5, "steps": 20, "progress": False, "self_check": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", c2r.Doubtful)
        found = c2r.attack(net, images, labels, targets=chosen, **options)
        by_rule = c2r.attack(net, images, labels, targets="next", **options)
        by_hand = c2r.attack(net, images, labels, targets=(labels + 1) % CLASSES, **options)
    with torch.no_grad():
        right, after = net(images).argmax(1) == labels, net(found.adversarial).argmax(1)
    assert (after == chosen)[right & ~found.robust].all() and (right & ~found.robust).sum() > 3
    assert torch.equal(by_rule.adversarial, by_hand.adversarial)
    with pytest.raises(ValueError, match="that of sample 0 is its label"):
        c2r.attack(net, images, labels, targets=labels, **options)
    with pytest.raises(ValueError, match=r"targets must be a rule or whole numbers \[24\]"):
        c2r.attack(net, images, labels, targets=chosen[1:], **options)


def test_arrays_of_numpys_own_types_are_taken(net, images, labels):
    numpy = pytest.importorskip("numpy")
    options = {"attack": "pgd", "eps": 0.02, "progress": False}
    expected = c2r.attack(net, images, labels, **options)
    found = c2r.attack(net, images.numpy().astype(numpy.float64), labels.numpy().astype(numpy.int32), **options)
    assert torch.equal(found.adversarial, expected.adversarial)


def test_misclassified_images_are_attacked_where_that_is_asked_for(net, images, labels):
    few, all_of = (
        c2r.attack(net, images, labels, "pgd", eps=0.02, misclassified=misclassified, progress=False)
        for misclassified in (False, True)
    )
    with torch.no_grad():
        right = net(images).argmax(1) == labels
    assert torch.equal(few.robust, all_of.robust) and few.robust_accuracy == all_of.robust_accuracy
    assert torch.equal(few.adversarial[right], all_of.adversarial[right])
    assert torch.equal(few.adversarial[~right], images[~right])
    moved = (all_of.adversarial - images)[~right].abs().flatten(1).amax(1)
    assert (moved > 0).all() and moved.max() <= 0.02 + 1e-6


def test_a_device_that_is_not_there_is_one_line(net, images, labels, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for call in (
        lambda: c2r.attack(net, images, labels, "pgd", eps=0.02, device="cuda"),
        lambda: c2r.distill((images, labels), 1, "dm", device="cuda"),
        lambda: c2r.train((images, labels), device=torch.device("cuda:1")),
    ):
        with pytest.raises(ValueError, match=r"^device cuda(:1)? is not available: .*; choose `cpu`$"):
            call()


def test_a_radius_of_zero_is_the_clean_outcome(net, images, labels):
    with torch.no_grad():
        right = net(images).argmax(1) == labels
    for eps in (0, "0/255", 0.0, torch.tensor(0.0)):
        result = quiet(net, images, labels, "pgd,square", eps=eps)
        assert torch.equal(result.robust, right) and torch.equal(result.adversarial, images)
        assert result.clean_accuracy == result.robust_accuracy == 22 / 24 and not result.flags
    assert result.report["threat"]["epsilon"] == "0" and "nothing to attack" in result.report["notes"][0]
    each = quiet(net, images, labels, "paper-six", eps=0, each=True)
    assert len(each.adversarial) == 6 and all(torch.equal(found, images) for found in each.adversarial.values())
    with pytest.raises(ValueError, match="has no option `stepz`"):
        quiet(net, images, labels, "pgd", eps=0, stepz=3)


def test_a_result_is_equal_to_itself(net, images, labels):
    one, other = (quiet(net, images, labels, "fgsm", eps=0.02) for _ in range(2))
    assert one == one and one != other and len({one, other, one}) == 2


def test_options_reach_their_attacks(net, images, labels):
    result = quiet(net, images, labels, "fgsm,pgd", eps=0.02, each=True, set={"pgd.steps": 3, "pgd.step_size": "1/255"})
    assert set(result.adversarial) == {"fgsm", "pgd"}
    configs = [entry["config"] for entry in result.report["attacks"]]
    assert [config["attack"] for config in configs] == ["fgsm", "pgd"]
    assert (configs[1]["steps"], configs[1]["step-size"]) == (3, "1/255")


class Oops(Exception):
    pass


@pytest.mark.parametrize("workers", [1, 2])
def test_exceptions_of_the_model_come_back_as_themselves(net, images, labels, workers):
    raised = []

    def model(x):
        if len(x) < 20 and not raised:
            raised.append(Oops("mine"))
            raise raised[0]
        return net(x)

    with pytest.raises(Oops) as caught:
        quiet(model, images, labels, "pgd", eps=0.02, workers=workers, self_check=False, batch_size=18)
    assert caught.value is raised[0]
    assert caught.traceback[-1].name == "model"


def test_a_trace_gives_what_its_torchscript_gives(net, images, labels):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.trace(net, images[:1])
    options = {"eps": 0.05, "progress": False}
    net.train()
    traced = c2r.attack(net, images, labels, "pgd", trace=True, **options)
    assert net.training and net.layers[1].training
    assert torch.equal(traced.adversarial, c2r.attack(scripted, images, labels, "pgd", **options).adversarial)
    eager = c2r.attack(net, images, labels, "pgd", **options)
    assert traced.clean_accuracy == eager.clean_accuracy and traced.robust.tolist() == eager.robust.tolist()


def test_what_cannot_be_traced_is_refused(net, images, labels):
    class DependsOnTheBatch(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x):
            return self.net(x) if len(x) == 1 else 2 * self.net(x)

    class Closure(nn.Module):
        def forward(self, x):
            return net(x)

    options = {"eps": 0.05, "progress": False, "trace": True}
    with pytest.raises(ValueError, match="other logits or gradients"):
        c2r.attack(DependsOnTheBatch(), images, labels, "fgsm", **options)
    with pytest.raises(ValueError, match="cannot be traced"):
        c2r.attack(Closure(), images, labels, "fgsm", **options)
    with pytest.raises(TypeError, match="torch.nn.Module"):
        c2r.attack(brightness, images, labels, "fgsm", **options)


def test_exceptions_of_a_backward_pass_come_back_as_themselves(net, images, labels):
    error = Oops("backward")

    class Fails(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            raise error

    with pytest.raises(Oops) as caught:
        quiet(lambda x: Fails.apply(net(x)), images, labels, "pgd", eps=0.02, self_check=False)
    assert caught.value is error


@pytest.mark.parametrize("workers", [1, 2])
def test_control_c_stops_within_a_batch(net, images, labels, workers):
    passes = []

    def model(x):
        passes.append(len(x))
        if len(passes) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        if workers > 1:
            time.sleep(0.01)
        return net(x)

    with pytest.raises(KeyboardInterrupt):
        quiet(model, images, labels, "pgd", eps=0.02, steps=1000, workers=workers, self_check=False)
    assert len(passes) < 100, "1000 steps are one batch"


def test_control_c_stops_torchscript(net, images, labels):
    script = torch.jit.trace(net, images[:2])
    threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        quiet(script, images, labels, "pgd", eps=0.02, steps=10_000_000)


def test_other_threads_run_meanwhile(net, images, labels):
    """The GIL is held while the model runs, and not while the attack computes: a thread counts on."""
    counted, stop = [0], threading.Event()

    def count():
        while not stop.is_set():
            counted[0] += 1
            time.sleep(0.0005)

    thread = threading.Thread(target=count)
    thread.start()
    script = torch.jit.trace(net, images[:2])
    before = counted[0]
    quiet(script, images, labels, "pgd", eps=0.02, steps=500)
    stop.set()
    thread.join()
    assert counted[0] > before + 20


def test_progress_is_told(net, images, labels):
    told = []
    c2r.attack(net, images, labels, "pgd", eps=0.02, batch_size=10, progress=lambda *line: told.append(line))
    assert [line[:3] for line in told[:4]] == [("clean", done, 24) for done in (0, 10, 20, 24)]
    assert told[-1][:3] == ("pgd", 22, 22) and "% robust" in told[-1][3]

    def fails(*_):
        raise Oops

    with pytest.raises(Oops):
        c2r.attack(net, images, labels, "pgd", eps=0.02, progress=fails)


def test_targets(net, images, labels):
    result = quiet(net, images, labels, "pgd", eps=0.1, targets="next")
    targets = torch.tensor(result.report["evaluation"]["report"]["targets"])
    assert torch.equal(targets, (labels + 1) % CLASSES)
    with torch.no_grad():
        predicted = net(result.adversarial).argmax(1)
        right = net(images).argmax(1) == labels
    assert torch.equal(result.robust, right & (predicted != targets))
    assert result.robust_accuracy < result.clean_accuracy


def test_a_radius_of_numpy_is_a_number(net, images, labels):
    numpy = pytest.importorskip("numpy")
    result = c2r.attack(net, images, labels, "fgsm", eps=numpy.float64(8 / 255), progress=False)
    assert result.robust_accuracy == c2r.attack(net, images, labels, "fgsm", eps=8 / 255, progress=False).robust_accuracy


def test_a_tensor_of_one_number_is_a_number(net, images, labels):
    options = {"steps": 3, "progress": False, "random_start": False}
    found = c2r.attack(
        net, images, labels, "pgd", eps=torch.tensor(0.5) / 16, step_size=torch.tensor(1 / 64), **options
    )
    expected = c2r.attack(net, images, labels, "pgd", eps=1 / 32, step_size=1 / 64, **options)
    assert torch.equal(found.adversarial, expected.adversarial)


FAULTS = """
import resource, sys, torch, c2r

torch.set_num_threads(1)
large = torch.rand(int(sys.argv[1]))

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        large + 1
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def model(x):
    return x.flatten(1)[:, :2]

faults()
before = faults()
c2r.attack(model, torch.rand(2, 1, 4, 4), torch.zeros(2, dtype=torch.int64), "fgsm", eps=0.1, self_check=False, progress=False)
faults()
print(before, faults())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="page faults of the C library of Linux")
@pytest.mark.parametrize(
    ("numbers", "chosen"),
    [(1 << 20, {}), (16 << 20, {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)})],
)
def test_memory_is_kept_after_an_attack_as_before(numbers, chosen):
    """What the caller computes afterwards gets no new pages for every tensor, and settings of the caller's stay."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-W", "ignore", "-c", FAULTS, str(numbers)]
    found = subprocess.run(command, env={**environment, **chosen}, capture_output=True, text=True, check=True)
    before, after = map(int, found.stdout.split())
    assert after < before + 1000, "20 tensors of 4 MiB are 20,480 pages"


def test_an_error_that_the_check_survives_costs_no_result(images, labels):
    class NoGradient(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.flatten(1)[:, :CLASSES] * 1.0

        @staticmethod
        def backward(ctx, gradient):
            raise RuntimeError("no way back")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = c2r.attack(NoGradient.apply, images, labels, "square", eps=0.1, queries=5, progress=False)
        assert any(flag.name == "no-gradient" for flag in result.flags)

        def watch(*line):
            raise ValueError("of the caller")

        with pytest.raises(ValueError, match="of the caller"):
            c2r.attack(NoGradient.apply, images, labels, "square", eps=0.1, queries=5, progress=watch)

        told = []

        def late(x):
            if told:
                raise TimeoutError("in the first batch")
            return NoGradient.apply(x)

        with pytest.raises(TimeoutError, match="in the first batch"):
            c2r.attack(late, images, labels, "square", eps=0.1, queries=5, progress=lambda *line: told.append(line))
        assert [line[:2] for line in told] == [("clean", 0)], "the first batch comes after the check"
