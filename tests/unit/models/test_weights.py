import copy
import json
import sys
from pathlib import Path

import pytest
import torch

from tests.unit.models.conftest import OPEN_CLIP, open_clip_folder
from vlalign.models import checkpoints, manifest
from vlalign.models.embedder import DualEncoderEmbedder
from vlalign.models.feature_cache import FeatureCache, item_hash
from vlalign.models.weights import initialise, load, save
from vlalign.registry import MODELS
from vlalign.types import UserError


@pytest.fixture
def specs(open_clip_id, hf_clip_id, bert_id, vit_id, tmp_path):
    quick = open_clip_folder(tmp_path / "quick", OPEN_CLIP | {"quick_gelu": True})
    timm = {
        "name": "timm",
        "id": "test_efficientnet",
        "image_size": 48,
        "mean": [0.1, 0.2, 0.3],
        "lock": True,
    }
    bert, vit = {"name": "hf_text", "id": bert_id, "pool": "cls"}, {"name": "hf_vision", "id": vit_id}
    clip, gelu = {"name": "open_clip", "id": open_clip_id}, {"name": "open_clip", "id": quick}
    pairs = {
        "timm_bert": (timm, bert),
        "vit_clip": (vit, clip),
        "clip_bert": (clip, bert),
        "two_gelus": (clip, gelu),
    }
    made = {
        name: {"name": "dual_encoder", "dim": 16, "head": "mlp", "image": image, "text": text}
        for name, (image, text) in pairs.items()
    }
    return made | {"open_clip": clip, "hf_clip": {"name": "hf_clip", "id": hf_clip_id}}


NAMES = ["timm_bert", "vit_clip", "clip_bert", "two_gelus", "open_clip", "hf_clip"]


