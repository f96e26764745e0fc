"""A language model that writes captions, of pictures or alone; its head is multiplied where they stand."""

from collections.abc import Iterable, Iterator, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vlalign.models import causal, multimodal
from vlalign.models.caption_prompts import CaptionPrompts
from vlalign.models.lora import Lora
from vlalign.models.multimodal import Part
from vlalign.models.prompt import Prompt
from vlalign.models.ranker import Ranker
from vlalign.models.reading import Reading, ends
from vlalign.models.sight import Seen, Sight
from vlalign.types import Batch, TokenLogits

AT_ONCE = 512  # tokens whose logits are in memory where nothing learns


class CaptionModel(Ranker):
    """Pictures and captions -> logits of the captions' tokens. `net`: of transformers; `learn`: its parts.

    With `lora` the language model learns through adapters alone.
    """

    def __init__(
        self, net: Any, process: CaptionPrompts, learn: Sequence[Part], lora: Lora | None = None
    ) -> None:
        """Raises UserError for a model whose logits are more than hidden states times a head."""
        super().__init__(net, process)
        causal.refuse_bent_logits(net)
        causal.refuse_longer(net, process.length, "length")
        multimodal.choose(net, learn, lora)
        self.reading = Reading(net, process.pictures)
        self.sight, self.still = Sight(self.reading.body), self.reading.still
        if lora is not None:
            self.adapt(self.reading.decoder, lora)
        self.train()

    def forward(self, batch: Batch) -> TokenLogits:
        """Of each token of the captions of a batch."""
        inputs = batch["pairs"]
        states = self.reading.of_batch(inputs)
        logits = self.net.get_output_embeddings()(states[inputs["row"], inputs["place"]])
        return TokenLogits(logits, inputs["labels"], inputs["row"])

    def scores(
        self, read: Sequence[Prompt], batches: Iterable[list[int]], seen: MutableMapping[bytes, Seen]
    ) -> Tensor:
        """The mean log-probability of a caption's tokens, [C]."""
        return torch.tensor([-each.mean() for each in self.losses(read, batches, seen)])

    def losses(
        self, read: Sequence[Prompt], batches: Iterable[list[int]], seen: MutableMapping[bytes, Seen]
    ) -> list[Tensor]:
        """The cross-entropy of each token of each caption, float32 on the CPU. As `scores` reads them."""
        process, reading, device = self.process, self.reading, self.device
        shared, prefix = process.shared(read), None
        found = [torch.empty(0)] * len(read)
        for places in batches:
            some = [read[at] for at in places]
            inputs = {name: x.to(device) for name, x in process.join([some], [shared]).items()}
            both = [each.divided(shared) for each in some]
            if shared and prefix is None:
                prefix = reading.prefix(inputs, self.sight.known(both[0][0], seen, device))
            own = self.sight.known([each for _, after in both for each in after], seen, device)
            states = reading.states(inputs, prefix, own)[inputs["row"], inputs["place"]]
            losses = torch.cat(list(self._losses(states, inputs["labels"]))).cpu()
            lengths = [len(each.document) for each in some]
            for at, each in zip(places, torch.split(losses, lengths), strict=True):
                found[at] = each
        return found

    def answers(self, heads: Sequence[Prompt], tokens: int) -> list[list[int]]:
        """What is most likely said after each, at most so many tokens, without the one that ends it.

        For each token what was said so far is read anew, and what stands before that once.
        """
        said: list[list[int]] = [[] for _ in heads]
        ended, prefix = [False] * len(heads), None
        for _ in range(tokens):
            grown = [[one.grown(ids)] for one, ids in zip(heads, said, strict=True)]
            joined = self.process.join(grown, [len(one) - 1 for one in heads])
            inputs = {name: x.to(self.device) for name, x in joined.items()}
            if prefix is None and joined["prefix_mask"].any():
                pictures = [picture for one in heads for picture in one.pictures]
                prefix = self.reading.prefix(inputs, self.sight.known(pictures, {}, self.device))
            states = self.reading.states(inputs, prefix, None)
            logits = self.net.get_output_embeddings()(ends(states, inputs))
            if self.process.pictures is not None:
                logits[:, self.process.pictures.token] = -torch.inf  # pictures are shown, never said
            for at, token in enumerate(logits.argmax(-1).tolist()):
                ended[at] |= token in self.process.ends
                said[at] += [] if ended[at] else [token]
            if all(ended):
                break
        return said

    def gradient_checkpointing(self) -> None:
        """Recompute activations."""
        self.net.gradient_checkpointing_enable({"use_reentrant": False})

    def _losses(self, states: Tensor, labels: Tensor) -> Iterator[Tensor]:
        """Of some tokens after the others, for their logits are large."""
        head = self.net.get_output_embeddings()
        for some, right in zip(torch.split(states, AT_ONCE), torch.split(labels, AT_ONCE), strict=True):
            yield F.cross_entropy(head(some).float(), right, reduction="none")
