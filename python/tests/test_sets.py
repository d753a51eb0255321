"""Sets, distillation and training in memory."""

import json
from pathlib import Path

import pytest
import torch

import c2r


def blobs(n: int = 12) -> tuple:
    """Two classes of grey images, dark and bright."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % 2
    images = 0.2 + 0.6 * labels.view(-1, 1, 1, 1) + 0.1 * torch.rand(n, 1, 8, 8, generator=generator)
    return (images * 255).round().byte(), labels


@pytest.mark.parametrize("name", ["set.safetensors", "set.npz", "folder"])
def test_a_set_is_read_as_it_was_written(tmp_path, name):
    images = torch.arange(4 * 3 * 4 * 4).view(4, 3, 4, 4) % 256 / 255
    labels = torch.tensor([0, 0, 1, 1])
    soft = torch.tensor([[0.75, 0.25]] * 2 + [[0.5, 0.5]] * 2)
    c2r.save_set(
        tmp_path / name, images, labels, soft, dataset="mine", method="by hand", mean=[0.5] * 3, std=[0.25] * 3
    )
    read = c2r.load_set(tmp_path / name)
    assert torch.equal(read.images, images) and torch.equal(read.labels, labels) and torch.equal(read.soft_labels, soft)
    about = read.provenance
    assert (about["dataset"], about["method"], about["classes"], about["images_per_class"]) == ("mine", "by hand", 2, 2)
    assert about["mean"] == [0.5] * 3
    c2r.save_set(tmp_path / "again.npz", read)
    assert torch.equal(c2r.load_set(tmp_path / "again.npz").images, images)
    batches = list(torch.utils.data.DataLoader(read, batch_size=3))
    assert [len(x) for x, _ in batches] == [3, 1] and torch.equal(batches[0][1], soft[:3])


def test_what_is_not_a_set_is_refused(tmp_path):
    with pytest.raises(ValueError, match="3 images are not 2 classes of 1"):
        c2r.save_set(tmp_path / "x.npz", torch.rand(3, 1, 4, 4), torch.tensor([0, 1, 1]))
    with pytest.raises(ValueError, match="absent.npz"):
        c2r.load_set(tmp_path / "absent.npz")


def test_arrays_and_bytes_make_a_set(tmp_path):
    numpy = pytest.importorskip("numpy")
    images, labels = numpy.arange(4 * 3 * 4 * 4, dtype="uint8").reshape(4, 3, 4, 4), numpy.array([0, 0, 1, 1])
    c2r.save_set(tmp_path / "set.npz", images, labels)
    assert torch.equal(c2r.load_set(tmp_path / "set.npz").images, torch.from_numpy(images) / 255)
    for wrong in ((images[0], labels), (images, labels[:3]), (images[:0], labels[:0])):
        with pytest.raises(ValueError, match=r"images must be \[M, C, H, W\] and labels \[M\], not \["):
            c2r.save_set(tmp_path / "wrong.npz", *wrong)
    with pytest.raises(ValueError, match="seed must be a whole number"):
        c2r.save_set(tmp_path / "wrong.npz", images, labels, seed="1")


@pytest.mark.parametrize(("name", "advice"), [("a.pt", "torch.save"), ("a.PTH", "torch.save"), ("a.npy", ".npz holds")])
def test_extensions_of_other_formats_are_refused(tmp_path, name, advice):
    images, labels = blobs(2)
    with pytest.raises(ValueError, match=f"(?i)does not write {Path(name).suffix}: end .*{name}.*{advice}"):
        c2r.save_set(tmp_path / name, images, labels)
    assert not list(tmp_path.iterdir())


def test_a_changed_set_is_refused(tmp_path):
    options = {"model": "ConvNet-D1-W8-IN", "length": {"steps": 2}, "progress": False}
    for profile in ("random-real", "random-real-mosaic"):
        found = c2r.distill(blobs(16), 2, profile, progress=False)
        c2r.train(found, **options)
        images, labels = found.images.clone(), found.labels.clone()
        for change in (
            lambda: setattr(found, "images", images.flip(0)),  # noqa: B023
            lambda: found.images.mul_(0.5),  # noqa: B023
            lambda: setattr(found, "images", images[:-1]),  # noqa: B023
            lambda: found.labels.sub_(1).abs_(),  # noqa: B023
        ):
            change()
            with pytest.raises(ValueError, match="of this set are not what it stores.* c2r.save_set"):
                c2r.train(found, **options)
            with pytest.raises(ValueError, match="of this set are not what it stores"):
                c2r.save_set(tmp_path / "changed.npz", found)
            found.images, found.labels = images.clone(), labels.clone()
        c2r.save_set(tmp_path / profile, found, quantize=True)
    # As the error and the page say.
    c2r.save_set(tmp_path / "changed.safetensors", images.flip(3), labels, dataset="blobs", method="flipped")
    changed = c2r.load_set(tmp_path / "changed.safetensors")
    assert torch.equal(changed.images, images.flip(3)) and c2r.train(changed, **options)


def test_a_changed_set_of_mosaics_keeps_its_images_per_class(tmp_path):
    found = c2r.distill(blobs(16), 2, "random-real-mosaic", progress=False)
    assert (found.formation, len(found.stored), len(found)) == (2, 4, 16) and "2 classes of 2 mosaics of 2x2" in repr(found)
    flipped = found.stored.flip(3), found.stored_labels
    c2r.save_set(tmp_path / "flipped.npz", *flipped, formation=found.formation, method="flipped")
    read = c2r.load_set(tmp_path / "flipped.npz")
    assert (read.formation, read.provenance["images_per_class"], len(read)) == (2, 2, 16)
    # In each mosaic, left and right have changed places.
    assert sorted(read.images.flip(3).sum((1, 2, 3)).tolist()) == pytest.approx(sorted(found.images.sum((1, 2, 3)).tolist()))


def test_a_state_dict_that_does_not_fit_says_what_to_do():
    state = c2r.train(blobs(16), model="ConvNet-D1-W8-IN", length={"steps": 1}, progress=False)
    assert torch.equal(c2r.ConvNet.of(state, 8).mean, state["mean"])
    parallel = {f"module.{name}": value for name, value in state.items()}
    bare = {name: value for name, value in state.items() if name not in ("mean", "std")}
    for given, size, message in [
        (parallel, (8, 8), "removeprefix"),
        (bare, (8, 8), "lacks `mean` and `std`"),
        (state, (16, 16), "does not fit: behind 1 blocks, the network has 16 values"),
        (state, (1, 8, 8), "size must be"),
    ]:
        with pytest.raises(ValueError, match=message):
            c2r.ConvNet.of(given, size)


SMALL_DM = {"model": "ConvNet-D1-W8-IN", "iterations": 2, "matching.real-per-class": 4}


def test_an_unfinished_distillation_is_said_to_be_one(tmp_path):
    def stop(stage, done, total, text):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        c2r.distill(blobs(16), 1, "dm", run_dir=tmp_path / "run", progress=stop, **SMALL_DM)
    with pytest.raises(ValueError, match="not finished: the call or the command that began it goes on"):
        c2r.load_set(tmp_path / "run")


def test_the_radius_of_distillation_is_a_key_of_its_own():
    found = c2r.distill(blobs(16), 1, "dm", eps="3/255", progress=False, **SMALL_DM)
    assert found.provenance["config"]["threat"]["epsilon"] == "3/255"


def test_errors_are_exceptions(monkeypatch):
    """None is a PanicException, which `except Exception` does not catch."""
    with torch.inference_mode():
        with pytest.raises(RuntimeError, match="c2r.distill needs gradients"):
            c2r.distill(blobs(), 1, "dm", progress=False)
        with pytest.raises(RuntimeError, match="c2r.train needs gradients"):
            c2r.train(blobs(), progress=False)
        # Behind the check, c2r panics.
        monkeypatch.setattr(c2r._sets._arguments, "outside_inference_mode", lambda _: None)
        small = {"model": "ConvNet-D1-W8-IN", "progress": False}
        with pytest.raises(RuntimeError, match="the distillation failed: ") as caught:
            c2r.distill(blobs(), 1, "dm", iterations=1, **{"matching.real_per_class": 3}, **small)
        assert "frame #" not in str(caught.value)
        with pytest.raises(RuntimeError, match="the training failed: "):
            c2r.train(blobs(), length={"steps": 1}, **small)


def test_networks_that_the_package_has_no_module_for_are_named():
    images, labels = blobs(4)
    images = images.repeat(1, 1, 4, 4)
    for model in ("ResNet18-IN", "VGG11-IN", "AlexNet-NONE"):
        state = c2r.train((images, labels), model=model, length={"steps": 1}, progress=False)
        with pytest.raises(ValueError, match="not that of a ConvNet, as `.*` shows; .* c2r attack --state-dict"):
            c2r.ConvNet.of(state, (32, 32))


def test_images_in_memory_are_distilled_and_trained_on():
    images, labels = blobs()
    told = []
    found = c2r.distill((images, labels), 1, "random-real", name="blobs", progress=False)
    assert found.images.shape == (2, 1, 8, 8) and found.labels.tolist() == [0, 1]
    assert all(any(torch.equal(image, real / 255) for real in images) for image in found.images)
    assert found.provenance["dataset"] == "blobs" and found.provenance["method"] == "random-real"
    as_floats = c2r.distill((images / 255, labels), 1, "random-real", name="blobs", progress=False)
    assert torch.equal(as_floats.images, found.images)
    state = c2r.train(found, seed=1, model="ConvNet-D1-W8-IN", length={"steps": 30}, progress=lambda *x: told.append(x))
    assert [line[1] for line in told] == list(range(1, 31)) and told[-1][2] == 30
    network = c2r.ConvNet.of(state, (8, 8))
    assert network(images / 255).argmax(1).eq(labels).float().mean() > 0.9
    real = c2r.train((images, labels), model="ConvNet-D1-W8-IN", length={"steps": 2}, progress=False)
    assert set(real) == set(state)


def test_the_convnet_is_the_one_that_was_trained():
    """The state's last logits by hand: attack it through the command's own network and through ours."""
    images, labels = blobs()
    state = c2r.train((images, labels), model="ConvNet-D2-W8-IN", length={"steps": 3}, progress=False)
    network = c2r.ConvNet.of(state, (8, 8))
    x = (images / 255 - state["mean"]) / state["std"]
    for block in (0, 4):
        x = torch.nn.functional.conv2d(x, state[f"features.{block}.weight"], state[f"features.{block}.bias"], padding=1)
        x = torch.nn.functional.instance_norm(
            x, weight=state[f"features.{block + 1}.weight"], bias=state[f"features.{block + 1}.bias"]
        )
        x = torch.nn.functional.avg_pool2d(x.relu(), 2)
    logits = x.flatten(1) @ state["classifier.weight"].T + state["classifier.bias"]
    assert torch.allclose(network(images / 255), logits, atol=1e-5)


def test_a_run_folder_is_resumed_and_guarded(tmp_path):
    folder, images_and_labels = tmp_path / "run", blobs()
    options = {"iterations": 6, "seed": 3, "model": "ConvNet-D1-W8-IN", "matching.real_per_class": 3}

    def stop(_, done, *__):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        c2r.distill(images_and_labels, 1, "dm", run_dir=folder, progress=stop, **options)
    assert (folder / "state.safetensors").is_file() and not (folder / "synthetic.safetensors").exists()
    told = []
    resumed = c2r.distill(images_and_labels, 1, "dm", run_dir=folder, progress=lambda *x: told.append(x[1]), **options)
    assert told == [4, 5, 6]
    whole = c2r.distill(images_and_labels, 1, "dm", progress=False, **options)
    assert torch.equal(resumed.images, whole.images), "as one that was never stopped"
    assert json.loads((folder / "run.json").read_text())["summary"]["iterations"] == 6
    again = c2r.distill(images_and_labels, 1, "dm", run_dir=folder, progress=stop, **options)
    assert torch.equal(again.images, whole.images), "a finished one is read"
    with pytest.raises(ValueError, match="force=True"):
        c2r.distill(images_and_labels, 1, "dm", run_dir=folder, progress=False, **{**options, "seed": 4})


def test_a_run_folder_is_that_of_the_command(tmp_path):
    """Another float format is another run, and what the command draws is discarded, too."""
    options = {"iterations": 1, "model": "ConvNet-D1-W8-IN", "matching.real_per_class": 3, "progress": False}
    c2r.distill(blobs(), 1, "dm", run_dir=tmp_path, **options)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ValueError, match='precision is null there and "bf16" here'):
        c2r.distill(blobs(), 1, "dm", run_dir=tmp_path, **options)
    (tmp_path / "pictures").mkdir()
    for drawn in ("pictures/000000.png", "synthetic.png", "curves.svg"):
        (tmp_path / drawn).write_text("old")
    c2r.distill(blobs(), 1, "dm", run_dir=tmp_path, force=True, **options)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {".lock", "log.jsonl", "run.json", "synthetic.safetensors"}


def test_wrong_keys_are_named():
    with pytest.raises(ValueError, match="iteratoins.*did you mean `iterations`"):
        c2r.distill(blobs(), 1, "dm", iteratoins=3, progress=False)
    with pytest.raises(ValueError, match="outside 0..=0"):
        c2r.distill(blobs(), 1, "dm", classes=1, progress=False)
    with pytest.raises(ValueError, match="natual"):
        c2r.train(blobs(), "natual", progress=False)
    for wrong in ("a", None, -1, float("nan")):
        with pytest.raises(ValueError, match="checkpoint_seconds must be a number, 0 or more"):
            c2r.distill(blobs(), 1, "dm", checkpoint_seconds=wrong, progress=False)
    for classes, message in ((-1, "1 or more"), (1.5, "a whole number")):
        with pytest.raises(ValueError, match=f"classes must be {message}"):
            c2r.distill(blobs(), 1, "dm", classes=classes, progress=False)
        with pytest.raises(ValueError, match=f"classes must be {message}"):
            c2r.train(blobs(), classes=classes, progress=False)
    with pytest.raises(ValueError, match="seed must be in"):
        c2r.train(blobs(), seed=-1, progress=False)
    with pytest.raises(TypeError, match="protocol cannot be 3: "):
        c2r.train(blobs(), 3, progress=False)
    with pytest.raises(TypeError, match="two tensors or arrays"):
        c2r.distill((*blobs(), 1), 1, "dm", progress=False)
    for function in (lambda x: c2r.distill(x, 1, "dm", progress=False), lambda x: c2r.train(x, progress=False)):
        with pytest.raises(TypeError, match="not a TensorDataset: "):
            function(torch.utils.data.TensorDataset(*blobs()))


def test_a_radius_of_natural_training_is_read():
    options = {"model": "ConvNet-D1-W8-IN", "length": {"steps": 1}, "progress": False}
    with pytest.raises(ValueError, match="`garbage` is not a radius"):
        c2r.train(blobs(), eps="garbage", **options)
    with pytest.warns(UserWarning, match="eps has no effect: the protocol natural does not attack") as caught:
        c2r.train(blobs(), eps="8/255", **options)
    assert caught[0].filename == __file__
    c2r.train(blobs(), "pgd-at", eps=torch.tensor(0.1), **options)
