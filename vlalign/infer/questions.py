"""What a judge behind an endpoint is asked, as messages of a chat, and what its first token says.

Shapes: `top` is what an endpoint told of one token, pairs of a word and its log-probability, any number.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from math import exp, inf, log
from typing import Any, NamedTuple

from vlalign.models.prompts import PLACES, TemplateSpec
from vlalign.types import BadRow, Item, UserError

Parts = list[dict[str, Any]]  # {"type": "text", "text"} | {"type": "image_url", "image_url": {"url"}}
Top = Sequence[tuple[str, float]]
RATINGS = ("1", "2", "3", "4", "5")
UNTOLD = -9999.0  # stands for any log-probability too low to be told


class Demonstration(NamedTuple):
    """A labelled pair that a judge is shown before the one that it is asked about."""

    query: Item
    candidate: Item
    right: bool


def messages(prompt: TemplateSpec) -> list[dict[str, str]]:
    """Its conversation, places unfilled. Raises ValueError where it is none, or goes on into the answer."""
    said: list[dict[str, str]] = []

    def chat(told: Sequence[Mapping[str, str]]) -> str:
        said.extend(map(dict, told))
        return ""

    if prompt.whole(chat) or not said:
        raise ValueError(
            "prompt must be a conversation that ends before the answer, as `chat`, `unime` and `mono_qwen` "
            "are without `after`: the endpoint's own template writes what stands around it"
        )
    return said


def filled(
    said: Sequence[Mapping[str, str]],
    instruction: str,
    query: Parts,
    document: Parts,
    before: Sequence[tuple[Parts, Parts, str]] = (),
) -> list[dict[str, Any]]:
    """The same with its places filled; a message without pictures is plain text.

    `before`: other queries and documents, with the assistant's answers to them: turns of the same
    conversation, which follow its system message and end before the question.
    """
    start = next((at for at, each in enumerate(said) if each["role"] != "system"), len(said))
    told = _turn(said[:start], instruction, query, document)
    for asked, shown, answer in before:
        told += [*_turn(said[start:], instruction, asked, shown), {"role": "assistant", "content": answer}]
    return told + _turn(said[start:], instruction, query, document)


def parts(item: Item) -> Parts:
    """An item as parts of a message, pictures before its words. Raises BadRow."""
    shown: Parts = [{"type": "image_url", "image_url": {"url": data_url(each)}} for each in item.images]
    return [*shown, text(item.text)]


def text(words: str) -> dict[str, Any]:
    """A part of a message. Half a surrogate pair, which no server would take, becomes a question mark."""
    return {"type": "text", "text": words.encode(errors="replace").decode()}


def data_url(image: Any) -> str:
    """A path or a PIL image as PNG, whole and upright. Raises BadRow."""
    from vlalign.infer.load import picture  # its models are heavy, and naming a judge imports this module

    out = io.BytesIO()
    try:
        picture(image).save(out, "PNG", compress_level=1)
    except UserError as error:
        raise BadRow("picture", str(error)) from error
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"


def top_words(answer: Any) -> Top:
    """What a chat completion tells of its first token; none where it holds no log-probabilities.

    Words are lower case, without the space or the mark of one around them; several tokens may say one word.
    Raises AttributeError, LookupError or TypeError where it is no chat completion.
    """
    told = answer.choices[0].logprobs
    first = told.content[0].top_logprobs if told and told.content else []
    return [(word(each.token), each.logprob) for each in first if UNTOLD < each.logprob < inf]


def word(token: str) -> str:
    """What a token says. Vocabularies mark a space before it as \u2581 or \u0120."""
    return token.strip(" \t\r\n\u2581\u0120").lower()


def yes_no(top: Top, yes: str, no: str) -> float:
    """log p(yes) - log p(no), each summed over its spellings: the logit of p(yes) among the two.

    Gu et al. 2025, https://arxiv.org/abs/2510.13515. A word that is not told is no likelier than the least
    told token, and counts as that: the difference is then a bound, and the true one farther from 0. Raises
    BadRow where that says nothing: neither word is likelier than the least told token, or a token is told
    that the missing word may begin with.
    """
    sums, least = _sums(top, (yes, no)), min(each for _, each in top)
    missing = [each for each in (yes, no) if each not in sums]
    if any(said and each.startswith(said) for each in missing for said, _ in top):
        raise _no_answer(top, (yes, no))
    return sums.get(yes, least) - sums.get(no, least)


def likert(top: Top) -> float:
    """The expected rating, over those that are told: sum_d d p(d) / sum_d p(d), in [1, 5].

    Ye and Ng 2024, https://arxiv.org/abs/2409.00935. Those that are not told are each no likelier than the
    least told token, and left out. Raises BadRow where no rating is likelier than that.
    """
    sums = _sums(top, RATINGS)
    shares = {rating: exp(each - max(sums.values())) for rating, each in sums.items()}
    return sum(int(rating) * share for rating, share in shares.items()) / sum(shares.values())


def _turn(
    said: Sequence[Mapping[str, str]], instruction: str, query: Parts, document: Parts
) -> list[dict[str, Any]]:
    places = {"instruction": [text(instruction)], "query": query, "document": document}
    return [{"role": each["role"], "content": _content(each["content"], places)} for each in said]


def _content(words: str, places: Mapping[str, Parts]) -> Any:
    split = enumerate(PLACES.split(words))  # words and places by turns
    pieces = [part for index, piece in split for part in (places[piece] if index % 2 else [text(piece)])]
    content: Parts = []
    for piece in pieces:
        if content and piece["type"] == content[-1]["type"] == "text":
            content[-1] = text(content[-1]["text"] + piece["text"])
        else:
            content.append(piece)
    if len(content) == 1:
        return content[0].get("text", content)
    return [piece for piece in content if piece.get("text") != ""]


def _sums(top: Top, words: Sequence[str]) -> dict[str, float]:
    """log of the summed probability of each of the words that are told. Raises BadRow."""
    told = {said: [each for own, each in top if own == said] for said in words}
    sums = {
        said: max(own) + log(sum(exp(each - max(own)) for each in own)) for said, own in told.items() if own
    }
    most = max((each for own in told.values() for each in own), default=-inf)
    if len(sums) < len(words) and most <= min(each for _, each in top):
        raise _no_answer(top, words)
    return sums


def _no_answer(top: Top, words: Sequence[str]) -> BadRow:
    found = ", ".join(f"{said!r} {exp(each):.2g}" for said, each in sorted(top, key=lambda it: -it[1])[:3])
    return BadRow(
        "no_answer",
        f"the answer should begin with {' or '.join(words)}, and begins with {found}; word the prompt so "
        "that it does, and ask a model that does not think first",
    )
