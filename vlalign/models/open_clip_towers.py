"""Towers of open_clip's models."""

from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vlalign.models.lock import Groups
from vlalign.models.open_clip_layout import LAYOUT, write_config, write_tokenizer
from vlalign.models.processors import OpenClipTexts, Transformed
from vlalign.models.soft_prompts import between, room
from vlalign.models.tower import TowerModule
from vlalign.types import Inputs


class OpenClipImage(TowerModule):
    """The visual half, its projection included."""

    projected, library, layout = True, "open_clip_torch", LAYOUT

    def __init__(self, model: nn.Module, config: dict[str, Any]) -> None:
        from open_clip.transform import PreprocessCfg, image_transform_v2

        net: Any = model.visual
        process = Transformed(image_transform_v2(PreprocessCfg(**net.preprocess_cfg), is_train=False))
        super().__init__(net, config["embed_dim"], process, config)
        keys = ("mean", "std", "interpolation", "resize_mode")
        self.preprocess = {key: net.preprocess_cfg[key] for key in keys}

    def forward(self, inputs: Inputs) -> Tensor:
        """`pixels` [N, 3, H, W] -> features [N, width]."""
        features: Tensor = self.net(inputs["pixels"])
        return features

    def groups(self) -> Groups:
        """As open_clip groups them: the projection alone at the top."""
        net = self.net
        if hasattr(net, "trunk"):
            return [*timm_groups(net.trunk), *([[net.head]] if list(net.head.parameters()) else [])]
        if hasattr(net, "attnpool"):
            stem = [getattr(net, f"{kind}{i}") for i in (1, 2, 3) for kind in ("conv", "bn")]
            return [stem, *([getattr(net, f"layer{i}")] for i in (1, 2, 3, 4)), [net.attnpool]]
        return _transformer_groups(
            net, net.transformer.resblocks, ("attn_pool", "attn_pool_contrastive", "ln_post"), "proj"
        )

    def checkpoint_gradients(self) -> None:
        """By open_clip."""
        self.net.set_grad_checkpointing(True)

    def write(self, folder: Path) -> None:
        """The config."""
        write_config(folder, dict(self.config), self.preprocess)


class OpenClipText(TowerModule):
    """The text half, its projection included. A causal one reads texts cut to the longest end of text."""

    projected, library, layout = True, "open_clip_torch", LAYOUT

    def __init__(self, model: nn.Module, config: dict[str, Any], tokenizer: Any) -> None:
        net: Any = model.text
        causal = getattr(net, "attn_mask", None) is not None and net.cls_emb is None
        cuts = causal and net.pool_type in ("argmax", "eos")
        process = OpenClipTexts(tokenizer, net.pool_type if cuts else None, getattr(net, "eos_id", 0))
        super().__init__(net, config["embed_dim"], process, config)
        self.cuts = cuts

    def forward(self, inputs: Inputs) -> Tensor:
        """`input_ids` [N, T] -> features [N, width]; T may be short where cutting is exact."""
        from open_clip.transformer import text_global_pool

        net, ids = self.net, inputs["input_ids"]
        x: Tensor
        if not self.cuts:
            x = net(ids)
            return x
        x = net.token_embedding(ids).to(net.transformer.get_cast_dtype())  # [N, T, W]
        length = x.shape[1]
        x = x + net.positional_embedding[:length].to(x.dtype)
        x = net.ln_final(net.transformer(x, attn_mask=net.attn_mask[:length, :length]))
        x = text_global_pool(x, ids, net.pool_type, eos_token_id=net.eos_id)  # [N, W]
        project = net.text_projection
        if project is not None:
            x = project(x) if isinstance(project, nn.Module) else x @ project
        return x

    def learn_prompts(self, count: int) -> None:
        """They take positions, so that a text may have fewer tokens. Raises UserError."""
        if not self.cuts:
            return super().learn_prompts(count)
        tokenizer = copy(self.process.tokenizer)
        tokenizer.context_length = room(self.net.context_length, count)
        self.process = replace(self.process, tokenizer=tokenizer)
        self.prompts = between(self.net.token_embedding, self.net.transformer, count, self.net.width)

    def groups(self) -> Groups:
        """As open_clip groups them: the projection alone at the top."""
        net = self.net
        if hasattr(net, "pooler"):  # a text model of transformers inside open_clip
            return super().groups()
        return _transformer_groups(net, net.transformer.resblocks, ("ln_final",), "text_projection")

    def checkpoint_gradients(self) -> None:
        """By open_clip."""
        self.net.set_grad_checkpointing(True)

    def write(self, folder: Path) -> None:
        """The config, and the tokenizer when it is not open_clip's own."""
        write_config(folder, dict(self.config), {})
        write_tokenizer(folder, self.process)


def _transformer_groups(net: Any, blocks: Any, norms: tuple[str, ...], projection: str) -> Groups:
    """Stem; each block but the last; the last with the final norms; the projection."""
    last = [blocks[-1], *(getattr(net, name) for name in norms if getattr(net, name, None) is not None)]
    top = getattr(net, projection, None)
    above = {id(p) for part in (*blocks, *last[1:]) for p in part.parameters()} | {id(top)}
    if isinstance(top, nn.Module):
        above |= {id(p) for p in top.parameters()}
    stem: list[nn.Module | nn.Parameter] = [p for p in net.parameters() if id(p) not in above]
    return [stem, *([block] for block in blocks[:-1]), last, *([] if top is None else [[top]])]


def timm_groups(net: Any) -> Groups:
    """Layer groups as timm names them, from the stem to the top."""
    from timm.models import group_parameters

    groups = group_parameters(net, net.group_matcher())
    return [[net.get_parameter(name) for name in groups[key]] for key in sorted(groups)]
