"""What a frozen reference says of the tokens of captions, completed while another model learns these."""

from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vlalign.files import cache_folder
from vlalign.models.feature_cache import FeatureCache
from vlalign.specs import Reference
from vlalign.types import Batch, UserError

REMEMBERED = 2**18  # captions, which take some 100 MB
TOGETHER = 4096  # captions in a part of the disk's cache
KEY = 16  # bytes


class ReferenceNumbers:
    """Puts a number of each supervised token into the `token_fields` of a chunk.

    Every process has its own, for its own captions. A caption is read when it is first drawn, alone by its
    tokens, and remembered by them, of very many the last. A checkpoint holds what is remembered: a number
    differs in the last digits by what it was computed beside, and a run that goes on is to learn the same.
    The user's cache keeps all of it for other runs.
    """

    def __init__(self, gives: str, reference: Reference, rank: int, kept: bool) -> None:
        """`gives`: what the number is called. `kept`: whether on disk."""
        self.gives, self.reference, self.digest = gives, reference, reference.digest
        self.part = f"reference_{rank:05d}.safetensors"
        named = blake2b(self.digest.encode(), digest_size=KEY).hexdigest()
        self.disk = FeatureCache(cache_folder() / "references", named) if kept else None
        self.known: dict[str, Tensor] = {}
        self.new: dict[str, Tensor] = {}  # of these, what the disk has not yet

    def __call__(self, chunk: Batch) -> Batch:
        """A chunk with `token_fields`, a number of each token, float32 [N]. Raises UserError."""
        inputs = chunk["pairs"]
        captions = inputs["labels"].split(inputs["row"].bincount(minlength=len(chunk["ids"])).tolist())
        keys = [_key(each) for each in captions]
        self._learn({key: each for key, each in zip(keys, captions, strict=True) if key not in self.known})
        numbers = torch.cat([self.known[key] for key in keys])
        while len(self.known) > REMEMBERED:
            del self.known[next(iter(self.known))]
        if len(self.new) >= TOGETHER:
            self._keep()
        return {**chunk, "token_fields": {self.gives: numbers}}

    def save(self, folder: Path) -> None:
        """What this process remembers, into the folder of a checkpoint; and on the disk what is new there."""
        from safetensors.torch import save_file

        self._keep()
        keys = np.frombuffer(bytes.fromhex("".join(self.known)), np.uint8).reshape(-1, KEY)
        told = {
            "captions": torch.from_numpy(keys.copy()),
            "tokens": torch.tensor([len(each) for each in self.known.values()], dtype=torch.int64),
            "numbers": torch.cat([torch.empty(0), *self.known.values()]),
        }
        save_file(told, folder / self.part)

    def restore(self, folder: Path) -> None:
        """What it remembered when that was written; nothing, where fewer processes wrote it."""
        from safetensors.torch import load_file

        if not (folder / self.part).is_file():
            return
        told = load_file(folder / self.part)
        keys = [bytes(key).hex() for key in told["captions"].tolist()]
        numbers = torch.split(told["numbers"], told["tokens"].tolist())
        self.known = dict(zip(keys, numbers, strict=True))

    def _learn(self, captions: Mapping[str, Tensor]) -> None:
        """Remember what the disk knows of them, and what the reference says of the others."""
        kept = [None] * len(captions) if self.disk is None else self.disk.get([*captions])
        for (key, each), row in zip(captions.items(), kept, strict=True):
            if row is not None:
                self.known[key] = row[: len(each)].clone()
        todo = {key: each for key, each in captions.items() if key not in self.known}
        found = self.reference([each.tolist() for each in todo.values()])
        if any(each.isnan().any() for each in found):
            raise UserError("data.reference: some of its numbers are not finite; look at its weights")
        self.new.update(zip(todo, found, strict=True))
        self.known.update(zip(todo, found, strict=True))

    def _keep(self) -> None:
        """On the disk, short captions filled up."""
        if self.disk is not None and self.new:
            self.disk.put([*self.new], pad_sequence([*self.new.values()], True, torch.nan))
        self.new = {}


def _key(caption: Tensor) -> str:
    return blake2b(caption.numpy().tobytes(), digest_size=KEY).hexdigest()
