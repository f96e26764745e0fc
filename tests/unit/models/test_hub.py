"""Pushing to a Hub on 127.0.0.1 by the calls that huggingface_hub makes, and reading back what arrived."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard, snapshot_download
from ruamel.yaml import YAML
from safetensors.torch import load_file, save_file

from tests.hub_server import Hub, serving
from vlalign.models.hub import push
from vlalign.models.parcel import PushError
from vlalign.train.tally import Tally
from vlalign.types import Licence


class Rows(list):  # type: ignore[type-arg]
    """A source without rows: only its licences matter."""

    def __init__(self, licences: list[Licence]) -> None:
        super().__init__()
        self.licences, self.skipped = licences, {}


RECIPE = """\
verb: train
out: runs/tiny
model:
  name: dual_encoder
  image: {name: timm, id: resnet18}
  text: hf_text
data: {batch: 64, train: {name: emoji}}
task: {name: align, terms: [{objective: {name: info_nce}}]}
steps: 300
"""
METRICS = [
    {
        "dataset": "emoji/unseen_concepts",
        "task": "retrieval",
        "metrics": {"text_to_image_R@10": 0.4512, "spread": float("nan")},
        "chance": {"text_to_image_R@10": 0.027},
    }
]
HEADER = {
    "rows": Tally().account(
        Rows([Licence(name="Noto | emoji", licence="Apache-2.0", source="npm:emoji-datasource")])
    ),
    "versions": {"torch": "2.14.1", "vlalign": "0.1.0"},
}
SENT = [
    "README.md",
    "image_adapter/adapter_config.json",
    "image_adapter/adapter_model.safetensors",
    "metrics.json",
    "open_clip_config.json",
    "open_clip_model.safetensors",
    "recipe.yaml",
    "text_adapter/adapter_config.json",
    "text_adapter/adapter_model.safetensors",
    "tokenizer.json",
    "vocab.txt",
]
KEPT = [
    "log.jsonl",
    "report.html",
    "step_10/model.safetensors",
    "model/pytorch_model.bin",
    "model/optimizer.pt",
    "model/weights.pth",
    "model/.env.json",
    "model/.cache/huggingface/token.txt",
    "model/checkpoint-5/model.safetensors",
    "model/train_log.txt",
    "model/notes.md",
]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving(tmp_path, monkeypatch, part=4096) as server:
        yield server


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run, with everything beside it that must stay here."""
    out = tmp_path / "out"
    model = out / "model"
    for name in [*SENT[1:], *KEPT]:
        path = (out if name in ("metrics.json", "recipe.yaml", *KEPT) else model) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    save_file({"weight": torch.arange(4096.0)}, model / "open_clip_model.safetensors")  # more than one part
    for side in ("image", "text"):
        save_file({"lora_A": torch.ones(2, 3)}, model / f"{side}_adapter" / "adapter_model.safetensors")
    (model / "vocab.txt").write_bytes(b"[PAD]\nsecret\npassword\n")
    (out / "recipe.yaml").write_text(RECIPE)
    (out / "metrics.json").write_text(json.dumps(METRICS))
    (out / "log.jsonl").write_text(json.dumps({"header": HEADER}) + "\n")
    return out


def names(folder: str | Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file())


def test_a_run_is_pushed_and_reloads_by_id_byte_for_byte(hub: Hub, run: Path) -> None:
    sent = push(run, "me/tiny", message="first", endpoint=hub.url)
    assert [name for name, _ in sent] == SENT == sorted(hub.repos["me/tiny"].files)
    assert hub.repos["me/tiny"].private
    assert hub.messages == ["first"]
    folder = snapshot_download("me/tiny", endpoint=hub.url)
    assert names(folder) == SENT
    for name, size in sent:
        read = Path(folder, name).read_bytes()
        here = next((path for path in (run / "model" / name, run / name) if path.exists()), None)
        assert len(read) == size and (here is None or read == here.read_bytes())
    assert torch.equal(load_file(Path(folder, "open_clip_model.safetensors"))["weight"], torch.arange(4096.0))
    parts = [request for request in hub.requests if request.startswith("PUT")]
    assert len(parts) >= 5  # four full parts and the rest, besides the adapters


def test_a_model_folder_alone_can_be_pushed_to_a_public_repository(hub: Hub, run: Path) -> None:
    sent = push(run / "model", "me/tiny", private=False)
    assert "recipe.yaml" not in dict(sent) and "open_clip_model.safetensors" in dict(sent)
    assert not hub.repos["me/tiny"].private


