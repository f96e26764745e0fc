"""Nets that change pictures, what a frozen encoder sees of it, and what a run leaves of them."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.nn.functional import normalize

import vlalign
from vlalign.evals.evaluators.enhancement import Enhancement
from vlalign.evals.reading import read_pictures
from vlalign.evals.report.page import gather, write
from vlalign.evals.rows import write_rows
from vlalign.models.encoders.enhancer import EnhancerSpec
from vlalign.models.enhance import NETS, STEPS, bent
from vlalign.models.weights import save
from vlalign.ops.direction import fit, score
from vlalign.ops.direction import write as write_direction
from vlalign.recipe.decode import load_recipe
from vlalign.registry import EVALUATORS, SOURCES
from vlalign.train.loop import train
from vlalign.types import DataError, Limits, UserError


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("VLALIGN_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """24 pictures, a tiny dual encoder, and the direction from dark to bright as it sees these."""
    place, noise = tmp_path_factory.mktemp("enhance"), np.random.default_rng(0)
    (place / "art").mkdir()
    for row in range(24):
        coarse = noise.integers(60, 256, (4, 4, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((40, 36), Image.Resampling.BICUBIC)
        image.save(place / "art" / f"{row:02}.png")
    torch.manual_seed(0)
    save(vlalign.load("recipes/tiny/open_clip").model, place / "encoder")
    model = vlalign.load(place / "encoder")
    rows = [read_pictures(model, SOURCES.decode(each).build()).features for each in sources(place)]
    write_direction(fit(*rows), place / "direction.safetensors")
    return place


def sources(place):
    art = {"name": "folder", "path": str(place / "art")}
    return art, {"name": "degraded", "source": art, "exposure": [-2.0, -1.0]}


@pytest.fixture(params=NETS)
def net(request):
    torch.manual_seed(0)
    return NETS[request.param]()


def test_a_net_begins_by_changing_nothing_and_stays_within_black_and_white(net):
    pictures = torch.rand(2, 3, 13, 10)
    assert torch.equal(net(pictures), pictures)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=2.0)
    changed = net(pictures)
    assert changed.shape == pictures.shape and not torch.equal(changed, pictures)
    assert changed.min() >= 0 and changed.max() <= 1


def test_a_net_has_somewhere_to_go_from_its_start(net):
    pictures = torch.rand(2, 3, 12, 12) * 0.5
    descent = torch.optim.Adam(net.parameters(), lr=0.02)
    losses = []
    for _ in range(30):
        loss = (net(pictures) - pictures * 1.5).square().mean()
        losses.append(loss.item())
        descent.zero_grad()
        loss.backward()
        descent.step()
    assert losses[-1] < losses[0] / 2


def test_a_curve_is_bent_by_hand():
    amounts = torch.randn(STEPS, dtype=torch.float64)
    values = [0.0, 0.1, 0.5, 0.9, 1.0]
    wanted = []
    for x in values:
        for a in amounts.tanh().tolist():
            x = x + a * x * (1 - x)
        wanted.append(x)
    found = bent(torch.tensor(values, dtype=torch.float64).view(1, 1, 1, -1), amounts.view(-1, 1, 1, 1))
    assert found.flatten().tolist() == pytest.approx(wanted)
    assert wanted == sorted(wanted) and (wanted[0], wanted[-1]) == (0, 1)


def test_an_encoder_is_shown_what_the_net_makes_and_is_itself_untouched(folder):
    plain = vlalign.load(folder / "encoder")
    model = EnhancerSpec(id=str(folder / "encoder"), net="global").build()
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ["net.amounts"]
    assert model.training and model.net.training and not model.image.training
    picture = Image.open(folder / "art" / "03.png")
    inputs = model.image.process([picture])
    batch = {"query": inputs, "key": {"input_ids": torch.zeros(1, 4, dtype=torch.long)}}
    out = model(batch)
    torch.testing.assert_close(out.key, plain.encode_image([picture]))
    torch.testing.assert_close(out.query, out.key, atol=1e-5, rtol=1e-5)  # bicubic overshoots are cut
    model.net.amounts.data.fill_(0.3)
    out = model(batch)
    shown = (inputs["pixels"] - model.black) / (model.white - model.black)
    assert (shown - torch.tensor(np.asarray(picture.resize((32, 32)))).permute(2, 0, 1) / 255).mean() < 0.1
    wanted = bent(shown.clamp(0, 1), torch.full((STEPS, 1, 1, 1), 0.3))
    pixels = model.black + wanted * (model.white - model.black)
    torch.testing.assert_close(out.query, model.encode_image({"pixels": pixels}))
    assert not out.key.requires_grad and out.query.requires_grad


def run(folder, out, *overrides):
    art, dark = (json.dumps(each) for each in sources(folder))
    evaluator = {"name": "enhancement", "dataset": "own", "data": json.loads(dark), "size": 32}
    evaluator |= {"original": json.loads(art), "direction": str(folder / "direction.safetensors")}
    changes = [f"out={out}", f"model.id={folder / 'encoder'}", f"data.train={dark}", "log.trackers=[]"]
    changes += [f"task.embedding_terms.0.objective.direction={folder / 'direction.safetensors'}"]
    changes += [f"evals={json.dumps([evaluator])}", "data.batch=24", *overrides]
    return train(load_recipe("recipes/tiny/enhancer.yaml", changes))


def test_it_learns_to_light_pictures_and_is_saved_with_its_encoder(folder, tmp_path):
    told = ["model.net=global", "steps=40", "optim.lr=0.05", "data.chunk=null"]
    out = run(folder, tmp_path / "out", *told)
    (row,) = json.loads((out / "metrics.json").read_text())
    after, before = row["metrics"], row["chance"]
    assert after["score"] > before["score"] + 0.05 and after["psnr"] > before["psnr"] + 1
    assert after["brightness_error"] < before["brightness_error"]
    saved = load_file(out / "model" / "model.safetensors")
    assert saved.keys() == {"net.amounts"}
    (file,) = (folder / "encoder").glob("*.safetensors")
    own, told = load_file(out / "model" / "encoder" / file.name), load_file(file)
    assert own.keys() == told.keys() and all(torch.equal(own[name], told[name]) for name in told)
    model, pictures = vlalign.load(out), [folder / "art" / f"{row:02}.png" for row in range(3)]
    better = model.enhance(pictures)
    for path, image in zip(pictures, better, strict=True):
        before = Image.open(path)
        assert image.size == before.size and image.mode == "RGB"
        values = torch.tensor(np.asarray(before) / 255, dtype=torch.float32)
        wanted = bent(values, saved["net.amounts"]) * 255
        assert (torch.tensor(np.asarray(image)) - wanted).abs().max() <= 0.51
    plain = vlalign.load(folder / "encoder")
    torch.testing.assert_close(model.encode_image(better), plain.encode_image(better))
    with pytest.raises(UserError, match="this model changes no pictures, and better ones are asked for"):
        plain.enhance(pictures)


@pytest.mark.parametrize("net", ["curve", "unet"])
def test_larger_nets_come_back_as_they_were_saved(net, folder, tmp_path):
    out = run(folder, tmp_path / "out", f"model.net={net}", "evals=[]")
    model = vlalign.load(out)
    saved = load_file(out / "model" / "model.safetensors")
    own = {f"net.{name}": x for name, x in model.model.net.state_dict().items()}
    assert own.keys() == saved.keys() and all(torch.equal(own[name], saved[name]) for name in saved)
    (image,) = model.enhance([folder / "art" / "00.png"])
    assert image.size == (40, 36)


def test_chunks_learn_what_a_whole_batch_learns(folder, tmp_path):
    nets = [
        load_file(run(folder, tmp_path / name, f"data.chunk={chunk}", "evals=[]") / "model/model.safetensors")
        for name, chunk in (("whole", "null"), ("chunks", 8))
    ]
    for name, x in nets[0].items():
        torch.testing.assert_close(nets[1][name], x, atol=1e-5, rtol=1e-4)


class Lighter:
    """Embeds the mean colour, and makes a picture lighter by 40 of 255."""

    def encode_image(self, images):
        return normalize(
            torch.from_numpy(np.stack([np.asarray(each).mean((0, 1)) - 100 for each in images])).float(),
            dim=1,
        )

    def enhance(self, images):
        return [
            Image.fromarray((np.asarray(each).astype(int) + 40).clip(0, 255).astype(np.uint8))
            for each in images
        ]


def evaluator(tmp_path, **changes):
    for name, levels in (("dark", (40, 90, 120)), ("whole", (100, 120, 140))):
        (tmp_path / name).mkdir(exist_ok=True)
        for row, level in enumerate(levels):
            colour = (level, level, min(level + 60, 255))
            Image.new("RGB", (60, 30), colour).save(tmp_path / name / f"{row}.png")
    told = {"name": "enhancement", "dataset": "own", "direction": str(tmp_path / "direction.safetensors")}
    told |= {"data": {"name": "folder", "path": str(tmp_path / "dark")}, "size": 20}
    told["original"] = {"name": "folder", "path": str(tmp_path / "whole")}
    found = fit(torch.tensor([[1.0, 1.0, 1.0]]), torch.tensor([[-1.0, -1.0, 0.0]]))
    write_direction(found, tmp_path / "direction.safetensors")
    return found, EVALUATORS.decode(told | changes)


def test_what_is_measured_equals_a_loop_and_is_shown(tmp_path):
    found, each = evaluator(tmp_path)
    assert isinstance(each, Enhancement)
    (row,) = each(Lighter(), Limits())
    dark, whole = ([(x, x, min(x + 60, 255)) for x in levels] for levels in ((40, 90, 120), (100, 120, 140)))
    for numbers, more in ((row.chance, 0), (row.metrics, 40)):
        colours = [tuple(min(x + more, 255) for x in colour) for colour in dark]
        rows = normalize(torch.tensor(colours).float() - 100, dim=1)
        scores = score(rows, found.vector)
        assert numbers["score"] == pytest.approx(scores.mean().item())
        assert numbers["past"] == pytest.approx((scores > found.target).double().mean().item())
        assert numbers["overshoot"] == pytest.approx((scores - found.target).clamp(min=0).mean().item())
        errors = [
            np.mean([(a - b) ** 2 for a, b in zip(*pair, strict=True)])
            for pair in zip(colours, whole, strict=True)
        ]
        psnr = np.mean([10 * np.log10(255**2 / error) for error in errors])
        assert numbers["psnr"] == pytest.approx(psnr)
        grey = [
            sum(w * (a - b) for w, a, b in zip((0.299, 0.587, 0.114), *pair, strict=True))
            for pair in zip(colours, whole, strict=True)
        ]
        assert numbers["brightness_error"] == pytest.approx(np.mean(np.abs(grey)) / 255, abs=0.5 / 255)
    assert [list(shown) for shown in row.exhibits["changes"]] == [["before", "after", "original"]] * 3
    write_rows(tmp_path / "out", [row])
    page = write(tmp_path / "out").read_text()
    assert len(gather(tmp_path / "out")["enhancements"]) == 1
    assert page.count("data:image/webp") == 9 and 'href="#enhancement"' in page


def test_without_originals_nothing_is_said_of_them_and_other_rows_are_refused(tmp_path):
    (row,) = evaluator(tmp_path, original=None, gallery=1)[1](Lighter(), Limits())
    assert row.metrics.keys() == {"score", "past", "overshoot"}
    assert [list(shown) for shown in row.exhibits["changes"]] == [["before", "after"]]
    (tmp_path / "whole" / "2.png").rename(tmp_path / "whole" / "3.png")
    _, each = evaluator(tmp_path)
    with pytest.raises(DataError, match="original: 4 rows, and data has 3; name the same rows"):
        each(Lighter(), Limits())
    (tmp_path / "whole" / "2.png").unlink()
    with pytest.raises(DataError, match="original: row 2 is '3.png', and of data it is '2.png'"):
        each(Lighter(), Limits())


def test_a_direction_of_another_width_and_an_encoder_that_is_none_are_told(folder, tmp_path):
    _, each = evaluator(tmp_path, direction=str(folder / "direction.safetensors"))
    with pytest.raises(UserError, match="has 32 numbers and embeddings have 3; name one that was fitted"):
        each(Lighter(), Limits())
    enhancer = run(folder, tmp_path / "out", "evals=[]")
    with pytest.raises(UserError, match="an enhancer sees through two towers"):
        EnhancerSpec(id=str(enhancer)).build()
    for change in ({"size": 0}, {"gallery": -1}):
        with pytest.raises(ValueError, match=next(iter(change))):
            evaluator(tmp_path, **change)
