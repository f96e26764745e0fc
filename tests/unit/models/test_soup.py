"""Means of saved models, in every layout, against a loop over numpy's doubles."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.unit.models.conftest import OPEN_CLIP, open_clip_folder
from vlalign.models import manifest
from vlalign.models.soup import gather, mix
from vlalign.models.weights import load, save
from vlalign.registry import MODELS
from vlalign.types import UserError


@pytest.fixture
def specs(open_clip_id, hf_clip_id, bert_id):
    timm = {"name": "timm", "id": "test_efficientnet", "image_size": 48}  # batch norms, which count batches
    bert = {"name": "hf_text", "id": bert_id}
    return {
        "towers": {"name": "dual_encoder", "dim": 16, "image": timm, "text": bert},
        "open_clip": {"name": "open_clip", "id": open_clip_id},
        "hf_clip": {"name": "hf_clip", "id": hf_clip_id},
    }


def saved(spec, folder: Path, seed: int) -> str:
    """A model of which every float is moved by `seed`."""
    model = MODELS.decode(spec).build()
    draw = torch.Generator().manual_seed(seed)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.add_(torch.randn(tensor.shape, generator=draw), alpha=0.1)  # variances stay positive
    save(model, folder)
    return str(folder)


def state(folder: str | Path) -> dict[str, torch.Tensor]:
    (file,) = Path(folder).glob("*.safetensors")
    return load_file(file)


def change(folder: str | Path, **tensors) -> None:
    """Put tensors in place of a saved model's; None takes one out."""
    (file,) = Path(folder).glob("*.safetensors")
    own = load_file(file) | tensors
    save_file({name: tensor for name, tensor in own.items() if tensor is not None}, file, {"format": "pt"})


def mean(models: list[str], weights: list[float], tmp_path: Path, name: str = "mean") -> Path:
    mix(gather(models, tmp_path / "scratch"), weights, tmp_path / name)
    return tmp_path / name


def equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Bit for bit."""
    return a.dtype == b.dtype and a.contiguous().numpy().tobytes() == b.contiguous().numpy().tobytes()


@pytest.mark.parametrize("layout", ["towers", "open_clip", "hf_clip"])
def test_a_mean_is_the_loop_over_numbers_and_loads(specs, tmp_path, layout, images, texts):
    models = [saved(specs[layout], tmp_path / f"m{seed}", seed) for seed in range(3)]
    weights = [0.2, 0.5, 0.3]
    new, states = mean(models, weights, tmp_path), [state(model) for model in models]
    for name, tensor in state(new).items():
        own = [each[name].numpy() for each in states]
        if tensor.is_floating_point():
            slow = sum(w * x.astype(np.float64) for w, x in zip(weights, own, strict=True))
            np.testing.assert_allclose(tensor.numpy(), slow, rtol=1e-7, atol=1e-45)
        else:
            assert all((tensor.numpy() == x).all() for x in own)
    assert state(new).keys() == states[0].keys()
    loaded = load(new, device="cpu")
    assert (new / manifest.FILE).read_bytes() == (Path(models[0]) / manifest.FILE).read_bytes()
    logs = [load(model, device="cpu").model.scale.item() for model in models]  # of multipliers
    assert loaded.model.scale.item() == pytest.approx(sum(w * x for w, x in zip(weights, logs, strict=True)))
    assert loaded.encode_image(images).isfinite().all() and loaded.encode_text(texts).isfinite().all()


def test_what_a_head_lies_on_is_averaged_too_and_equal_encoders_stay_as_they_are(tmp_path):
    spec = {"name": "combiner", "encoder": "local-dir:recipes/tiny/open_clip", "projection": 6, "hidden": 5}
    torch.manual_seed(0)
    one, other = (MODELS.decode(spec).build().eval() for _ in range(2))
    other.encoder.load_state_dict(one.encoder.state_dict())
    models = [str(tmp_path / name) for name in ("one", "other")]
    for model, folder in zip((one, other), models, strict=True):
        save(model, folder)
    found = load(mean(models, [0.25, 0.75], tmp_path), device="cpu").model.state_dict()
    for name, x in one.state_dict().items():
        y = other.state_dict()[name]
        assert not name.startswith("encoder.") or equal(found[name], x)
        torch.testing.assert_close(found[name], 0.25 * x + 0.75 * y)
    moved = state(Path(models[1]) / "encoder")
    change(Path(models[1]) / "encoder", **{name: x + 1 for name, x in moved.items()})
    apart = state(mean(models, [0.5, 0.5], tmp_path, "apart") / "encoder")
    for name, x in state(Path(models[0]) / "encoder").items():
        torch.testing.assert_close(apart[name], x + 0.5)
    (file,) = (Path(models[1]) / "encoder").glob("*.safetensors")
    file.rename(file.with_name("model-1.safetensors"))
    told = (
        r"^models: \S*one keeps its weights in encoder/\S+, model.safetensors and .*; average models of one"
    )
    with pytest.raises(UserError, match=told):
        gather(models, tmp_path / "scratch")


@pytest.mark.parametrize("count", [2, 3, 7, 10])
def test_equal_models_give_themselves_bit_for_bit(specs, tmp_path, count):
    model = saved(specs["open_clip"], tmp_path / "m", 0)
    odd = torch.tensor([0.0, -0.0, 1e-45, -1e-38, 3.4028235e38, 1 / 3, float("inf"), -0.1])
    first = next(name for name, x in state(model).items() if x.ndim == 1 and len(x) >= len(odd))
    tensor = state(model)[first]
    tensor[: len(odd)] = odd
    change(model, **{first: tensor})
    new = mean([model] * count, [1 / count] * count, tmp_path)
    assert all(equal(x, state(model)[name]) for name, x in state(new).items())


def test_alpha_0_and_1_are_the_ends_exactly(specs, tmp_path):
    a, b = (saved(specs["towers"], tmp_path / f"m{seed}", seed) for seed in range(2))
    change(b, bias=torch.tensor([float("nan")]))  # nothing times a weight of 0 is nothing
    ends = [mean([a, b], weights, tmp_path, str(weights)) for weights in ([1.0, 0.0], [0.0, 1.0])]
    for end, model in zip(ends, (a, b), strict=True):
        assert all(equal(x, state(model)[name]) for name, x in state(end).items())


def test_the_order_of_models_does_not_matter(specs, tmp_path):
    models = [saved(specs["towers"], tmp_path / f"m{seed}", seed) for seed in range(4)]
    one = mean(models, [0.25] * 4, tmp_path, "one")
    other = mean([models[place] for place in (2, 0, 3, 1)], [0.25] * 4, tmp_path, "other")
    for name, x in state(one).items():
        torch.testing.assert_close(x, state(other)[name], rtol=1e-7, atol=1e-7)


def test_the_first_model_gives_the_dtype_and_sums_are_not_rounded_to_it(specs, tmp_path):
    models = [saved(specs["towers"], tmp_path / f"m{seed}", seed) for seed in range(3)]
    change(models[0], scale=state(models[0])["scale"].bfloat16())
    new = mean(models, [1 / 3] * 3, tmp_path)
    exact = sum(state(model)["scale"].double() for model in models) / 3
    assert state(new)["scale"].dtype == torch.bfloat16
    assert state(new)["scale"] == exact.to(torch.bfloat16)
    assert state(new)["bias"].dtype == torch.float32


def test_what_belongs_to_one_model_alone_stays_behind(specs, tmp_path):
    plain = saved(specs["open_clip"], tmp_path / "plain", 0)
    lora = {side: {"lora": {"rank": 2}} for side in ("image", "text")}
    tuned = saved(specs["open_clip"] | lora, tmp_path / "tuned", 1)  # merged into its weights
    for name in ("README.md", "metrics.json", "recipe.yaml", "soup.json"):
        (Path(tuned) / name).write_text("of one model")
    assert (Path(tuned) / "image_adapter").is_dir()
    new = mean([tuned, plain], [0.5, 0.5], tmp_path)
    assert {path.name for path in new.iterdir()} == {path.name for path in Path(plain).iterdir()}
    assert load(new, device="cpu").model.dim == 16


def test_runs_and_folders_of_other_libraries_are_ingredients(specs, hf_clip_id, tmp_path):
    tuned = saved(specs["hf_clip"], tmp_path / "run" / "model", 0)
    change(hf_clip_id, **{"text_model.embeddings.position_ids": torch.arange(20)[None]})  # as older ones have
    new = mean([hf_clip_id, str(tmp_path / "run")], [0.5, 0.5], tmp_path)
    assert (new / manifest.FILE).is_file() and state(new).keys() == state(tuned).keys()
    ends = [load(model, device="cpu").model.state_dict() for model in (hf_clip_id, tuned, new)]
    for name, x in ends[2].items():
        torch.testing.assert_close(x, (ends[0][name] + ends[1][name]) / 2)


def test_models_that_differ_in_more_than_values_are_refused_by_the_tensor(specs, tmp_path):
    first = saved(specs["towers"], tmp_path / "first", 0)
    other = str(tmp_path / "other")

    def refused(told: str, **tensors) -> None:
        shutil.rmtree(other, ignore_errors=True)
        shutil.copytree(first, other)
        change(other, **tensors)
        for models in ([first, other], [first, first, other]):
            with pytest.raises(UserError, match=f"^models: {told}; average models of one architecture"):
                gather(models, tmp_path / "scratch")
        with pytest.raises(UserError, match="; average models of one architecture$"):
            gather([other, first], tmp_path / "scratch")

    refused(r"\S*other has no scale, which \S*first has", scale=None)
    refused(r"\S*first has no spare, which \S*other has", spare=torch.zeros(1))
    refused(r"bias is \[1\] in \S*first and \[2\] in \S*other", bias=torch.zeros(2))
    change(first, places=torch.arange(3))
    told = r"places, whole numbers that have no mean, differs in \S*first and \S*other"
    refused(told, places=torch.arange(3) + 1)


def test_the_counters_of_batch_norms_are_the_first_models(specs, tmp_path):
    models = [saved(specs["towers"], tmp_path / f"m{seed}", seed) for seed in range(2)]
    batches = next(name for name in state(models[0]) if name.endswith("num_batches_tracked"))
    for model, count in zip(models, (7, 9), strict=True):
        change(model, **{batches: torch.tensor(count)})
    new = mean(models, [0.0, 1.0], tmp_path)
    assert state(new)[batches] == 7 and load(new, device="cpu").model.dim == 16


def test_a_wrappers_names_are_taken_off_as_loading_does(specs, tmp_path):
    models = [saved(specs["towers"], tmp_path / f"m{seed}", seed) for seed in range(2)]
    plain = mean(models, [0.5, 0.5], tmp_path)
    (file,) = Path(models[1]).glob("*.safetensors")
    save_file({f"module.{name}": x for name, x in load_file(file).items()}, file, {"format": "pt"})
    for order in (models, models[::-1]):
        shutil.rmtree(tmp_path / "scratch", ignore_errors=True)
        new = mean(order, [0.5, 0.5], tmp_path, f"again{order[0][-1]}")
        assert state(new).keys() == state(plain).keys()
        assert all(equal(x, state(plain)[name]) for name, x in state(new).items())


def test_only_what_a_model_needs_is_copied_and_no_link_is_followed(specs, tmp_path):
    model, secret = saved(specs["open_clip"], tmp_path / "m", 0), tmp_path / "secret.json"
    wanted = {path.name for path in Path(model).iterdir()}
    secret.write_text("{}")
    for name in ("pytorch_model.bin", "optimizer.pt", ".env", "step_1"):
        (Path(model) / name).write_text("x")
    new = mean([model, model], [0.5, 0.5], tmp_path)
    assert {path.name for path in new.iterdir()} == wanted
    (Path(model) / "link.json").symlink_to(secret)
    (Path(model) / "more").symlink_to(tmp_path)
    linked = mean([model, model], [0.5, 0.5], tmp_path, "linked")
    assert {path.name for path in linked.iterdir()} == wanted
    assert all(equal(x, state(model)[name]) for name, x in state(linked).items())


def test_another_architecture_and_cut_weights_are_refused(specs, tmp_path):
    model = saved(specs["open_clip"], tmp_path / "m", 0)
    wide = OPEN_CLIP | {"embed_dim": 8}
    narrow = saved(
        specs["open_clip"] | {"id": open_clip_folder(tmp_path / "narrow", wide)}, tmp_path / "n", 1
    )
    with pytest.raises(UserError, match=r"text_projection is \[32, 16\] in .* and \[32, 8\] in"):
        gather([model, narrow], tmp_path)
    with pytest.raises(UserError, match=r"keeps its weights in .*; average models of one architecture"):
        gather([model, saved(specs["towers"], tmp_path / "t", 2)], tmp_path)
    (file,) = Path(narrow).glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match=f"^models: .*{file.name} cannot be read: "):
        gather([model, narrow], tmp_path)
    with pytest.raises(UserError, match="there is no such folder, and it is no Hub id either"):
        gather([model, str(tmp_path / "gone")], tmp_path)