def test_a_dry_run_lists_names_and_sizes_and_contacts_nothing(
    hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    sent = dict(push(run, "me/tiny", dry_run=True))
    assert sorted(sent) == SENT
    assert sent["open_clip_model.safetensors"] == (run / "model/open_clip_model.safetensors").stat().st_size
    assert hub.requests == []


def test_pushing_again_sends_only_what_changed_and_removes_what_is_gone(hub: Hub, run: Path) -> None:
    push(run, "me/tiny")
    before = hub.requests.copy()
    push(run, "me/tiny")
    assert not any(request.startswith("PUT") for request in hub.requests[len(before) :])
    for path in (run / "model/text_adapter").iterdir():
        path.unlink()
    push(run, "me/tiny")
    assert sorted(hub.repos["me/tiny"].files) == [
        name for name in SENT if not name.startswith("text_adapter")
    ]


def test_a_public_repository_is_not_pushed_to_when_private_is_asked_for(hub: Hub, run: Path) -> None:
    push(run, "me/tiny", private=False)
    head = hub.repos["me/tiny"].head
    with pytest.raises(PushError, match="me/tiny exists and is public; make it private"):
        push(run, "me/tiny")
    assert hub.repos["me/tiny"].head == head


@pytest.mark.parametrize(
    ("name", "text", "kind"),
    [
        ("recipe.yaml", "out: x\n# mine: hf_" + "a1" * 16, "a Hub token"),
        ("metrics.json", "[]\nAKIA" + "ABCDEFGH12345678", "an API key"),
        ("model/tokenizer.json", '{\n"api_key": "0123456789abcdef0123"}', "a password or key"),
        ("model/vocab.txt", "a\nhttps://me:pa55word@example.org/x", "a password in an address"),
        ("model/README.md", "#\n-----BEGIN OPENSSH PRIVATE KEY-----", "a private key"),
        ("model/merges.txt", "a b\nloopback-token", "your own login token"),
    ],
)
def test_a_secret_is_refused_by_file_and_line_and_never_shown(
    hub: Hub, run: Path, name: str, text: str, kind: str
) -> None:
    (run / name).write_text(text)
    with pytest.raises(PushError) as told:
        push(run, "me/tiny")
    assert f"{name}:2: this looks like {kind}" in str(told.value)
    assert text.split("\n")[1] not in str(told.value)
    assert hub.requests == []


def test_a_link_out_of_the_folder_is_refused(hub: Hub, run: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.json"
    outside.write_text("{}")
    (run / "model/extra.json").symlink_to(outside)
    with pytest.raises(PushError, match=r"extra\.json: this is a link to .*outside\.json"):
        push(run, "me/tiny")
    assert hub.requests == []


def test_a_folder_linked_from_outside_is_not_walked(hub: Hub, run: Path, tmp_path: Path) -> None:
    (tmp_path / "private").mkdir()
    (tmp_path / "private/mine.json").write_text("{}")
    (run / "model/private").symlink_to(tmp_path / "private")
    assert [name for name, _ in push(run, "me/tiny", dry_run=True)] == SENT


@pytest.mark.parametrize("repo", ["tiny", "a/b/c", "me/ti ny", "me/../x", "", "-me/x"])
def test_a_wrong_name_is_told(run: Path, repo: str) -> None:
    with pytest.raises(PushError, match="is no name of a repository; write owner/name"):
        push(run, repo, dry_run=True)


def test_what_is_no_model_is_told(tmp_path: Path) -> None:
    with pytest.raises(PushError, match="there is no such folder"):
        push(tmp_path / "nowhere", "me/tiny", dry_run=True)
    (tmp_path / "model.bin").write_bytes(b"pickle")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(PushError, match="this is no saved model"):
        push(tmp_path, "me/tiny", dry_run=True)


def test_nobody_logged_in_is_told(hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(PushError, match="nobody is logged in"):
        push(run, "me/tiny")
    assert hub.requests == []


def test_a_wrong_token_is_told_and_not_printed(hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrongwrongwrongwrongwrong")
    with pytest.raises(PushError, match=r"me/tiny: the Hub does not accept the login \(401\)") as told:
        push(run, "me/tiny")
    assert "hf_wrong" not in str(told.value)


def test_somebody_elses_repository_is_told(hub: Hub, run: Path) -> None:
    with pytest.raises(PushError, match=r"you/tiny: the login may not write there \(403\)"):
        push(run, "you/tiny")


@pytest.mark.parametrize("call", ["/commit/", "/preupload/", "objects/batch", "/storage/"])
def test_a_refusal_on_the_way_is_one_sentence(hub: Hub, run: Path, call: str) -> None:
    hub.fail("PUT" if call == "/storage/" else "POST", call, 403, times=99)
    with pytest.raises(PushError, match=r"^me/tiny: the login may not write there \(403\).*\Z") as told:
        push(run, "me/tiny")
    assert "\n" not in str(told.value)
    assert hub.repos["me/tiny"].files == {}


def test_stumbles_and_broken_connections_are_tried_again(hub: Hub, run: Path) -> None:
    hub.fail("POST", "/repos/create", 503)
    hub.fail("POST", "/commit/", 500)
    hub.fail("PUT", "/storage/", "drop")
    push(run, "me/tiny")
    assert sorted(hub.repos["me/tiny"].files) == SENT
    assert hub.requests.count("POST /api/models/me/tiny/commit/main") == 2
    assert (
        hub.read("me/tiny", "open_clip_model.safetensors")
        == (run / "model/open_clip_model.safetensors").read_bytes()
    )


def test_a_hub_that_stays_down_is_told(hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlalign.models.hub.WAITS", (0, 0))
    hub.fail("POST", "/repos/create", 500, times=99)
    with pytest.raises(PushError, match="me/tiny: the Hub answered 500 .*try again later"):
        push(run, "me/tiny")


def test_no_network_is_told(hub: Hub, run: Path) -> None:
    hub.__exit__()
    with pytest.raises(PushError, match="me/tiny: the Hub at http://127.0.0.1:.* cannot be reached"):
        push(run, "me/tiny")


def card_of(run: Path, hub: Hub, **more: str) -> str:
    push(run, "me/tiny", **more)
    return hub.read("me/tiny", "README.md").decode()


def test_the_card_is_indexed_by_the_hub(hub: Hub, run: Path) -> None:
    text = card_of(run, hub)
    data = YAML(typ="safe").load(text.split("---\n")[1])
    assert data["library_name"] == "open_clip"
    assert data["pipeline_tag"] == "zero-shot-image-classification"
    assert data["license"] == "other" and data["license_name"]
    assert {"vlalign", "lora"} <= set(data["tags"])
    (result,) = data["model-index"][0]["results"]
    assert result["dataset"]["name"] == "emoji/unseen_concepts"
    assert result["metrics"] == [{"type": "text_to_image_R@10", "value": 0.4512}]
    ModelCard(text).validate()
    assert ModelCard(text).data.eval_results[0].metric_value == 0.4512


def test_the_card_tells_people_what_it_is_made_of(hub: Hub, run: Path) -> None:
    text = card_of(run, hub, licence="apache-2.0")
    assert "license: apache-2.0" in text and "stated no licence" not in text
    assert "| emoji/unseen_concepts | retrieval | text_to_image_R@10 | 0.4512 | 0.027 |" in text
    assert "| emoji/unseen_concepts | retrieval | spread | nan |  |" in text
    assert r"| Noto \| emoji | Apache-2.0 | npm:emoji-datasource |" in text
    assert "\n## Data\n" in text and "open_clip's own model has no layers `q_proj`" in text
    assert 'vlalign.load("me/tiny")' in text and "hf-hub:me/tiny" in text
    assert (
        "`dual_encoder`, image tower `timm` (resnet18), text tower `hf_text`; 300 steps of 64 pairs" in text
    )
    assert "objective `info_nce`" in text and RECIPE.strip() in text and "- torch 2.14.1" in text


def test_the_card_of_other_layouts(hub: Hub, run: Path) -> None:
    model = run / "model"
    (model / "open_clip_config.json").rename(model / "config.json")
    (model / "open_clip_model.safetensors").rename(model / "model.safetensors")
    assert "library_name: vlalign" in card_of(run, hub)
    (model / "config.json").write_text('{"model_type": "clip"}')
    text = card_of(run, hub)
    assert "library_name: transformers" in text and "AutoModel.from_pretrained" in text
    assert "import open_clip" not in text


def test_a_card_of_ones_own_goes_as_it_is(hub: Hub, run: Path) -> None:
    (run / "model/README.md").write_text("---\nlicense: mit\n---\n# mine\n")
    assert card_of(run, hub) == "---\nlicense: mit\n---\n# mine\n"


def test_a_card_that_the_hub_refuses_is_told(hub: Hub, run: Path) -> None:
    (run / "model/README.md").write_text("# no metadata\n")
    with pytest.raises(
        PushError, match=r"refused the upload: Invalid metadata in README\.md\. - the metadata"
    ):
        push(run, "me/tiny")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("metrics.json", "{"),
        ("metrics.json", '[{"task": 1}]'),
        ("log.jsonl", "[]\n"),
        ("recipe.yaml", "a: ["),
    ],
)
def test_files_that_no_card_can_be_read_from_are_told(hub: Hub, run: Path, name: str, text: str) -> None:
    (run / name).write_text(text)
    with pytest.raises(PushError, match="no card can be written from"):
        push(run, "me/tiny")


def test_the_command_pushes_through_the_environment(hub: Hub, run: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "push.yaml"
    recipe.write_text(f"verb: push\nmodel: {run}\nrepo: me/tiny\n")
    ordinary = {
        "HF_ENDPOINT": hub.url,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(tmp_path),
        "NO_PROXY": "127.0.0.1",
    }

    def command(token: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "vlalign", "push", str(recipe)]
        return subprocess.run(
            line, env=os.environ | ordinary | {"HF_TOKEN": token}, capture_output=True, text=True
        )

    refused = command("hf_wrong")
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1 and "(401)" in refused.stderr
    pushed = command(hub.token)
    assert pushed.returncode == 0 and hub.token not in pushed.stdout + pushed.stderr
    assert sorted(hub.repos["me/tiny"].files) == SENT
