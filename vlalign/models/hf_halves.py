"""The two halves of transformers' CLIP and SigLIP models, and the folder layout that transformers reads."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vlalign.models import checkpoints
from vlalign.models.hf_towers import HFTower
from vlalign.models.processors import HFImages, HFTexts, Pool
from vlalign.types import Inputs

WHOLE = ("clip", "siglip", "siglip2")  # families whose halves are known
LEGACY_END = 2  # what older CLIP configs say wrongly: transformers then reads the largest token instead


class Half(nn.ModuleDict):
    """One half of a CLIP-like model, tower and projection, under the names that the whole gives them."""

    def __init__(self, model: Any, tower: str, projection: str) -> None:
        parts = {name: getattr(model, name) for name in (tower, projection) if hasattr(model, name)}
        super().__init__(parts)
        self.names = (tower, projection)

    def forward(self, **inputs: Tensor) -> Tensor:
        """Pooled features, projected where the model has a projection."""
        tower, projection = self.names
        pooled: Tensor = self[tower](**inputs).pooler_output
        if projection in self:
            pooled = self[projection](pooled)
        return pooled


class HFClipImage(HFTower):
    """The image half, its projection included."""

    projected = True

    def __init__(self, model: Any, processor: Any, dim: int) -> None:
        net, config = Half(model, "vision_model", "visual_projection"), model.config
        process = HFImages(processor.image_processor)
        super().__init__(net, dim, process, config.vision_config.to_dict(), (config, processor))

    def forward(self, inputs: Inputs) -> Tensor:
        """`pixels` and what the processor gives besides -> features [N, width]."""
        given = {"pixel_values" if name == "pixels" else name: x for name, x in inputs.items()}
        features: Tensor = self.net(**given)
        return features


class HFClipText(HFTower):
    """The text half, its projection included.

    CLIP's is causal and reads its end of text, so that padding can be tight and needs no mask. SigLIP's reads
    its last position, padding or not, so that its length is fixed; it gets a mask if its tokenizer makes one.
    """

    projected = True

    def __init__(self, model: Any, tokenizer: Any, dim: int) -> None:
        net, config = Half(model, "text_model", "text_projection"), model.config
        length = config.text_config.max_position_embeddings
        if config.model_type == "clip":
            end = config.text_config.eos_token_id
            pool: Pool = "argmax" if end == LEGACY_END else "eos"
            process = HFTexts(tokenizer, length, "longest", False, pool, end)
        else:
            process = HFTexts(
                tokenizer, length, "max_length", "attention_mask" in tokenizer.model_input_names
            )
        super().__init__(net, dim, process, config.text_config.to_dict(), ())

    def forward(self, inputs: Inputs) -> Tensor:
        """`input_ids` [N, T], and `attention_mask` for a tokenizer that makes one -> features [N, width]."""
        given = {name: inputs[name] for name in ("input_ids", "attention_mask")[: 1 + self.process.masked]}
        features: Tensor = self.net(**given)
        return features


def write_model(folder: Path, image: Any, state: Mapping[str, Tensor]) -> None:
    """A folder that `from_pretrained` loads; the halves have its names. `state`: the pair's, plain."""
    bias = image.files[0].model_type != "clip"
    own = {
        name.removeprefix(f"{side}.net."): tensor
        for side in ("image", "text")
        for name, tensor in state.items()
        if name.startswith(f"{side}.net.")
    }
    own["logit_scale"] = state["scale"].reshape([1] if bias else [])
    if bias:
        own["logit_bias"] = state["bias"]
    image.write(folder)
    checkpoints.write(own, folder / "model.safetensors")
