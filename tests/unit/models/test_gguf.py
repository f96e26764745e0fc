"""A GGUF file of a package is made into a folder once: its numbers in bfloat16, its words, its answers."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from tests.language_models import language_model
from vlalign.models import causal
from vlalign.models.gguf import converted
from vlalign.models.packages import model_folder
from vlalign.types import UserError

gguf = pytest.importorskip("gguf")

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
TEXT = "a red car and a small cat"


def paired(weights: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of a head as llama.cpp turns them: neighbours together, where transformers has halves."""
    halves = weights.reshape(heads, 2, -1, weights.shape[1])
    return halves.transpose(1, 2).reshape(weights.shape)


def tensors(net: Any) -> dict[str, torch.Tensor]:
    """Of a llama, by the names that GGUF gives them."""
    config, model = net.config, net.model
    found = {"token_embd.weight": model.embed_tokens.weight, "output_norm.weight": model.norm.weight}
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for at, layer in enumerate(model.layers):
        for name, other in NAMES.items():
            weights = layer.get_submodule(name).weight
            found[f"blk.{at}.{other}.weight"] = paired(weights, heads[other]) if other in heads else weights
    return found


def written(folder: Path, path: Path) -> Path:
    """The GGUF file of a folder of transformers' llama."""
    net = transformers.LlamaForCausalLM.from_pretrained(folder)
    words, config = json.loads((folder / "tokenizer.json").read_text()), net.config
    path.parent.mkdir(parents=True, exist_ok=True)
    file = gguf.GGUFWriter(path, "llama")
    for name, value in (
        ("block_count", config.num_hidden_layers), ("context_length", config.max_position_embeddings),
        ("embedding_length", config.hidden_size), ("feed_forward_length", config.intermediate_size),
        ("head_count", config.num_attention_heads), ("head_count_kv", config.num_key_value_heads),
        ("vocab_size", config.vocab_size), ("layer_norm_rms_eps", config.rms_norm_eps),
        ("rope_freq_base", 10000.0), ("tokenizer_model", "gpt2"),
    ):  # fmt: skip
        getattr(file, f"add_{name}")(value)
    vocabulary = words["model"]["vocab"]
    special = {each["content"] for each in words["added_tokens"]}
    tokens = sorted(vocabulary, key=vocabulary.get)
    file.add_token_list(tokens)
    file.add_token_types([3 if each in special else 1 for each in tokens])
    file.add_token_merges([" ".join(each) for each in words["model"]["merges"]])
    file.add_bos_token_id(vocabulary["<|endoftext|>"])
    file.add_eos_token_id(vocabulary["<|im_end|>"])
    for name, weights in tensors(net).items():
        file.add_tensor(name, weights.detach().numpy())
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()
    return path


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package of one such file."""
    monkeypatch.setenv("VLALIGN_CACHE", str(tmp_path / "cache"))
    path = written(language_model(tmp_path / "base", "llama"), tmp_path / "site" / "tiny_gguf" / "tiny.gguf")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return path


def test_a_package_of_a_gguf_file_is_a_model_as_any_other(package: Path, tmp_path: Path) -> None:
    folder = Path(model_folder("package:tiny_gguf"))
    assert folder.parent == tmp_path / "cache" / "models" and folder.name.startswith("tiny-")
    net, words = causal.load("package:tiny_gguf", True, "float32")
    base = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "base")
    base.load_state_dict({name: weights.bfloat16() for name, weights in base.state_dict().items()})
    for name, weights in base.state_dict().items():
        assert torch.equal(net.state_dict()[name], weights), name
    own = transformers.AutoTokenizer.from_pretrained(tmp_path / "base")
    assert words(TEXT)["input_ids"] == own(TEXT)["input_ids"]
    assert words.convert_tokens_to_ids("<|im_end|>") == own.convert_tokens_to_ids("<|im_end|>")
    ids = torch.tensor([own(TEXT)["input_ids"]])
    with torch.no_grad():
        torch.testing.assert_close(net(ids).logits, base(ids).logits, atol=1e-5, rtol=1e-5)
    told = json.loads((folder / "config.json").read_text())
    assert told["dtype"] == "bfloat16" and "quantization_config" not in told


def test_it_is_converted_once_and_again_where_the_file_is_another(package: Path, tmp_path: Path) -> None:
    folder = converted(package)
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert converted(package) == folder and (folder / "model.safetensors").stat().st_mtime_ns == before
    written(language_model(tmp_path / "other", "llama", seed=1), package)
    assert converted(package) != folder
    names = [path.name for path in (tmp_path / "cache" / "models").iterdir() if path.is_dir()]
    assert len(names) == 2 and all(name.startswith("tiny-") for name in names)  # and nothing half made


def test_what_reads_it_is_named_where_it_is_missing(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(
        UserError, match=r"tiny.gguf: reading it needs another package; run: pip install gguf"
    ):
        model_folder("package:tiny_gguf")


def test_a_file_that_is_no_gguf_is_told_and_leaves_nothing(package: Path, tmp_path: Path) -> None:
    for content in (package.read_bytes()[:100], b"no GGUF"):
        package.write_bytes(content)
        with pytest.raises(UserError, match="tiny.gguf: (transformers cannot|it is no whole GGUF file)"):
            model_folder("package:tiny_gguf")
    assert not [path for path in (tmp_path / "cache" / "models").iterdir() if path.is_dir()]
