"""The names of torchattacks and autoattack."""

import inspect
import warnings

import pytest
import torch
from torch import nn

import c2r

NAMES = [name for name in c2r.torchattacks.__all__]


@pytest.mark.parametrize("name", NAMES)
def test_arguments_are_those_of_torchattacks(name):
    torchattacks = pytest.importorskip("torchattacks")
    theirs = inspect.signature(getattr(torchattacks, name)).parameters
    ours = inspect.signature(getattr(c2r.torchattacks, name)).parameters
    assert [(p.name, p.default) for p in ours.values()] == [(p.name, p.default) for p in theirs.values()]


@pytest.mark.parametrize("name", NAMES)
def test_every_attack_breaks_images_inside_its_ball(net, images, labels, name):
    attack = getattr(c2r.torchattacks, name)(net, **({"n_queries": 50} if name == "Square" else {}))
    if name == "AutoAttack":
        # Every one of these breaks, so none waits for Square's 5,000 queries.
        attack.eps, images, labels = 0.3, images[2:6], labels[2:6]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", c2r.Doubtful)
        adversarial = attack(images, labels)
    assert adversarial.shape == images.shape and 0 <= adversarial.min() and adversarial.max() <= 1
    with torch.no_grad():
        right, left = ((net(x).argmax(1) == labels).float().mean() for x in (images, adversarial))
    assert left < right, repr(attack)
    if name == "PGDL2":
        assert (adversarial - images).flatten(1).norm(dim=1).max() <= 1 + 1e-5
    elif name not in ("CW", "DeepFool"):
        assert (adversarial - images).abs().max() <= attack.eps + 1e-6


@pytest.mark.parametrize(
    ("name", "arguments", "options"),
    [
        (
            "PGD",
            {"eps": 0.05, "alpha": 0.01, "steps": 4, "random_start": False},
            {"attack": "pgd", "eps": 0.05, "step_size": 0.01, "steps": 4, "random_start": False},
        ),
        (
            "VMIFGSM",
            {"N": 3, "beta": 1.0, "decay": 0.5},
            {"attack": "vmi-fgsm", "eps": 8 / 255, "step_size": 2 / 255, "neighbours": 3, "beta": 1.0, "decay": 0.5},
        ),
        ("BIM", {"steps": 0, "eps": 4 / 255}, {"attack": "bim", "eps": 4 / 255, "step_size": 2 / 255, "steps": 5}),
        ("FFGSM", {"eps": 0.05}, {"attack": "pgd", "eps": 0.05, "step_size": 10 / 255, "steps": 1}),
        (
            "APGD",
            {"norm": "L2", "eps": 0.5, "loss": "dlr", "n_restarts": 2, "eot_iter": 2, "rho": 0.5, "seed": 3},
            {
                "attack": "apgd-dlr",
                "norm": "l2",
                "eps": 0.5,
                "steps": 10,
                "restarts": 2,
                "samples": 2,
                "rho": 0.5,
                "seed": 3,
            },
        ),
        ("APGDT", {"n_classes": 3}, {"attack": "apgd-t", "eps": 8 / 255, "steps": 10, "set": {"apgd-t.targets": 2}}),
        ("EOTPGD", {"eot_iter": 3}, {"attack": "eot-pgd", "eps": 8 / 255, "step_size": 2 / 255, "samples": 3}),
        (
            "FAB",
            {"multi_targeted": True, "n_classes": 3, "steps": 5},
            {"attack": "fab-t", "eps": 8 / 255, "steps": 5, "set": {"fab-t.targets": 2}},
        ),
    ],
)
def test_arguments_have_their_meaning(net, images, labels, name, arguments, options):
    ours = getattr(c2r.torchattacks, name)(net, **arguments)(images, labels)
    as_training = not name.startswith(("APGD", "FAB"))
    direct = c2r.attack(net, images, labels, **options, misclassified=as_training, self_check=False, progress=False)
    resisted = direct.robust.view(-1, 1, 1, 1) if not as_training else torch.tensor(False)
    assert torch.allclose(ours, torch.where(resisted, images, direct.adversarial), atol=1e-6)


@pytest.mark.parametrize("name", ["FGSM", "BIM", "PGD", "MIFGSM", "NIFGSM", "DeepFool", "CW"])
def test_deterministic_attacks_are_those_of_torchattacks(net, images, labels, name):
    """Both end at the same images, misclassified ones included, up to a few pixels whose gradient is rounding."""
    torchattacks = pytest.importorskip("torchattacks")
    options = {"random_start": False} if name == "PGD" else {}
    ours = getattr(c2r.torchattacks, name)(net, **options)(images, labels)
    theirs = getattr(torchattacks, name)(net, **options)(images, labels)
    with torch.no_grad():
        right = net(images).argmax(1) == labels
    assert 0 < right.sum() < len(right)
    for part in (right, ~right):
        apart = (ours - theirs)[part].abs().flatten(1).amax(1)
        assert (apart < 1e-3).float().mean() > 0.85, apart


