"""Towers of transformers: any text or vision model."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vlalign.models.fetching import fetching
from vlalign.models.processors import HFImages, HFTexts, Processor
from vlalign.models.soft_prompts import in_words, room
from vlalign.models.tower import TowerModule
from vlalign.types import Inputs, UserError

TextPool = Literal["mean", "cls", "last"]
ImagePool = Literal["pooler", "mean", "cls"]
MANY = 1000  # tokens; a smaller vocabulary may well be far from full
LONGEST = 512  # tokens, where neither the tokenizer nor the config sets a limit


def load(id: str, pretrained: bool, trust_remote_code: bool) -> Any:
    """A model of transformers in float32; without pretrained, from its config with random weights.

    Raises UserError.
    """
    import transformers

    auto: Any = transformers.AutoModel
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    with fetching(id, "transformers"):
        if pretrained:
            return auto.from_pretrained(id, dtype=torch.float32, **options)
        config = transformers.AutoConfig.from_pretrained(id, **options)
        return auto.from_config(config, dtype=torch.float32, **options).train()


def processor_of(kind: str, id: str, trust_remote_code: bool = False) -> Any:
    """What transformers' class `kind` finds there: a tokenizer, a processor. Raises UserError."""
    import transformers

    with fetching(f"{id}: its {kind.removeprefix('Auto')}", "transformers"):
        return getattr(transformers, kind).from_pretrained(id, trust_remote_code=trust_remote_code)


def tokenizer_of(id: str, config: Any, trust_remote_code: bool) -> Any:
    """Its tokenizer, with a padding token. Raises UserError."""
    tokenizer = processor_of("AutoTokenizer", id, trust_remote_code)
    require_vocabulary(id, tokenizer, config)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def require_vocabulary(id: str, tokenizer: Any, config: Any) -> None:
    """Raises UserError for a tokenizer whose files are missing, which transformers makes up from nothing."""
    known, special = len(tokenizer), len(tokenizer.all_special_ids)
    wanted: int = getattr(config, "vocab_size", None) or 0
    if known <= special or (wanted > MANY and known < wanted / 10):
        names = set(getattr(tokenizer, "vocab_files_names", {}).values())
        absent = sorted(name for name in names if not (Path(id) / name).is_file())
        raise UserError(
            f"{id}: its tokenizer knows {known} tokens, {special} of them special, and the model {wanted}; "
            f"files of the tokenizer are missing (of {', '.join(absent) or 'its vocabulary'}); copy them "
            "from where the model comes from"
        )


def text_length(tokenizer: Any, config: Any) -> int:
    """The most tokens that both the tokenizer and the positions of the model allow."""
    positions: int = getattr(config, "max_position_embeddings", None) or LONGEST
    if getattr(config, "position_embedding_type", None) != "relative" and "roberta" in str(config.model_type):
        positions -= config.pad_token_id + 1  # its positions begin after the padding id
    return min(int(tokenizer.model_max_length), positions)


class HFTower(TowerModule):
    """A network of transformers. `files` are what is saved beside it: configs, tokenizers, processors."""

    library = "transformers"

    def __init__(
        self, net: nn.Module, width: int, process: Processor, config: Mapping[str, Any], files: Sequence[Any]
    ) -> None:
        where = ("_name_or_path", "transformers_version")
        super().__init__(net, width, process, {key: x for key, x in config.items() if key not in where})
        self.files = tuple(files)

    def checkpoint_gradients(self) -> None:
        """By transformers. Raises UserError for a network that does not offer it."""
        able = (m for m in self.net.modules() if getattr(m, "supports_gradient_checkpointing", False))
        whole: Any = next(able, None)
        if whole is None:
            raise UserError(
                f"gradient_checkpointing: transformers cannot do it for {type(self.net).__name__}"
            )
        whole.gradient_checkpointing_enable({"use_reentrant": False})

    def write(self, folder: Path) -> None:
        """Configs, tokenizers and processors as transformers names them."""
        for file in self.files:
            file.save_pretrained(str(folder))


