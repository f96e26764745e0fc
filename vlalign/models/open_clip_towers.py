"""Towers of open_clip's models, and the folder layout that open_clip reads."""

import json
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vlalign.models import checkpoints
from vlalign.models.lock import Groups
from vlalign.models.processors import OpenClipTexts, Transformed
from vlalign.models.tower import TowerModule
from vlalign.registry import suggestion
from vlalign.types import Inputs, UserError

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
LOCAL = "local-dir:"
LAYOUT = "open_clip"


def create(
    id: str, pretrained: str | None, image_size: int | None = None, dim: int | None = None
) -> tuple[Any, dict[str, Any]]:
    """open_clip's model with its text tower apart, and the config that builds it again. Raises UserError.

    `id`: a name that open_clip lists, `hf-hub:ORG/NAME`, or `local-dir:FOLDER` (weights are optional there).
    `dim` replaces the width of the joint space of a model without weights. CoCa gives its contrastive half.
    """
    import open_clip

    config = _config(id, pretrained)
    weights = pretrained or (id.startswith("hf-hub:") or any(_folder(id).glob("*.safetensors")))
    if dim is not None and weights and dim != config["embed_dim"]:
        raise UserError(
            f"model.dim: {id} comes with weights of width {config['embed_dim']}, not {dim}; set dim to it"
        )
    options = {} if dim is None else {"embed_dim": dim}
    net = open_clip.create_model(
        id,
        pretrained,
        force_custom_text=True,
        force_quick_gelu=config.get("quick_gelu", False),
        force_image_size=image_size,
        pretrained_text=False,
        **options,
    )
    config |= options
    if image_size is not None:
        config["vision_cfg"]["image_size"] = image_size
    if config.pop("multimodal_cfg", None) is not None:
        config["custom_text"] = True
        for tower, part in ((net.visual, config["vision_cfg"]), (net.text, config["text_cfg"])):
            tower.output_tokens = part["output_tokens"] = False
    return net, config


def _folder(id: str) -> Path:
    return Path(id.removeprefix(LOCAL)) if id.startswith(LOCAL) else Path("/dev/null")


def _config(id: str, pretrained: str | None) -> dict[str, Any]:
    import open_clip

    if id.startswith(LOCAL) and not (_folder(id) / CONFIG).is_file():
        raise UserError(f"{id}: there is no {CONFIG} in this folder")
    config: dict[str, Any] | None = open_clip.get_model_config(id if ":" in id else id.replace("/", "-"))
    if config is None:
        known = open_clip.list_models()
        raise UserError(
            f"open_clip has no model '{id}'.{suggestion(id, known)} It lists {len(known)} of them"
        )
    config = deepcopy(config)
    if pretrained and ":" not in id:
        tags = open_clip.list_pretrained_tags_by_model(id.replace("/", "-"))
        if pretrained not in tags and not Path(pretrained).is_file():
            raise UserError(
                f"pretrained: '{pretrained}' is neither a file nor a tag of {id}."
                f"{suggestion(pretrained, tags)} Known: {', '.join(tags) or 'none'}"
            )
        if (open_clip.get_pretrained_cfg(id.replace("/", "-"), pretrained) or {}).get("quick_gelu"):
            config["quick_gelu"] = True  # these weights were trained with it, whatever the config says
    return config


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
        length = ids.shape[1]
        x: Tensor
        if not self.cuts:
            x = net(ids)
            return x
        x = net.token_embedding(ids).to(net.transformer.get_cast_dtype())  # [N, T, W]
        x = x + net.positional_embedding[:length].to(x.dtype)
        x = net.ln_final(net.transformer(x, attn_mask=net.attn_mask[:length, :length]))
        x = text_global_pool(x, ids, net.pool_type, eos_token_id=net.eos_id)  # [N, W]
        project = net.text_projection
        if project is not None:
            x = project(x) if isinstance(project, nn.Module) else x @ project
        return x

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


def write_config(folder: Path, config: Mapping[str, Any], preprocess: Mapping[str, Any]) -> None:
    """`open_clip_config.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    told = {"model_cfg": config, "preprocess_cfg": preprocess}
    (folder / CONFIG).write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")


def write_tokenizer(folder: Path, process: Any) -> None:
    """Tokenizer files of transformers; open_clip's own tokenizer needs none."""
    if hasattr(process.tokenizer, "save_pretrained"):
        process.tokenizer.save_pretrained(str(folder))


def write_model(folder: Path, image: Any, text: Any, state: Mapping[str, Tensor]) -> None:
    """Two towers of this module as a folder that open_clip loads by `local-dir:FOLDER`.

    `state`: the pair's, plain.
    """
    same = image.config == text.config
    config = dict(deepcopy(image.config))
    config["text_cfg"] = deepcopy(text.config["text_cfg"])
    config.pop("nonscalar_logit_scale", None)
    if not same:
        config["custom_text"] = True
    own = {"logit_scale": state["scale"].reshape(())}
    bias = state["bias"].reshape(())
    config.pop("init_logit_bias", None)
    if "init_logit_bias" in image.config or bias.item() != 0.0:
        config["init_logit_bias"] = bias.item()
        own["logit_bias"] = bias
    apart = config.get("custom_text", False) or bool(config["text_cfg"].get("hf_model_name"))
    for name, tensor in state.items():
        if name.startswith("image.net."):
            own[f"visual.{name.removeprefix('image.net.')}"] = tensor
        elif name.startswith("text.net."):
            own[f"{'text.' if apart else ''}{name.removeprefix('text.net.')}"] = tensor
    write_config(folder, config, image.preprocess)
    write_tokenizer(folder, text.process)
    checkpoints.write(own, folder / WEIGHTS)


def tokenizer_of(id: str, config: Mapping[str, Any]) -> Any:
    """The tokenizer of a model, at the context length of its config."""
    import open_clip

    length = config["text_cfg"].get("context_length", 77)
    return open_clip.get_tokenizer(id if ":" in id else id.replace("/", "-"), context_length=length)