@pytest.mark.parametrize("name", ["FGSM", "BIM", "PGD", "PGDL2", "FFGSM", "VMIFGSM", "TPGD", "EOTPGD", "Jitter"])
def test_adversarial_training_attacks_every_image(net, images, labels, name):
    wrong = (labels + 1) % 4
    moved = (getattr(c2r.torchattacks, name)(net)(inputs=images, labels=wrong) - images).abs().flatten(1).amax(1)
    assert (moved > 0).all() and moved.max() < 1


@pytest.mark.parametrize("name", ["APGD", "APGDT", "FAB", "Square", "AutoAttack"])
def test_what_fails_comes_back_clean_as_in_torchattacks(net, images, labels, name):
    options = {"APGDT": {"n_classes": 4}, "FAB": {"steps": 2}, "Square": {"n_queries": 20}}.get(name, {})
    few = images[:4], labels[:4]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", c2r.Doubtful)
        found = getattr(c2r.torchattacks, name)(net, eps=1 / 255, **options)(*few)
    with torch.no_grad():
        before, after = (net(x).argmax(1) == few[1] for x in (few[0], found))
    assert torch.equal(found[after | ~before], few[0][after | ~before])


def test_doubts_are_told_once_at_the_users_line(images, labels):
    """A model that guesses."""
    images, labels = images.repeat(3, 1, 1, 1), labels.repeat(3)
    guesses = nn.Sequential(nn.Flatten(), nn.Linear(images[0].numel(), 4))
    adversary = c2r.autoattack.AutoAttack(guesses, eps=0.01, version="custom", attacks_to_run=["apgd-ce"], verbose=False)
    attack = c2r.torchattacks.FGSM(guesses)
    calls = [
        lambda: attack(images, labels),
        lambda: attack.forward(images, labels),
        lambda: adversary.run_standard_evaluation(images, labels),
        lambda: adversary.run_standard_evaluation_individual(images, labels),
        lambda: c2r.attack(guesses, images, labels, "fgsm", eps=0.01, self_check=False, progress=False),
    ]
    with torch.no_grad():
        # Right on one image in eight.
        labels = torch.where(torch.arange(len(labels)) % 8 == 0, guesses(images).argmax(1), (guesses(images).argmax(1) + 1) % 4)
    for call in calls:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("default")
            for _ in range(3):
                call()
        assert len(told) == 1 and told[0].filename == __file__, [(str(each.message), each.filename) for each in told]


def test_normalized_images(net, images, labels):
    mean, std = torch.full((1, 3, 1, 1), 0.5), torch.full((1, 3, 1, 1), 0.25)
    inner = net.layers
    attack = c2r.torchattacks.PGD(inner, random_start=False)
    attack.set_normalization_used([0.5] * 3, [0.25] * 3)
    found = attack((images - mean) / std, labels) * std + mean
    assert torch.allclose(found, c2r.torchattacks.PGD(net, random_start=False)(images, labels), atol=1e-5)


def test_targets_and_what_is_not_there(net, images, labels):
    attack = c2r.torchattacks.PGD(net, eps=0.2, steps=20)
    attack.set_mode_targeted_least_likely()
    with torch.no_grad():
        clean = net(images)
    target = clean.scatter(1, labels[:, None], float("inf")).argmin(1)
    right = clean.argmax(1) == labels
    with torch.no_grad():
        assert (net(attack(images, labels)).argmax(1) == target)[right].float().mean() > 0.9
    torchattacks = pytest.importorskip("torchattacks")
    for change, given in [
        (lambda attack: attack.set_mode_targeted_by_label(), target),
        (lambda attack: attack.set_mode_targeted_by_function(lambda x, y: (y + 1) % 4), labels),
    ]:
        both = [package.PGD(net, eps=0.05, steps=5, random_start=False) for package in (c2r.torchattacks, torchattacks)]
        for each in both:
            change(each)
        ours, theirs = (each(images, given) for each in both)
        assert ((ours - theirs).abs().flatten(1).amax(1) < 1e-3).float().mean() > 0.85
        assert both[0].get_mode() == both[1].get_mode()
    with pytest.raises(ValueError, match="not supported"):
        c2r.torchattacks.TPGD(net).set_mode_targeted_random()
    with pytest.raises(NotImplementedError, match="evaluation mode"):
        attack.set_model_training_mode(model_training=True)


def test_every_name_of_torchattacks_is_there_or_listed(net):
    torchattacks = pytest.importorskip("torchattacks")
    listed = c2r.torchattacks.__doc__

    def missing(theirs, ours):
        return [name for name in theirs if name[0] != "_" and not hasattr(ours, name)]

    theirs, ours = torchattacks.PGD(net), c2r.torchattacks.PGD(net)
    for owner, names in (
        (c2r.torchattacks, missing(torchattacks.__all__, c2r.torchattacks)),
        (ours, missing(dir(theirs), ours)),
    ):
        assert names
        for name in names:
            assert f"``{name}``" in listed, name
            with pytest.raises(AttributeError, match=f"has no `{name}`, which torchattacks has: "):
                getattr(owner, name)
    with pytest.raises(AttributeError, match="PGD has no `stepz`$"):
        _ = ours.stepz


