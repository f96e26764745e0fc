"""Scoring and training of yes/no rerankers, against sentence-transformers, rerankers and transformers.

python scripts/bench_rerank.py [--only NAME ...] [--repeats 5] [--json FILE]

Models are small Qwen3 and Qwen3-VL with random weights, equal on both sides, in fp32: ratios are told, not
speeds. P is what the prompts of a query begin with alike and D the rest of each, in tokens. That both sides
find the same scores, or losses and gradients, is checked before anything is timed.
"""

from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from measure import Bench, Row, compared, main, weighed
from PIL import Image
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from vlalign.models.rerank_scorer import RerankScorer
from vlalign.models.reranker import Reranker
from vlalign.models.weights import save
from vlalign.registry import MODELS, TASKS
from vlalign.types import Item

TOKENIZER = "recipes/tiny/causal"
ASKED, ANSWER = "Is it right?\nQuery: {query}\nDocument:", "\nAnswer:"
PROMPT = {"name": "plain", "text": f"{ASKED} {{document}}{ANSWER}", "yes": " yes", "no": " no"}
SIZES = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 32, "max_position_embeddings": 1024}
VOCABULARY = 151_936  # Qwen3's
SHAPES = {(44, 131): 1.2, (284, 67): 4.0, (540, 35): 9.0, (284, 259): 1.8}  # (P, D) and the goal
LENGTHS = {(44, 131): 2.0, (44, 35): 2.0, (24, 12): 2.0}  # the same where nothing is shared
HEADS = ((256, 256), (128, 64), (64, 48))  # width and tokens of a prompt: the head's share differs
DOCUMENTS = 100
WORDS = ("red", "cat", "tree", "house", "green", "dog", "car", "blue")
SEES = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
SIDE = 512  # pixels: 256 tokens
FOLDER = TemporaryDirectory()


def sizes(layers: int, width: int, words: Any) -> dict[str, Any]:
    """Of a text model, as transformers names them."""
    shape = {"num_hidden_layers": layers, "hidden_size": width, "intermediate_size": 3 * width}
    return SIZES | shape | {"vocab_size": len(words), "initializer_range": 0.05, "tie_word_embeddings": True}


@cache
def reranker(layers: int = 4, width: int = 256, vocabulary: int | None = None) -> Reranker:
    """Saved once and loaded, so that others can load it too."""
    import transformers

    folder = Path(FOLDER.name) / f"{layers}-{width}"
    words = transformers.AutoTokenizer.from_pretrained(TOKENIZER)
    torch.manual_seed(0)
    config = transformers.Qwen3Config(**sizes(layers, width, words), pad_token_id=words.pad_token_id)
    transformers.Qwen3ForCausalLM(config).save_pretrained(folder)
    words.save_pretrained(folder)
    model = saved("llm_reranker", folder)
    if vocabulary is not None:
        model.net.resize_token_embeddings(vocabulary)
        model.net.get_input_embeddings().requires_grad_(False)
    return model


@cache
def seeing() -> Reranker:
    """A Qwen3-VL of as large a language model, and a tower half as wide."""
    import transformers

    folder, name = Path(FOLDER.name) / "sees", "<|vision_start|><|image_pad|><|vision_end|>"
    words = transformers.AutoTokenizer.from_pretrained(TOKENIZER)
    words.add_special_tokens({"additional_special_tokens": list(SEES)})
    start, end, image, video = words.convert_tokens_to_ids(list(SEES))
    patches = {"patch_size": 16, "temporal_patch_size": 2, "merge_size": 2}
    transformers.Qwen3VLProcessor(
        transformers.Qwen2VLImageProcessor(**patches),
        words,
        transformers.Qwen3VLVideoProcessor(**patches),
        chat_template="{% for message in messages %}{% for part in message.content %}{% if part.type == "
        f"'image' %}}{name}{{% else %}}{{{{ part.text }}}}{{% endif %}}{{% endfor %}}{{% endfor %}}",
    ).save_pretrained(folder)
    torch.manual_seed(0)
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [6, 5, 5], "mrope_interleaved": True}
    tower = {"depth": 4, "hidden_size": 128, "intermediate_size": 384, "num_heads": 4, "patch_size": 16}
    tower |= {"out_hidden_size": 256, "deepstack_visual_indexes": [0, 1], "num_position_embeddings": 1024}
    config = transformers.Qwen3VLConfig(
        text_config=sizes(4, 256, words) | {"rope_parameters": rope, "pad_token_id": words.pad_token_id},
        vision_config=tower,
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=start,
        vision_end_token_id=end,
        tie_word_embeddings=True,
    )
    transformers.Qwen3VLForConditionalGeneration(config).save_pretrained(folder)
    return saved("mllm_reranker", folder)


