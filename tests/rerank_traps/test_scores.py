"""A score is the model's own, whatever stands beside it in a batch."""

import itertools

import pytest
import torch

from tests.language_models import inputs, reranker
from vlalign.models.reading import ends
from vlalign.models.rerank_scorer import RerankScorer
from vlalign.types import UserError

QUERIES = ["a red car", "the small cat with a dog in the house", "yes"]
DOCUMENTS = ["a red car near a tree", "a cat", "Note that the answer can only be", "", "a dog " * 30]
FAMILIES = [("qwen3", True), ("qwen3", False), ("llama", True)]


def alone(model, query, document):
    """The difference of the whole model's own logits after the prompt, without padding or cache."""
    ids = torch.tensor([inputs(model, (query, [document]))["pairs"]["input_ids"][0].tolist()])
    logits = model.net(input_ids=ids).logits[0, -1].float()
    return logits[model.words[0]] - (logits[model.words[1]] if len(model.words) > 1 else 0)


@pytest.mark.parametrize("prompt", ["qwen3_reranker", "chat", "bge_gemma"])
@pytest.mark.parametrize(("family", "tied"), FAMILIES)
@torch.no_grad()
def test_01_scores_do_not_depend_on_batch_padding_order_or_sharing(family, tied, prompt, tmp_path):
    model = reranker(tmp_path, family, tied, prompt=prompt, length=256)
    expected = torch.stack([alone(model, q, d) for q in QUERIES for d in DOCUMENTS]).reshape(3, 5)
    assert expected.std() > 0.1  # or anything would be near it
    for share, tokens in itertools.product((True, False), (1, 300, 100_000)):
        model.process.share = share
        found = RerankScorer(model, tokens=tokens).score(QUERIES, [DOCUMENTS] * 3)
        torch.testing.assert_close(torch.stack(found), expected, atol=1e-5, rtol=0)
    together = model(inputs(model, *((query, DOCUMENTS) for query in QUERIES))).scores
    torch.testing.assert_close(together.reshape(3, 5), expected, atol=1e-5, rtol=0)
    order = [3, 1, 4, 0, 2]
    [turned] = RerankScorer(model).score(QUERIES[:1], [[DOCUMENTS[at] for at in order]])
    torch.testing.assert_close(turned, expected[0, order], atol=1e-5, rtol=0)


@torch.no_grad()
def test_07_scores_of_a_bf16_model_are_told_apart(tmp_path):
    """The difference of two bf16 logits has few values; that of two rows of the head, in float32, many."""
    model = reranker(tmp_path, dtype="bfloat16")
    documents = [f"a red car {number} near a tree" for number in range(100)]
    batch = inputs(model, ("a red car", documents))
    answer = model(batch)
    last = ends(model.reading.of_batch(batch["pairs"]), batch["pairs"])
    rounded = last @ model.answers.bfloat16().T
    assert last.dtype == torch.bfloat16 and answer.scores.dtype == torch.float32
    assert len(answer.scores.unique()) == 100 > len((rounded[:, 0] - rounded[:, 1]).unique())
    torch.testing.assert_close(answer.scores, answer.yes - answer.no, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_08_ranks_are_by_raw_logits(tmp_path):
    """A probability of 1 - 1e-9 and one of 1 - 1e-12 are the same float32; the logits are not."""
    model = reranker(tmp_path, "llama")
    plain = RerankScorer(model).score(QUERIES[:1], [DOCUMENTS])[0]
    model.answers[0] += 0
    model.answers.mul_(1000)
    large = RerankScorer(model).score(QUERIES[:1], [DOCUMENTS])[0]
    assert large.argsort().tolist() == plain.argsort().tolist()
    assert len(large.unique()) == len(DOCUMENTS) > len(large.sigmoid().unique())


def test_numbers_that_are_none_are_told(tmp_path):
    model = reranker(tmp_path)
    with torch.no_grad():
        next(iter(model.net.get_decoder().layers)).mlp.up_proj.weight.fill_(torch.nan)
    with pytest.raises(UserError, match="5 of 5 scores are not finite; look at the model's weights"):
        RerankScorer(model).score(QUERIES[:1], [DOCUMENTS])


def test_what_is_no_list_of_texts_is_told(tmp_path):
    scorer = RerankScorer(reranker(tmp_path))
    with pytest.raises(
        UserError, match="give lists of queries and of each one's candidates, got 'a red car'"
    ):
        scorer.score("a red car", [["a cat"]])
    with pytest.raises(UserError, match="expected a str, a Path or an Item, got int: 3"):
        scorer.score(["a red car"], [[3]])
    with pytest.raises(ValueError, match="expected candidates for each of 1 queries, got 0"):
        scorer.score(["a red car"], [])
    assert [len(x) for x in scorer.score(["a", "b"], [[], ["c"]])] == [0, 1]
    assert scorer.model.training is False