def test_the_ends_of_a_curve(net, images, labels):
    assert torch.equal(c2r.torchattacks.PGD(net, eps=0)(images, labels), images)
    adversary = c2r.autoattack.AutoAttack(net, eps=0, verbose=False)
    assert torch.equal(adversary.run_standard_evaluation(images, labels), images)
    assert adversary.result.robust_accuracy == adversary.result.clean_accuracy
    with pytest.raises(ValueError, match="reaches every image"):
        c2r.torchattacks.PGD(net, eps=1.0)(images, labels)
    with pytest.raises(ValueError, match="step-size"):
        c2r.torchattacks.PGD(net, alpha=0)(images, labels)
    with pytest.raises(ValueError, match="write 2/255 if you mean"):
        c2r.torchattacks.PGD(net, alpha=2)(images, labels)


@pytest.fixture
def adversary(net):
    return c2r.autoattack.AutoAttack(
        net, norm="Linf", eps=4 / 255, version="custom", attacks_to_run=["apgd-ce", "fab-t"], verbose=False
    )


def test_autoattack(net, images, labels, adversary):
    found, predicted = adversary.run_standard_evaluation(images, labels, bs=10, return_labels=True)
    result = adversary.result
    with torch.no_grad():
        assert torch.equal(net(found).argmax(1), predicted)
        assert adversary.clean_accuracy(images, labels) == result.clean_accuracy
    assert torch.equal(predicted == labels, result.robust)
    assert 0 < result.robust_accuracy < result.clean_accuracy
    # What was not broken comes back clean.
    assert torch.equal(found[result.robust], images[result.robust])
    each = adversary.run_standard_evaluation_individual(images, labels)
    assert list(each) == ["apgd-ce", "fab-t"]
    standard = c2r.autoattack.AutoAttack(net, eps=0.1, verbose=False)
    assert standard.attacks_to_run == ["apgd-ce", "apgd-t", "fab-t", "square"]
    few = images[3:6], labels[3:6]
    direct = c2r.attack(net, *few, "autoattack-standard", eps=0.1, batch_size=250, progress=False)
    standard.run_standard_evaluation(*few)
    assert torch.equal(standard.result.adversarial, direct.adversarial)


def test_single_attacks_have_the_options_of_their_suite(net, images, labels):
    few = images[3:6], labels[3:6]
    for version, norm, name, option, value in [
        ("rand", "Linf", "apgd-ce", "samples", 20),
        ("plus", "Linf", "fab", "restarts", 5),
        ("standard", "L1", "apgd-t", "targets", 5),
        ("standard", "Linf", "apgd-ce", "restarts", 1),
    ]:
        adversary = c2r.autoattack.AutoAttack(net, norm=norm, eps=0.1, version=version, verbose=False)
        adversary.attacks_to_run = [name]
        adversary.run_standard_evaluation_individual(*few)
        assert adversary.result.report["evaluation"]["report"]["attacks"][0]["config"][option] == value, version


def test_tpgd_leaves_a_model_in_training_as_it_is(images):
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(images[0].numel()), nn.Linear(images[0].numel(), 3)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    c2r.torchattacks.TPGD(model, steps=2)(images)
    assert model.training and all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_autoattack_prints_and_logs(net, images, labels, tmp_path, capsys):
    log = tmp_path / "log.txt"
    adversary = c2r.autoattack.AutoAttack(net, eps=0.1, version="rand", log_path=str(log))
    adversary.run_standard_evaluation(images[:4], labels[:4])
    lines = log.read_text().splitlines()
    assert lines == capsys.readouterr().out.splitlines()
    assert lines[0] == "initial accuracy: 75.00%" and lines[1].startswith("robust accuracy after APGD-CE:")


def test_autoattack_says_what_it_lacks(net, images, labels, adversary):
    with pytest.raises(AttributeError, match="c2r.attack takes the options"):
        adversary.apgd.n_restarts = 3
    with pytest.raises(NotImplementedError, match="resumes"):
        adversary.run_standard_evaluation(images, labels, state_path="x")
    with pytest.raises(ValueError, match="custom"):
        c2r.autoattack.AutoAttack(net, attacks_to_run=["fab"])


def test_robustbench_runs_with_it(net, images, labels, robustbench, monkeypatch):
    few = images[2:8], labels[2:8]
    monkeypatch.setattr(robustbench.eval, "load_clean_dataset", lambda *_: few)
    model = nn.Sequential(net).eval()
    call = {"n_examples": 6, "dataset": "cifar10", "threat_model": "Linf", "eps": 0.3, "batch_size": 4}
    accuracy, robust = robustbench.benchmark(model, **call)
    assert accuracy == pytest.approx(5 / 6) and robust == 0
    with pytest.raises(NotImplementedError, match="resumes"):
        robustbench.benchmark(model, **call, aa_state_path="state.json")