def outputs(embedder, images, texts):
    return torch.cat([embedder.encode_image(images), embedder.encode_text(texts)])


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_model_loads_anywhere_with_equal_rows(specs, images, texts, tmp_path, monkeypatch, name):
    import shutil

    model = MODELS.decode(specs[name]).build()
    model.scale.data.fill_(3.0)
    save(model, tmp_path / "run" / "model")
    rows = outputs(DualEncoderEmbedder(model), images, texts)
    (tmp_path / "run" / "model").rename(tmp_path / "elsewhere")
    for source in ("open_clip", "hf_clip", "bert", "vit", "quick"):
        shutil.rmtree(tmp_path / source, ignore_errors=True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    loaded = load(tmp_path / "elsewhere", device="cpu")
    assert torch.equal(outputs(loaded, images, texts), rows)
    assert loaded.model.scale.item() == pytest.approx(3.0) and not loaded.model.training
    save(loaded.model, tmp_path / "again")
    assert torch.equal(outputs(load(tmp_path / "again"), images, texts), rows)


@pytest.mark.parametrize("name", NAMES)
def test_the_manifest_gives_the_spec_back(specs, tmp_path, name):
    spec = MODELS.decode(specs[name])
    manifest.write(spec, tmp_path)
    (tmp_path / "again").mkdir()
    manifest.write(manifest.read(tmp_path), tmp_path / "again")
    assert (tmp_path / "again" / manifest.FILE).read_text() == (tmp_path / manifest.FILE).read_text()
    folder = tmp_path / "saved"
    assert manifest.read(tmp_path).at(folder, False) == spec.at(folder, False)


@pytest.mark.parametrize("name", NAMES)
def test_no_path_of_this_machine_is_saved(specs, tmp_path, name):
    spec = copy.deepcopy(specs[name])
    if name == "timm_bert":
        torch.save(MODELS.decode(spec).build().image.net.state_dict(), tmp_path / "weights.pth")
        spec["image"]["weights"] = str(tmp_path / "weights.pth")
    save(MODELS.decode(spec).build(), tmp_path / "saved")
    told = [path for path in (tmp_path / "saved").rglob("*") if path.suffix in (".json", ".txt")]
    assert told and [path.name for path in told if str(tmp_path) in path.read_text()] == []
    assert load(tmp_path / "saved").model.dim == 16


@pytest.mark.parametrize("name", NAMES)
def test_names_that_wrappers_left_behind_load(specs, images, texts, tmp_path, name):
    model = MODELS.decode(specs[name]).build()
    save(model, tmp_path / "saved")
    rows = outputs(DualEncoderEmbedder(model), images, texts)
    (file,) = (tmp_path / "saved").glob("*.safetensors")
    from safetensors.torch import load_file, save_file

    state = load_file(file)
    save_file({f"module._orig_mod.{name}": tensor for name, tensor in state.items()}, file)
    assert torch.equal(outputs(load(tmp_path / "saved"), images, texts), rows)


def test_a_gathered_or_averaged_state_is_saved_in_place_of_the_models_own(specs, tmp_path):
    model = MODELS.decode(specs["timm_bert"]).build()
    state = {
        f"module.{name}": x * 2 if x.is_floating_point() else x for name, x in model.state_dict().items()
    }
    save(model, tmp_path / "saved", state)
    loaded = load(tmp_path / "saved").model.state_dict()
    assert all(torch.equal(state[f"module.{name}"], tensor) for name, tensor in loaded.items())


def test_saving_replaces_the_folder_whole_or_leaves_it(specs, tmp_path, monkeypatch):
    model = MODELS.decode(specs["open_clip"]).build()
    folder = tmp_path / "model"
    save(model, folder)
    (folder / "stale.txt").write_text("old")
    before = sorted(path.name for path in folder.iterdir())
    monkeypatch.setattr(manifest, "write", lambda *told: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save(model, folder)
    assert sorted(path.name for path in folder.iterdir()) == before
    monkeypatch.undo()
    save(model, folder)
    assert "stale.txt" not in {path.name for path in folder.iterdir()}
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_rename_that_fails_puts_the_old_folder_back(specs, tmp_path, monkeypatch):
    model, folder = MODELS.decode(specs["open_clip"]).build(), tmp_path / "out" / "model"
    save(model, folder)
    (folder / "mark.txt").write_text("old")
    rename = Path.rename

    def fail(self, target):
        if Path(target) == folder and not self.name.endswith(".old"):
            raise OSError("no space")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="no space"):
        save(model, folder)
    assert (folder / "mark.txt").read_text() == "old"
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_weights_that_cannot_be_written_leave_nothing(tmp_path, monkeypatch):
    import safetensors.torch

    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(safetensors.torch, "save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        checkpoints.write({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.warns(UserWarning, match="cannot be kept here: disk full"):  # features are only a saving
        FeatureCache(tmp_path, "key").put([item_hash("a")], torch.zeros(1, 2))
    assert [path.name for path in tmp_path.rglob("*")] == ["key"]


def test_a_run_is_loaded_from_its_model_folder(specs, tmp_path):
    save(MODELS.decode(specs["open_clip"]).build(), tmp_path / "run" / "model")
    (tmp_path / "run" / "recipe.yaml").write_text("")
    assert load(tmp_path / "run").model.dim == 16


def test_initialise_refuses_another_shape(specs, tmp_path, open_clip_id):
    save(MODELS.decode(specs["open_clip"]).build(), tmp_path / "saved")
    towers = {side: {"name": "open_clip", "id": open_clip_id} for side in ("image", "text")}
    same = MODELS.decode({"name": "dual_encoder", "dim": 16, **towers}).build()
    initialise(same, tmp_path / "saved")
    narrow = MODELS.decode({"name": "dual_encoder", "dim": 8, **towers}).build()
    with pytest.raises(UserError, match="its weights do not fit this model"):
        initialise(narrow, tmp_path / "saved")
    with pytest.raises(UserError, match="its weights do not fit this model: .* in all"):
        initialise(MODELS.decode(specs["timm_bert"]).build(), tmp_path / "saved")


def test_mistakes_are_sentences(specs, tmp_path):
    with pytest.raises(UserError, match="there is no such folder, and it is no Hub id either"):
        load(tmp_path / "gone")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="this is no model folder"):
        load(tmp_path / "empty")
    save(MODELS.decode(specs["timm_bert"]).build(), tmp_path / "saved")
    told = json.loads((tmp_path / "saved" / "vlalign.json").read_text())
    (tmp_path / "saved" / "vlalign.json").write_text(json.dumps(told | {"format": 99}))
    with pytest.raises(UserError, match="its format is 99, this version reads 1"):
        load(tmp_path / "saved")
    told["spec"]["head"] = "cubic"
    (tmp_path / "saved" / "vlalign.json").write_text(json.dumps(told))
    with pytest.raises(UserError, match="cannot be built by this version"):
        load(tmp_path / "saved")
    (tmp_path / "saved" / "vlalign.json").write_text("{")
    with pytest.raises(UserError, match="not a manifest"):
        load(tmp_path / "saved")


def test_cut_weights_are_refused_by_name(specs, tmp_path):
    save(MODELS.decode(specs["timm_bert"]).build(), tmp_path / "saved")
    file = tmp_path / "saved" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match="model.safetensors: these weights cannot be read"):
        load(tmp_path / "saved")