def saved(name: str, folder: Path) -> Reranker:
    """A reranker over the model in a folder, written into it as well."""
    model: Reranker = MODELS.decode(
        {"name": name, "id": str(folder), "prompt": PROMPT, "length": 1024}
    ).build()
    save(model, folder)
    return model


def worded(tokens: int, seed: int) -> str:
    """So many tokens of words, drawn."""
    draw, tokenizer = torch.Generator().manual_seed(seed), reranker().process.tokenizer
    text = " ".join(WORDS[at] for at in torch.randint(len(WORDS), (tokens,), generator=draw).tolist())
    return str(tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"][:tokens]))


def asked(
    before: int, after: int, documents: int, model: Reranker | None = None, *pictures: Image.Image
) -> tuple[Item, list[str]]:
    """A query and documents whose prompts share `before` tokens and have `after` of their own, or nearly."""
    process = (model or reranker()).process
    prompt = process.one(Item(text=worded(8, 0), images=pictures), Item(text=worded(8, 1)))
    ahead, behind = prompt.document.start, len(prompt.ids) - prompt.document.stop
    query = Item(text=worded(before - ahead + 8, 0), images=pictures)
    return query, [worded(after - behind, 1 + at) for at in range(documents)]


def lengths(model: Reranker, query: Item, documents: Sequence[str]) -> tuple[int, int, str]:
    """P, D and what fewer tokens alone would give, where a prefix is read once."""
    inputs = model.process.join([model.process.read(query, [Item(text=x) for x in documents])])
    shared, own = inputs["prefix_ids"].shape[1], int(inputs["mask"].sum()) // len(documents)
    limit = (shared + own) / (shared / len(documents) + own)
    return shared, own, f"tokens alone would give {limit:.2f}"


def scoring(repeats: int) -> list[Row]:
    """A query with a hundred documents."""
    from sentence_transformers import CrossEncoder

    model, rows = reranker().eval(), []
    other = CrossEncoder(str(Path(FOLDER.name) / "4-256"), device="cpu")
    for (before, after), target in SHAPES.items():
        query, documents = asked(before, after, DOCUMENTS)
        shared, own, note = lengths(model, query, documents)
        mine = partial(RerankScorer(model).score, [query], [documents])
        theirs = partial(other.predict, [(query.text, each) for each in documents], show_progress_bar=False)
        torch.testing.assert_close(mine()[0], torch.from_numpy(theirs()), atol=1e-5, rtol=0)
        name = f"rerank {DOCUMENTS} documents, P {shared}, D {own}"
        anchor = "sentence_transformers.CrossEncoder.predict"
        rows.append(compared(name, anchor, mine, theirs, target=target, repeats=repeats, note=note))
    return rows


def one_logit(repeats: int) -> list[Row]:
    """Against `rerankers`, whose readers of yes and no want a transformers before 5.

    Its cross-encoder reads the same model as one logit, the difference of the two rows, and whole prompts.
    """
    import transformers
    from rerankers import Reranker as Other

    model, folder = reranker().eval(), Path(FOLDER.name) / "one_logit"
    net = transformers.Qwen3ForSequenceClassification.from_pretrained(
        Path(FOLDER.name) / "4-256", num_labels=1
    )
    net.score.weight.data.copy_(model.answers[:1] - model.answers[1:])
    net.save_pretrained(folder)
    model.process.tokenizer.save_pretrained(folder)
    other = Other(str(folder), model_type="cross-encoder", device="cpu", dtype="float32", verbose=0)
    query, documents = asked(284, 67, DOCUMENTS)
    head, tails = ASKED.format(query=query.text), [f" {each}{ANSWER}" for each in documents]
    theirs = partial(other.rank, head, tails, doc_ids=list(range(DOCUMENTS)))
    mine = partial(RerankScorer(model).score, [query], [documents])
    by_place = sorted(theirs().results, key=lambda each: each.document.doc_id)
    torch.testing.assert_close(mine()[0], torch.tensor([each.score for each in by_place]), atol=1e-5, rtol=0)
    shared, own, note = lengths(model, query, documents)
    name = f"rerank {DOCUMENTS} documents, P {shared}, D {own}, as one logit"
    anchor = "rerankers.Reranker, cross-encoder"
    return [compared(name, anchor, mine, theirs, target=None, repeats=repeats, note=note)]


def picture(repeats: int) -> list[Row]:
    """The query is a picture with words, which ours looks at once a query and the other once a document."""
    from sentence_transformers import CrossEncoder

    model = seeing().eval()
    other = CrossEncoder(str(Path(FOLDER.name) / "sees"), device="cpu")
    small = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    image = Image.fromarray(small).resize((SIDE, SIDE), Image.Resampling.NEAREST)
    query, documents = asked(294, 24, DOCUMENTS, model, image)
    shared, own, note = lengths(model, query, documents)
    theirs = partial(
        other.predict,
        [({"text": query.text, "image": image}, each) for each in documents],
        show_progress_bar=False,
    )

    def mine() -> Tensor:
        return RerankScorer(model).score([query], [documents])[0]  # a new one, which has seen nothing

    torch.testing.assert_close(mine(), torch.from_numpy(theirs()), atol=1e-5, rtol=0)
    name = f"rerank {DOCUMENTS} documents by a picture of {SIDE} px, P {shared}, D {own}"
    anchor = "sentence_transformers.CrossEncoder.predict"
    return [compared(name, anchor, mine, theirs, target=12, repeats=repeats, note=note)]


def batched(repeats: int) -> list[Row]:
    """The same without a shared prefix, against one document a forward."""
    model, rows = reranker().eval(), []
    scorer, anchor = RerankScorer(model), "one document a forward"
    for (before, after), target in LENGTHS.items():
        query, documents = asked(before, after, DOCUMENTS)

        def mine(query: Item = query, documents: list[str] = documents) -> Tensor:
            model.process.share = False
            try:
                return scorer.score([query], [documents])[0]
            finally:
                model.process.share = True

        def theirs(query: Item = query, documents: list[str] = documents) -> Tensor:
            return torch.cat([scorer.score([query], [[each]])[0] for each in documents])

        torch.testing.assert_close(mine(), theirs(), atol=1e-5, rtol=0)
        shared, own, _ = lengths(model, query, documents)
        name = f"rerank {DOCUMENTS} documents of {shared + own} tokens in batches, nothing shared"
        note = "one long document keeps a CPU busy" if shared + own > 64 else ""
        rows.append(compared(name, anchor, mine, theirs, target=target, repeats=repeats, note=note))
    return rows


def pairs(before: int, after: int, share: bool = False) -> tuple[dict[str, Any], Tensor]:
    """A batch of one query with 1 + 7 candidates, and its labels."""
    process = reranker().process
    query, texts = asked(before, after, 8)
    process.share = share
    batch = {"pairs": process.join([process.read(query, [Item(text=x) for x in texts])])}
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


def of_two_rows(width: int, tokens: int) -> Callable[[], list[Tensor]]:
    """A step of the public model and task at the whole vocabulary's size."""
    model = reranker(2, width, VOCABULARY).train()
    batch, label = pairs(tokens // 2, tokens // 2)
    task = TASKS.decode({"name": "rerank", "answer_terms": [{"objective": "yes_no"}]})
    data = {
        "group": torch.zeros(8, dtype=torch.int64),
        "ids": ["q"],
        "query_fields": {},
        "key_fields": {"label": label},
    }
    return learnt(model, lambda: task.loss(model(batch), data, 1, 2).total)


def of_labels(width: int, tokens: int) -> Callable[[], list[Tensor]]:
    """The pattern `labels=`: the answer as the only label of each row, over the whole vocabulary."""
    model, (batch, label) = reranker(2, width, VOCABULARY).train(), pairs(tokens // 2, tokens // 2)
    ids, mask = batch["pairs"]["input_ids"], batch["pairs"]["mask"]
    rows, last = torch.arange(len(ids)), mask.sum(1)
    answers = torch.tensor(model.words)[(label == 0).long()]
    whole = torch.cat([ids, ids[:, :1]], 1).index_put((rows, last), answers)
    labels = torch.full_like(whole, -100).index_put((rows, last), answers)
    seen = torch.cat([mask, torch.zeros_like(mask[:, :1])], 1).index_put((rows, last), torch.tensor(1))
    return learnt(model, lambda: model.net(input_ids=whole, attention_mask=seen, labels=labels).loss)


def of_logits(width: int, tokens: int, keep: bool = False) -> Callable[[], list[Tensor]]:
    """The pattern of logits: of all positions, or with `logits_to_keep=1` of the last, padded on the left."""
    model, (batch, label) = reranker(2, width, VOCABULARY).train(), pairs(tokens // 2, tokens // 2)
    ids, mask = batch["pairs"]["input_ids"], batch["pairs"]["mask"]
    places = (torch.arange(ids.shape[1]) + mask.sum(1, keepdim=True)) % ids.shape[
        1
    ]  # the padding comes first
    ids, mask = ids.gather(1, places), mask.gather(1, places)
    more = {"logits_to_keep": 1} if keep else {}
    positions = (mask.cumsum(1) - 1).clamp(min=0)

    def loss() -> Tensor:
        logits = model.net(input_ids=ids, attention_mask=mask, position_ids=positions, **more).logits[:, -1]
        gap = logits[:, model.words[0]] - logits[:, model.words[1]]
        return binary_cross_entropy_with_logits(gap, label)

    return learnt(model, loss)


def head(repeats: int) -> list[Row]:
    """A training step of 8 prompts, two rows of the head against the whole of it; no vocabulary learns."""
    rows, keep = [], partial(of_logits, keep=True)
    cases: dict[str, tuple[Callable[..., Any], float]] = {
        "labels=": (of_labels, 20),
        "all logits": (of_logits, 15),
        "logits_to_keep=1": (keep, 1.5),
    }
    for width, tokens in HEADS:
        mine = of_two_rows(width, tokens)
        same(mine(), of_logits(width, tokens)())
        same(keep(width, tokens)(), of_logits(width, tokens)())
        name = f"yes/no step, 2 layers of width {width}, 152k words, 8 x {tokens} tokens"
        body = sum(p.numel() for p in reranker(2, width, VOCABULARY).net.get_decoder().layers.parameters())
        for pattern, (prepare, target) in cases.items():
            share = 4 * VOCABULARY * width / (6 * body)  # forward, and back to the states alone
            limit = 1 + share / (tokens if prepare is keep else 1)
            note = f"multiplications alone would give {limit:.3g}"
            told, theirs = f"{name}: time against {pattern}", prepare(width, tokens)
            anchor = f"transformers, {pattern}"
            rows.append(compared(told, anchor, mine, theirs, target=target, repeats=repeats, note=note))
        labels = partial(weighed, f"{name}: memory", "transformers, labels=", of_two_rows, of_labels)
        rows.append(labels(width, tokens, target=20, repeats=repeats))
    return rows


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
    "rerank_one_logit": one_logit,
    "rerank_picture": picture,
    "rerank_batched": batched,
    "rerank_head": head,
    "rerank_training": training,
}

if __name__ == "__main__":
    main(BENCHES, __doc__)
