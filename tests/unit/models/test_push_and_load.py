"""A real model, saved, pushed and loaded again by its id: equal scores, adapters included."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import snapshot_download
from PIL import Image

import vlalign
from tests.hub_server import Hub, serving
from vlalign.models.embedder import DualEncoderEmbedder
from vlalign.models.hub import push
from vlalign.models.pair import DualEncoder
from vlalign.models.weights import save
from vlalign.registry import MODELS
from vlalign.types import UserError


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving(tmp_path, monkeypatch) as server:
        yield server


def towers(bert: str, **more: Any) -> dict[str, Any]:
    image = {"name": "timm", "id": "vit_tiny_patch16_224", "image_size": 32} | more
    text = {"name": "hf_text", "id": bert, "pretrained": False} | more
    return {"name": "dual_encoder", "dim": 8, "image": image, "text": text}


def build(spec: dict[str, Any]) -> DualEncoder:
    """A model whose every parameter differs from its initial value, adapters too."""
    model = MODELS.decode(spec).build()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn_like(parameter))
    return model


def test_a_model_reloads_by_id_with_equal_scores(
    hub: Hub, tmp_path: Path, bert_id: str, images: list[Image.Image], texts: list[str]
) -> None:
    model = build(towers(bert_id))
    save(model, tmp_path / "model")
    push(tmp_path / "model", "me/tiny")
    before, after = DualEncoderEmbedder(model), vlalign.load("me/tiny", device="cpu")
    assert torch.equal(after.encode_image(images), before.encode_image(images))
    assert torch.equal(after.encode_text(texts), before.encode_text(texts))
    asked = [texts] * len(images)
    for ours, theirs in zip(after.score(images, asked), before.score(images, asked), strict=True):
        assert torch.equal(ours, theirs)
    card = hub.read("me/tiny", "README.md").decode()
    assert (
        "`dual_encoder`, image tower `timm` (vit_tiny_patch16_224)" in card
        and "library_name: vlalign" in card
    )


def test_adapters_of_both_towers_go_along_and_load_in_peft(
    hub: Hub, tmp_path: Path, bert_id: str, images: list[Image.Image], texts: list[str]
) -> None:
    from peft import LoraConfig
    from peft.utils import load_peft_weights

    model = build(towers(bert_id, lora={"rank": 2}))
    save(model, tmp_path / "model")
    push(tmp_path / "model", "me/lora")
    before, after = DualEncoderEmbedder(model), vlalign.load("me/lora", device="cpu")
    torch.testing.assert_close(after.encode_image(images), before.encode_image(images), atol=1e-5, rtol=0)
    torch.testing.assert_close(after.encode_text(texts), before.encode_text(texts), atol=1e-5, rtol=0)
    folder = Path(snapshot_download("me/lora"))
    for side in ("image", "text"):
        assert LoraConfig.from_pretrained(folder / f"{side}_adapter").r == 2
        adapter = load_peft_weights(str(folder / f"{side}_adapter"), device="cpu")
        assert adapter and all("lora_" in name for name in adapter)
    assert "`text_adapter/` holds what was learned of that tower" in hub.read("me/lora", "README.md").decode()


def test_what_another_layout_left_does_not_mislead(
    hub: Hub, tmp_path: Path, bert_id: str, open_clip_id: str, images: list[Image.Image]
) -> None:
    save(build({"name": "open_clip", "id": open_clip_id}), tmp_path / "first")
    push(tmp_path / "first", "me/tiny")
    assert b"library_name: open_clip" in hub.read("me/tiny", "README.md")
    model = build(towers(bert_id))
    save(model, tmp_path / "second")
    push(tmp_path / "second", "me/tiny")
    expected = DualEncoderEmbedder(model).encode_image(images)
    assert torch.equal(vlalign.load("me/tiny", device="cpu").encode_image(images), expected)


def test_open_clip_reads_what_was_pushed(
    hub: Hub, tmp_path: Path, open_clip_id: str, images: list[Image.Image]
) -> None:
    import open_clip

    model = build({"name": "open_clip", "id": open_clip_id})
    save(model, tmp_path / "model")
    push(tmp_path / "model", "me/clip")
    theirs, preprocess = open_clip.create_model_from_pretrained("hf-hub:me/clip")
    with torch.no_grad():
        features = theirs.encode_image(torch.stack([preprocess(image) for image in images]), normalize=True)
    torch.testing.assert_close(features, DualEncoderEmbedder(model).encode_image(images), atol=1e-5, rtol=0)


def test_transformers_reads_what_was_pushed(
    hub: Hub, tmp_path: Path, hf_clip_id: str, texts: list[str]
) -> None:
    from transformers import AutoModel, AutoTokenizer

    model = build({"name": "hf_clip", "id": hf_clip_id})
    save(model, tmp_path / "model")
    push(tmp_path / "model", "me/clip")
    assert b"library_name: transformers" in hub.read("me/clip", "README.md")
    folder = snapshot_download("me/clip")
    theirs = AutoModel.from_pretrained(folder).eval()
    inputs = AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = theirs.text_model(**inputs).pooler_output
        features = torch.nn.functional.normalize(theirs.text_projection(states), dim=-1)
    torch.testing.assert_close(features, DualEncoderEmbedder(model).encode_text(texts), atol=1e-5, rtol=0)


def test_a_private_model_is_not_given_to_anybody(
    hub: Hub, tmp_path: Path, open_clip_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(build({"name": "open_clip", "id": open_clip_id}), tmp_path / "model")
    push(tmp_path / "model", "me/tiny")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UserError, match="me/tiny: neither a folder nor a model that the Hub gives"):
        vlalign.load("me/tiny")
