"""Documents that a language model writes for queries, Askari et al. 2023, https://arxiv.org/abs/2305.02320."""

import json
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlalign.data.bad_rows import name_of
from vlalign.data.hashing import hash63
from vlalign.files import write_json, write_text
from vlalign.infer.parts import Parts
from vlalign.models import causal
from vlalign.ops.dist import launched, own_device
from vlalign.recipe.folder import claim, writing
from vlalign.recipe.synthesis import PLACE, SynthesizeRecipe
from vlalign.types import BadRow, UserError

TOGETHER = 16  # queries that are written for at once


def synthesize(recipe: SynthesizeRecipe, progress: Callable[[int], None] = lambda count: None) -> Path | None:
    """Write `out/{recipe.yaml, documents.jsonl}`; returns `out`, None where others are not done.

    A query that nothing was written for is told in `bad.json` with its reason. `progress` hears of queries
    that are done. Raises UserError.
    """
    out, (rank, world) = claim(recipe), launched()
    source: Any = recipe.data.build(recipe.limits)
    with writing(out):
        parts = Parts(out, rank, world)
    if todo := parts.todo(len(source)):
        writer = Writer(recipe)
        for start in range(0, len(todo), TOGETHER):
            some = todo[start : start + TOGETHER]
            for place, told in _written(writer, source, some).items():
                with writing(out):
                    parts.add(place, told)
            progress(len(some))
    found = parts.lines()
    if len(found) < len(source):
        return None  # the last process that ends finds all
    with writing(out):
        _finish(recipe, source, found, out)
    return out


def _written(writer: "Writer", source: Any, places: Sequence[int]) -> dict[int, dict[str, str]]:
    """What is to be kept of some rows, by place."""
    found: dict[int, dict[str, str]] = {}
    asked: dict[int, tuple[str, str, list[int]]] = {}
    for place in places:
        try:
            (text,) = source.captions(place)
            id = source.fields(place)["id"]
            asked[place] = id, text, writer.read(text)
        except BadRow as error:
            found[place] = {"id": name_of(source, place), "bad": error.reason}
    texts = writer.write([(id, ids) for id, _, ids in asked.values()]) if asked else ()
    for (place, (id, query, _)), text in zip(asked.items(), texts, strict=True):
        found[place] = {
            "id": id,
            **({"query": query, "document": text} if text else {"bad": "empty_document"}),
        }
    return found


def _finish(recipe: SynthesizeRecipe, source: Any, found: Mapping[int, Mapping[str, str]], out: Path) -> None:
    prompt = blake2b(recipe.prompt.encode(), digest_size=8).hexdigest()
    lines, bad = [], {}
    for place in range(len(source)):
        told, id = found[place], name_of(source, place)
        if told["id"] != id:
            raise UserError(
                f"data: row {place} is '{id}', and was '{told['id']}' when a document was written for it; "
                "bring those data back, or choose another folder with out=FOLDER"
            )
        if "bad" in told:
            bad[id] = told["bad"]
            continue
        own = {"query_id": id, "query": told["query"], "document": told["document"]}
        lines.append(json.dumps(own | {"generator": recipe.model, "prompt": prompt, "seed": recipe.seed}))
    write_text(out / "documents.jsonl", "".join(f"{line}\n" for line in lines))
    if bad:
        write_json(out / "bad.json", bad)


class Writer:
    """A causal language model that is asked the recipe's prompt."""

    def __init__(self, recipe: SynthesizeRecipe) -> None:
        """Raises UserError."""
        self.recipe, self.device = recipe, own_device()
        dtype = "bfloat16" if self.device.type == "cuda" else "float32"
        net, self.tokenizer = causal.load(recipe.model, True, dtype)
        self.net = net.to(self.device).eval()
        positions = getattr(net.config.get_text_config(), "max_position_embeddings", None)
        self.room = None if positions is None else positions - recipe.tokens
        self.special = sorted(self.tokenizer.get_added_vocab())

    def read(self, query: str) -> list[int]:
        """The tokens of the prompt. Raises BadRow: `no_text`, `too_long`."""
        if not query.strip():
            raise BadRow("no_text", "the query has no text")
        for name in self.special:  # as text: a query is no part of the conversation's form
            query = query.replace(name, f"{name[0]} {name[1:]}")
        text = self.recipe.prompt.replace(PLACE, query)
        chat = bool(self.tokenizer.chat_template)
        if chat:
            said = [{"role": "user", "content": text}]
            text = self.tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
        ids: list[int] = self.tokenizer(text, add_special_tokens=not chat)["input_ids"]
        if self.room is not None and len(ids) > self.room:
            raise BadRow("too_long", f"{len(ids)} tokens are asked, and there is room for {self.room}")
        return ids

    @torch.inference_mode()
    def write(self, asked: Sequence[tuple[str, list[int]]]) -> list[str]:
        """A text for each id and prompt; nothing but white space becomes an empty one."""
        width = max(len(ids) for _, ids in asked)
        pad = self.tokenizer.pad_token_id
        ids = torch.tensor(
            [[pad] * (width - len(own)) + own for _, own in asked]
        )  # the end is where all go on
        mask = torch.tensor([[0] * (width - len(own)) + [1] * len(own) for _, own in asked])
        drawn = [Drawn(self.recipe, [id for id, _ in asked])] if self.recipe.temperature else []
        out = self.net.generate(
            input_ids=ids.to(self.device),
            attention_mask=mask.to(self.device),
            max_new_tokens=self.recipe.tokens,
            do_sample=False,
            num_beams=1,
            pad_token_id=pad,
            logits_processor=drawn,
        )
        texts = self.tokenizer.batch_decode(out[:, width:], skip_special_tokens=True)
        return [text.strip() for text in texts]


class Drawn:
    """Noise on the logits by which the likeliest token is one that is drawn at the recipe's temperature.

    Gumbel's trick, so that a query has its own random numbers, whoever stands beside it.
    """

    def __init__(self, recipe: SynthesizeRecipe, ids: Sequence[str]) -> None:
        self.temperature = recipe.temperature
        self.generators = [torch.Generator().manual_seed(hash63(recipe.seed, id)) for id in ids]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Tokens so far [B, T] and logits of the next one [B, V] -> [B, V], float32."""
        noise = [-torch.empty(scores.shape[1]).exponential_(generator=own).log() for own in self.generators]
        return scores.float() / self.temperature + torch.stack(noise).to(scores.device)
