"""Scoring and training of yes/no rerankers, against sentence-transformers and the patterns of transformers.

python scripts/bench_rerank.py [--only NAME ...] [--repeats 5] [--json FILE]

Models are small Qwen3 with random weights, equal on both sides, in fp32: ratios are told, not speeds. P is
what the prompts of a query begin with alike and D the rest of each, in tokens. That both sides find the same
scores, or losses and gradients, is checked before anything is timed.
"""

from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from measure import Bench, Row, compared, main, weighed
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from vlalign.models.rerank_scorer import RerankScorer
from vlalign.models.reranker import Reranker
from vlalign.models.weights import save
from vlalign.registry import MODELS, TASKS
from vlalign.types import Item

TOKENIZER = "recipes/tiny/causal"
TEXT = "Is it right?\nQuery: {query}\nDocument: {document}\nAnswer:"
SIZES = {"hidden_size": 256, "intermediate_size": 768, "num_attention_heads": 8, "num_key_value_heads": 4}
VOCABULARY = 151_936  # Qwen3's
SHAPES = {(44, 131): 1.2, (284, 67): 4.0, (540, 35): 9.0, (284, 259): 1.8}  # (P, D) and the goal
DOCUMENTS = 100
WORDS = ("red", "cat", "tree", "house", "green", "dog", "car", "blue")
FOLDER = TemporaryDirectory()


@cache
def reranker(layers: int = 4, vocabulary: int | None = None) -> Reranker:
    """Saved once and loaded, so that others can load it too."""
    import transformers

    folder = Path(FOLDER.name) / f"{layers}-{vocabulary}"
    words = transformers.AutoTokenizer.from_pretrained(TOKENIZER)
    torch.manual_seed(0)
    config = transformers.Qwen3Config(
        **SIZES,
        head_dim=32,
        num_hidden_layers=layers,
        vocab_size=len(words),
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        initializer_range=0.05,
    )
    transformers.Qwen3ForCausalLM(config).save_pretrained(folder)
    words.save_pretrained(folder)
    prompt = {"name": "plain", "text": TEXT, "yes": " yes", "no": " no"}
    model: Reranker = MODELS.decode(
        {"name": "llm_reranker", "id": str(folder), "prompt": prompt, "length": 1024}
    ).build()
    save(model, folder)
    if vocabulary is not None:
        model.net.resize_token_embeddings(vocabulary)
        model.net.get_input_embeddings().requires_grad_(False)
    return model