class HFText(HFTower):
    """A text model, its token features pooled: their mean, the first, or the last that is no padding."""

    def __init__(
        self, model: Any, tokenizer: Any, pool: TextPool, length: int | None, files: Sequence[Any]
    ) -> None:
        if hasattr(model.config, "vision_config"):
            raise UserError(
                "hf_text reads text models; a CLIP or SigLIP model is a model of its own: name: hf_clip"
            )
        net = model.get_encoder() if model.config.is_encoder_decoder else model
        if getattr(net, "pooler", None) is not None:
            net.pooler = None  # it would get no gradient
        masked = "attention_mask" in tokenizer.model_input_names
        longest = text_length(tokenizer, model.config)
        # Without a mask the padding is read, so that its amount must not depend on the batch.
        padding: Literal["longest", "max_length"] = "longest" if masked else "max_length"
        process = HFTexts(tokenizer, min(length or longest, longest), padding, masked)
        config = {**model.config.to_dict(), "pool": pool}
        super().__init__(net, model.config.hidden_size, process, config, files)
        self.pool = pool

    def forward(self, inputs: Inputs) -> Tensor:
        """`input_ids`, `attention_mask` [N, T] -> features [N, width]."""
        ids = inputs["input_ids"]
        mask = inputs.get("attention_mask", torch.ones_like(ids))
        given = {"attention_mask": mask} if "attention_mask" in inputs else {}
        tokens: Tensor = self.net(input_ids=ids, **given).last_hidden_state  # [N, T, W]
        if self.pool == "cls":
            return tokens[:, 0]
        if self.pool == "last":
            last = (mask * torch.arange(mask.shape[1], device=mask.device)).argmax(-1)
            return tokens[torch.arange(len(tokens), device=tokens.device), last]
        weight = mask.unsqueeze(-1).to(tokens.dtype)
        return (tokens * weight).sum(1) / weight.sum(1).clamp(min=1)

    def learn_prompts(self, count: int) -> None:
        """They take positions, so that a text may have fewer tokens. Raises UserError."""
        left = room(text_length(self.process.tokenizer, self.net.config), count)
        self.process = replace(self.process, length=min(self.process.length, left))
        self.prompts = in_words(self.net, self.process.tokenizer, count)


class HFVision(HFTower):
    """A vision model, pooled as it pools itself (`pooler`), or the mean or the first of its tokens."""

    def __init__(self, model: Any, processor: Any, pool: ImagePool, files: Sequence[Any]) -> None:
        if hasattr(model.config, "text_config"):
            raise UserError(
                "hf_vision reads vision models; a CLIP or SigLIP model is a model of its own: name: hf_clip"
            )
        if pool != "pooler" and getattr(model, "pooler", None) is not None:
            model.pooler = None  # it would get no gradient
        width = getattr(model.config, "hidden_size", None) or model.config.hidden_sizes[-1]
        config = {**model.config.to_dict(), "pool": pool}
        super().__init__(model, width, HFImages(processor), config, files)
        self.pool = pool

    def forward(self, inputs: Inputs) -> Tensor:
        """`pixels` [N, 3, H, W] -> features [N, width], or of patches [N, n, width]."""
        others = {name: x for name, x in inputs.items() if name != "pixels"}
        out = self.net(pixel_values=inputs["pixels"], **others)
        if not self.pools:
            return self._patches(out.last_hidden_state, inputs["pixels"])
        if self.pool == "pooler":
            if getattr(out, "pooler_output", None) is None:
                raise UserError(
                    f"{type(self.net).__name__} does not pool its tokens itself; set pool: mean or cls"
                )
            pooled: Tensor = out.pooler_output
            return pooled.flatten(1)
        tokens: Tensor = out.last_hidden_state
        tokens = tokens.flatten(2).transpose(1, 2) if tokens.ndim == 4 else tokens  # [N, T, W]
        return tokens.mean(1) if self.pool == "mean" else tokens[:, 0]

    def unpool(self) -> None:
        """The cells of a last grid, or a transformer's states but those that are of no patch."""
        if getattr(self.net, "pooler", None) is not None:
            self.net.pooler = None  # it would get no gradient
        self.pools, self.config = False, {**self.config, "pool": "patches"}

    def _patches(self, states: Tensor, pixels: Tensor) -> Tensor:
        """Of last states [N, T, W] or [N, W, h, w] those of patches, which come last. Raises UserError."""
        if states.ndim == 4:
            return states.flatten(2).mT
        side = getattr(self.net.config, "patch_size", None)
        count = 0
        if isinstance(side, int) and pixels.ndim == 4:
            count = (pixels.shape[2] // side) * (pixels.shape[3] // side)
        if not 0 < count <= states.shape[1]:
            raise UserError(
                f"{type(self.net).__name__} gives {states.shape[1]} states of a picture, not one for each "
                "of its patches; take a plain vision transformer or a convolutional network"
            )
        return states[:, -count:]