def test_code_is_not_trusted_unless_it_is_asked_for(bert_id):
    words = {"name": "hf_text", "id": bert_id, "trust_remote_code": True}
    spec = MODELS.decode({"name": "dual_encoder", "image": {"name": "timm", "id": "test_vit"}, "text": words})
    assert not spec.at(Path("folder"), False).text.trust_remote_code
    assert spec.at(Path("folder"), True).text.trust_remote_code


@pytest.mark.parametrize(
    ("where", "component"),
    [
        ((), "evil:Model"),
        (("name",), "evil:Model"),
        (("text",), "evil:Model"),
        (("text", "name"), "evil:Model"),
        (("text", "id"), {"name": "evil:Model"}),
        (("text", "lora"), [{"name": "evil:Model"}]),
    ],
)
def test_a_manifest_that_names_code_imports_nothing(specs, tmp_path, monkeypatch, where, component):
    folder = tmp_path / "saved"
    save(MODELS.decode(specs["timm_bert"]).build(), folder)
    (tmp_path / "evil.py").write_text("from pathlib import Path\nPath(__file__).with_name('ran').touch()\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "evil", raising=False)
    told = json.loads((folder / manifest.FILE).read_text())
    at = told
    path = ("spec", *where)
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = component
    (folder / manifest.FILE).write_text(json.dumps(told))
    with pytest.raises(UserError, match="it names 'evil:Model'.*trust_remote_code=True"):
        load(folder)
    assert not (tmp_path / "ran").exists()
    if where in {(), ("name",), ("text",), ("text", "name")}:
        with pytest.raises(UserError, match="cannot be built by this version"):
            load(folder, trust_remote_code=True)
        assert (tmp_path / "ran").exists()


def test_only_safetensors_and_configs_are_downloaded(specs, tmp_path, monkeypatch):
    import huggingface_hub

    save(MODELS.decode(specs["timm_bert"]).build(), tmp_path / "saved")
    asked = []

    def download(id, revision, allow_patterns):
        asked.append((id, revision, tuple(allow_patterns)))
        return str(tmp_path / "saved")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert load("hf-hub:someone/model", revision="v1").model.dim == 16
    assert [call[:2] for call in asked] == [("someone/model", "v1")] * 2
    patterns = {pattern for call in asked for pattern in call[2]}
    assert "model*.safetensors" in patterns
    assert not any(pattern.endswith((".bin", ".pt", ".pth", ".py", "*")) for pattern in patterns)


def test_a_hub_model_without_safetensors_is_refused(hf_clip_id, monkeypatch):
    import huggingface_hub

    (Path(hf_clip_id) / "model.safetensors").unlink()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: hf_clip_id)
    with pytest.raises(UserError, match="no safetensors weights, and pickled ones are not loaded"):
        load("someone/model")


def test_unwrapping_keeps_other_names():
    tensor = torch.zeros(1)
    state = {"module.image._orig_mod.net.weight": tensor, "text.submodule.x": tensor}
    assert checkpoints.unwrap(state).keys() == {"image.net.weight", "text.submodule.x"}