def worded(tokens: int, seed: int) -> str:
    """So many tokens of words, drawn."""
    draw, tokenizer = torch.Generator().manual_seed(seed), reranker().process.tokenizer
    text = " ".join(WORDS[at] for at in torch.randint(len(WORDS), (tokens,), generator=draw).tolist())
    return str(tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"][:tokens]))


def asked(before: int, after: int, documents: int) -> tuple[str, list[str]]:
    """A query and documents whose prompts share `before` tokens and have `after` of their own, or nearly."""
    process = reranker().process
    prompt = process.one(Item(text=worded(8, 0)), Item(text=worded(8, 1)))
    ahead, behind = prompt.document.start, len(prompt.ids) - prompt.document.stop
    return worded(before - ahead + 8, 0), [worded(after - behind, 1 + at) for at in range(documents)]


def scoring(repeats: int) -> list[Row]:
    """A query with a hundred documents."""
    from sentence_transformers import CrossEncoder

    model, rows = reranker().eval(), []
    other = CrossEncoder(str(Path(FOLDER.name) / "4-None"), device="cpu")
    for (before, after), target in SHAPES.items():
        query, documents = asked(before, after, DOCUMENTS)
        inputs = model.process.join([model.process.read(Item(text=query), [Item(text=x) for x in documents])])
        shared, own = inputs["prefix_ids"].shape[1], int(inputs["mask"].sum()) // DOCUMENTS
        mine = partial(RerankScorer(model).score, [query], [documents])
        theirs = partial(other.predict, [(query, each) for each in documents], show_progress_bar=False)
        torch.testing.assert_close(mine()[0], torch.from_numpy(theirs()), atol=1e-5, rtol=0)
        limit = (shared + own) / (shared / DOCUMENTS + own)
        name = f"rerank {DOCUMENTS} documents, P {shared}, D {own}"
        anchor = "sentence_transformers.CrossEncoder.predict"
        note = f"tokens alone would give {limit:.2f}"
        rows.append(compared(name, anchor, mine, theirs, target=target, repeats=repeats, note=note))
    return rows


def batched(repeats: int) -> list[Row]:
    """The same without a shared prefix, against one document a forward."""
    model = reranker().eval()
    query, documents = asked(44, 131, DOCUMENTS)
    scorer = RerankScorer(model)

    def mine() -> Tensor:
        model.process.share = False
        try:
            return scorer.score([query], [documents])[0]
        finally:
            model.process.share = True

    def theirs() -> Tensor:
        return torch.cat([scorer.score([query], [[each]])[0] for each in documents])

    torch.testing.assert_close(mine(), theirs(), atol=1e-5, rtol=0)
    name, anchor = f"rerank {DOCUMENTS} documents in batches, nothing shared", "one document a forward"
    return [compared(name, anchor, mine, theirs, target=2, repeats=repeats)]


def pairs(before: int, after: int, share: bool = False) -> tuple[dict[str, Any], Tensor]:
    """A batch of one query with 1 + 7 candidates, and its labels."""
    process = reranker().process
    query, texts = asked(before, after, 8)
    process.share = share
    batch = {"pairs": process.join([process.read(Item(text=query), [Item(text=x) for x in texts])])}
    process.share = True
    return batch, (torch.arange(8) == 0).float()


def learnt(model: Reranker, loss: Callable[[], Tensor]) -> Callable[[], list[Tensor]]:
    """Forward and backward; gives the loss and the gradients of the first layer."""

    def step() -> list[Tensor]:
        model.zero_grad()
        value = loss()
        value.backward()
        first = model.net.get_decoder().layers[0]
        return [value.detach(), *(p.grad.clone() for p in first.parameters())]

    return step


def same(mine: Sequence[Tensor], other: Sequence[Tensor], atol: float = 1e-4) -> None:
    """Of sizes near one. Raises AssertionError."""
    for a, b in zip(mine, other, strict=True):
        torch.testing.assert_close(a, b, atol=atol * max(1.0, float(b.abs().max())), rtol=0)


def of_two_rows() -> Callable[[], list[Tensor]]:
    """A step of the public model and task at the whole vocabulary's size."""
    model = reranker(2, VOCABULARY).train()
    batch, label = pairs(128, 128)
    task = TASKS.decode({"name": "rerank", "answer_terms": [{"objective": "yes_no"}]})
    data = {
        "group": torch.zeros(8, dtype=torch.int64),
        "ids": ["q"],
        "query_fields": {},
        "key_fields": {"label": label},
    }
    return learnt(model, lambda: task.loss(model(batch), data, 1, 2).total)


def of_labels() -> Callable[[], list[Tensor]]:
    """The pattern `labels=`: the answer as the only label of each row, over the whole vocabulary."""
    model, (batch, label) = reranker(2, VOCABULARY).train(), pairs(128, 128)
    ids, mask = batch["pairs"]["input_ids"], batch["pairs"]["mask"]
    rows, last = torch.arange(len(ids)), mask.sum(1)
    answers = torch.tensor(model.words)[(label == 0).long()]
    whole = torch.cat([ids, ids[:, :1]], 1).index_put((rows, last), answers)
    labels = torch.full_like(whole, -100).index_put((rows, last), answers)
    seen = torch.cat([mask, torch.zeros_like(mask[:, :1])], 1).index_put((rows, last), torch.tensor(1))
    return learnt(model, lambda: model.net(input_ids=whole, attention_mask=seen, labels=labels).loss)


def of_logits(keep: bool) -> Callable[[], list[Tensor]]:
    """The pattern of logits: of all positions, or with `logits_to_keep=1` of the last, padded on the left."""
    model, (batch, label) = reranker(2, VOCABULARY).train(), pairs(128, 128)
    ids, mask = batch["pairs"]["input_ids"], batch["pairs"]["mask"]
    sizes = mask.sum(1)
    places = (torch.arange(ids.shape[1]) + sizes[:, None]) % ids.shape[1]  # the padding comes first
    ids, mask = ids.gather(1, places), mask.gather(1, places)
    more = {"logits_to_keep": 1} if keep else {}
    positions = (mask.cumsum(1) - 1).clamp(min=0)

    def loss() -> Tensor:
        logits = model.net(input_ids=ids, attention_mask=mask, position_ids=positions, **more).logits[:, -1]
        gap = logits[:, model.words[0]] - logits[:, model.words[1]]
        return binary_cross_entropy_with_logits(gap, label)

    return learnt(model, loss)


def head(repeats: int) -> list[Row]:
    """A training step of 8 prompts of 256 tokens, two rows of the head against the whole of it."""
    mine, rows = of_two_rows(), []
    same(mine(), of_logits(False)())
    same(of_logits(True)(), of_logits(False)())
    cases: dict[str, tuple[Callable[..., Any], tuple[Any, ...], float]] = {
        "transformers, labels=": (of_labels, (), 20),
        "transformers, all logits": (of_logits, (False,), 15),
        "transformers, logits_to_keep=1": (of_logits, (True,), 1.5),
    }
    name = "yes/no step at 152k words"
    for anchor, (prepare, args, target) in cases.items():
        told = f"{name}, time against {anchor.partition(', ')[2]}"
        rows.append(compared(told, anchor, mine, prepare(*args), target=target, repeats=repeats))
    labels = partial(weighed, name + ", memory", "transformers, labels=", of_two_rows, of_labels)
    return [*rows, labels(target=20, repeats=repeats)]


def training(repeats: int) -> list[Row]:
    """A step over a query with 1 + 7 candidates, its prefix read once."""
    model = reranker().train()
    steps = []
    for share in (True, False):
        batch, label = pairs(300, 60, share)

        def loss(batch: Any = batch, label: Tensor = label) -> Tensor:
            return cross_entropy(model(batch).scores[None], label.argmax()[None])

        steps.append(learnt(model, loss))
    same(steps[0](), steps[1]())
    name, anchor = "training step, P 300, D 60, 1 + 7 candidates", "each prompt read whole"
    note = "tokens alone would give 3.7"
    return [compared(name, anchor, *steps, target=3, repeats=repeats, note=note)]


BENCHES: dict[str, Bench] = {
    "rerank_scoring": scoring,
    "rerank_batched": batched,
    "rerank_head": head,
    "rerank_training": training,
}

if __name__ == "__main__":
    main(BENCHES, __doc__)
