"""A language model that answers yes or no about a pair; only those two rows of its head are multiplied."""

from collections.abc import Iterable, Iterator, MutableMapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vlalign.models import causal
from vlalign.models.lists import ListPrompts, Lists, of_lists
from vlalign.models.lora import Lora
from vlalign.models.pictures import Picture
from vlalign.models.prompt import Prompt
from vlalign.models.prompts import Prompts
from vlalign.models.ranker import Ranker
from vlalign.models.reading import Reading, ends
from vlalign.models.reference import Reference, ReferredPrompts, of_beside
from vlalign.models.sight import Seen
from vlalign.types import Batch, PairScores


class Reranker(Ranker):
    """Prompts -> logits of two words. `net`: a causal language model of transformers; `spec` built it.

    Its vocabulary, embeddings and head, does not learn: so the rows of the two words can be kept apart, in
    float32, and stay what the saved model has, whether embeddings and head are tied or not.
    """

    answers: Tensor  # [2, width], or [1, width] without a no
    numbers: Tensor  # [9, width] of those of a list's candidates, or [0, width]
    digits: Tensor  # [10, width] of ratings, or [0, width]

    def __init__(
        self,
        net: Any,
        process: Prompts,
        lora: Lora | None,
        lists: Lists | None = None,
        reference: Reference | None = None,
    ) -> None:
        """Raises UserError for a model whose logits are more than hidden states times a head."""
        super().__init__(net, process)
        if lists is not None:
            self.taught = ListPrompts(process, lists)
            causal.refuse_longer(net, lists.length, "lists.length")
        if reference is not None:
            self.taught = ReferredPrompts(process, reference)
        self.reading = Reading(net, process.pictures)
        process.share &= self.reading.shares
        causal.refuse_bent_logits(net)
        causal.refuse_longer(net, process.length, "length")
        self.still = self.reading.still
        words = [process.template.yes, *([process.template.no] if process.template.no else [])]
        self.words = [process.answer(word) for word in words]
        for name, rows in self._rows().items():
            self.register_buffer(name, rows, persistent=False)
        self.register_load_state_dict_post_hook(_keep_rows)  # type: ignore[no-untyped-call]
        self.vocabulary = False  # whether the sum over all words is wanted
        for part in (net.get_input_embeddings(), net.get_output_embeddings()):
            part.requires_grad_(False)
        if lora is not None:
            net.get_decoder().requires_grad_(False)
            self.adapt(net.get_decoder(), lora)
        self.train()

    def forward(self, batch: Batch) -> PairScores:
        """Of each pair of a batch."""
        inputs = batch["pairs"]
        last = ends(self.reading.of_batch(inputs), inputs)
        found = self.answer(last)
        if len(self.digits):
            both = of_beside(inputs)
            beside = ends(self.reading.of_batch(both), both)
            return replace(found, ratings=self._rated(torch.stack([beside, last], 1)))
        if not len(self.numbers):
            return found
        lists = of_lists(inputs)
        last = ends(self.reading.of_batch(lists), lists)
        return replace(found, numbers=self._numbered(last, inputs["owner"]))

    def answer(self, last: Tensor) -> PairScores:
        """By the hidden state at the end of each prompt, [P, width]."""
        with torch.autocast(last.device.type, enabled=False):
            hidden, answers = last.float(), self.answers.float()
            yes = hidden @ answers[0]
            no = hidden @ answers[1] if len(answers) > 1 else torch.zeros_like(yes)
            # One product, for a difference of two large logits would lose digits.
            scores = hidden @ (answers[0] - answers[1]) if len(answers) > 1 else yes
        total = None
        if self.vocabulary:  # with these very logits, for no word is likelier than all
            own = torch.stack([yes, no][: len(answers)], 1)
            logits = self.net.get_output_embeddings()(last).float()
            total = logits.index_copy(1, torch.tensor(self.words, device=last.device), own).logsumexp(-1)
        return PairScores(scores, yes, no, total)

    def scores(
        self, read: Sequence[Prompt], batches: Iterable[list[int]], seen: MutableMapping[bytes, Seen]
    ) -> Tensor:
        """Of one query's prompts, read together where their places are, [C] on the CPU.

        `seen`: pictures by their digest, and those that are not yet there come in; the caller empties it when
        the weights change.
        """
        found = torch.zeros(len(read))
        for places, last in self._lasts(read, batches, seen):
            found[places] = self.answer(last).scores.cpu()
        return found

    def hidden(
        self, read: Sequence[Prompt], batches: Iterable[list[int]], seen: MutableMapping[bytes, Seen]
    ) -> Tensor:
        """The same, of the hidden states that the answers are read from, [C, width] float32 on the CPU."""
        found = torch.zeros(len(read), self.answers.shape[1])
        for places, last in self._lasts(read, batches, seen):
            found[places] = last.float().cpu()
        return found

    def _lasts(
        self, read: Sequence[Prompt], batches: Iterable[list[int]], seen: MutableMapping[bytes, Seen]
    ) -> Iterator[tuple[list[int], Tensor]]:
        """Places, and the hidden states at the end of their prompts."""
        process, device = self.process, self.device
        shared, prefix = process.shared(read), None
        for places in batches:
            some = [read[at] for at in places]
            inputs = {name: x.to(device) for name, x in process.join([some], [shared]).items()}
            both = [each.divided(shared) for each in some]
            if shared and prefix is None:
                prefix = self.reading.prefix(inputs, self._known(both[0][0], seen))
            own = self._known([each for _, after in both for each in after], seen)
            yield places, ends(self.reading.states(inputs, prefix, own), inputs)

    def _known(self, pictures: Sequence[Picture], seen: MutableMapping[bytes, Seen]) -> list[Seen] | None:
        sight = self.reading.sight
        return sight.known(pictures, seen, self.device) if sight is not None else None

    def _numbered(self, last: Tensor, owner: Tensor) -> Tensor:
        """The logit of each candidate's number, [P], by the hidden state at the end of each list."""
        counts = owner.bincount()
        places = torch.arange(len(owner), device=owner.device) - (counts.cumsum(0) - counts)[owner]
        with torch.autocast(last.device.type, enabled=False):
            return (last.float() @ self.numbers.float().T)[owner, places]

    def _rated(self, last: Tensor) -> Tensor:
        """The logit of each digit, [*, 10], by the hidden state at the end of each prompt."""
        with torch.autocast(last.device.type, enabled=False):
            return last.float() @ self.digits.float().T

    def _rows(self) -> dict[str, Tensor]:
        """Those of the head for all words, a copy: under ZeRO-3 the head is in pieces later."""
        head = self.net.get_output_embeddings().weight.detach()
        words = {name: getattr(self.taught, name, []) for name in ("numbers", "digits")}
        return {name: head[own].float() for name, own in {"answers": self.words, **words}.items()}

    def gradient_checkpointing(self) -> None:
        """Recompute activations; what prompts share is then read with each of them."""
        self.net.gradient_checkpointing_enable({"use_reentrant": False})
        self.process.share = False


def _keep_rows(model: Any, keys: Any) -> None:
    """After other weights were loaded; not by ZeRO-3, for whom the head is in pieces and does not learn."""
    if model.net.get_output_embeddings().weight.numel():
        for name, rows in model._rows().items():
            getattr(model, name).copy_(rows)
