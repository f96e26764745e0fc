import open_clip
import pytest
import torch

from vlalign.evals.prompts import class_names, classifier, fill, places, templates
from vlalign.types import DataError, UserError

CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 1},
}


class Tokenizer:
    """open_clip's, remembering what it has read: reading 80,000 prompts twice is most of this test's time."""

    def __init__(self):
        self.read, self.known = open_clip.SimpleTokenizer(context_length=77), {}

    def __call__(self, texts):
        if new := [text for text in texts if text not in self.known]:
            self.known |= zip(new, self.read(new), strict=True)
        return torch.stack([self.known[text] for text in texts])


class OpenClip:
    """The text side of an open_clip model, in batches."""

    def __init__(self, model, tokenizer):
        self.model, self.tokenizer = model, tokenizer

    @torch.no_grad()
    def encode_text(self, texts):
        parts = [self.tokenizer(texts[i : i + 1024]) for i in range(0, len(texts), 1024)]
        return torch.cat([self.model.encode_text(tokens, normalize=True) for tokens in parts])


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return open_clip.CLIP(**CONFIG).eval()


def test_1000_names_by_80_templates_equal_open_clip(model):
    names, wording = class_names("imagenet"), templates("imagenet")
    assert (len(names), len(wording)) == (1000, 80)
    tokenizer = Tokenizer()
    found = classifier(OpenClip(model, tokenizer), names, wording)
    theirs = open_clip.build_zero_shot_classifier(
        model, tokenizer, names, open_clip.OPENAI_IMAGENET_TEMPLATES, num_classes_per_batch=50
    )
    assert (found - theirs.T).abs().max() < 1e-5


def test_places_of_names_and_numbers():
    assert places(["b", "a"], ["a", "b"]).tolist() == [1, 0]
    assert places(["1", "0"], ["a", "b"]).tolist() == [1, 0]
    assert places(["3", "1"], ["1", "2", "3"]).tolist() == [2, 0]  # these are names
    with pytest.raises(DataError, match="'b' is a class name, and others are numbers"):
        places(["0", "b"], ["a", "b"])


def test_filling_a_template_evaluates_nothing():
    assert fill("a {c} {0.__class__}", "cat {c}") == "a cat {c} {0.__class__}"
    assert fill("a {}.", "cat") == "a cat."


def test_files_of_names(tmp_path):
    (tmp_path / "names.txt").write_text("one\n two \n\n", encoding="utf-8")
    assert class_names(str(tmp_path / "names.txt")) == ["one", "two"]
    assert templates("simple") == ["a photo of a {c}."]


def test_a_file_that_is_no_utf8_is_told_by_its_path(tmp_path):
    (tmp_path / "names.txt").write_bytes("Gem\u00fcse\n".encode("latin-1"))
    with pytest.raises(DataError, match="names.txt: cannot be read: it is not UTF-8 text: .*byte 0xfc"):
        class_names(str(tmp_path / "names.txt"))


def test_a_template_without_a_place_is_the_users_mistake():
    with pytest.raises(UserError, match="'a photo' has no place for a class name"):
        templates(["a photo"])
