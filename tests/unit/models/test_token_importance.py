"""Measures of importance of a frozen language model's layers, for the tokens of captions."""

import pytest
import torch

from tests.language_models import language_model, tokenizer
from vlalign.models import causal
from vlalign.registry import IMPORTANCES, REFERENCES
from vlalign.specs import LayerPass
from vlalign.types import DataError, UserError

CPU = torch.device("cpu")
TEXTS = [["a red car", "a cat"], ["a small cat near a tree"], ["the dog"]]


class Process:
    """What a captioner makes of texts."""

    tokenizer, length = tokenizer(), 64

    def written(self, caption):
        return self.tokenizer(caption)["input_ids"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("lm")
    language_model(place, "llama", seed=3)
    return str(place)


class Source(list):
    def captions(self, index):
        return self[index]


def built(folder, **fields):
    told = {"name": "token_importance", "model": folder, "by": "attention_concentration", **fields}
    spec = REFERENCES.decode(told)
    return spec.build(Process(), Source(TEXTS), CPU)


@pytest.mark.parametrize("layer", [0, -1])
@pytest.mark.parametrize("name", IMPORTANCES.names())
def test_scores_are_those_of_transformers_hidden_states_and_attention(name, layer, folder):
    import transformers

    net = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    words = [caption for row in TEXTS for caption in row]
    captions = [Process().written(each) for each in words]
    every = [id for each in captions for id in each]
    found = built(folder, by=name, layer=layer)(captions)
    for ids, scores in zip(captions, found, strict=True):
        whole = torch.tensor([causal.first(tokenizer()), *ids])
        with torch.no_grad():
            seen = net.model(whole[None], output_hidden_states=True, output_attentions=True)
            states = list(seen.hidden_states)
            states[-1] = net.model.layers[-1](  # transformers tells the last after its norm
                states[-2],
                attention_mask=torch.full((len(whole),) * 2, -torch.inf).triu(1)[None, None],
                position_embeddings=net.model.rotary_emb(states[-2], torch.arange(len(whole))[None]),
            )
        at = layer % len(net.model.layers)
        told = LayerPass(
            ids=whole,
            counts=torch.tensor([every.count(id) for id in whole.tolist()]),
            before=states[at][0],
            after=states[at + 1][0],
            attention=seen.attentions[at][0],
        )
        wanted = IMPORTANCES.decode(name)(told)[1:].float()
        assert scores.dtype is torch.float32 and len(scores) == len(ids)
        torch.testing.assert_close(scores, wanted, atol=1e-5, rtol=1e-4)


def test_the_model_stays_as_it_was_and_every_choice_has_its_own_numbers_in_the_cache(folder):
    own = built(folder)
    before = own.model.net.config._attn_implementation
    own([[3, 4, 5]])
    assert own.model.net.config._attn_implementation == before
    assert not any(each.requires_grad for each in own.model.parameters())
    others = [{}, {"layer": 0}, {"by": "activation_norm"}, {"dtype": "bfloat16"}, {"pretrained": False}]
    others.append({"by": {"name": "attention_concentration", "per_reader": True}})
    assert len({built(folder, **each).digest for each in others}) == len(others)
    assert built(folder).digest == own.digest
    few = own.spec.build(Process(), Source(TEXTS[:2]), CPU)
    assert few.digest != own.digest


def test_a_token_that_the_model_has_not_is_refused(folder):
    with pytest.raises(DataError, match="a caption has the token 99999, and .* has [0-9]+; leave such"):
        built(folder)([[3, 99999]])


@pytest.mark.parametrize("layer", [-9, 9])
def test_a_layer_that_is_not_there_is_refused(layer, folder):
    with pytest.raises(UserError, match=f"data.reference: .* has [0-9]+ layers, got layer {layer}"):
        built(folder, layer=layer)
