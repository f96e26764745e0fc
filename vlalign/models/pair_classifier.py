"""An encoder of transformers with one output over a query and a document: loaded, called, written."""

from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlalign.files import write_json
from vlalign.models import checkpoints, hf_towers
from vlalign.models.fetching import fetching
from vlalign.models.lora import WEIGHTS, Lora
from vlalign.models.ranker import Ranker
from vlalign.models.text_pairs import TextPair, TextPairs
from vlalign.types import Batch, PairScores, UserError

KIND = "ForSequenceClassification"
TRANSFORMER = "sentence_transformers.base.modules.transformer.Transformer"


class PairClassifier(Ranker):
    """Pairs -> one number each. `net`: a sequence classifier of transformers with one label.

    With `lora` the encoder is frozen under its adapters, and what comes after it learns in full.
    """

    process: TextPairs

    def __init__(self, net: Any, process: TextPairs, lora: Lora | None) -> None:
        super().__init__(net, process)
        self.output = _widened(net)
        if lora is not None:
            self.adapt(net.base_model, lora).config.modules_to_save = [part[:-1] for part in self._whole()]
        self.train()

    def forward(self, batch: Batch) -> PairScores:
        """Of each pair of a batch; the logit of no is 0."""
        scores = self.net(**batch["pairs"]).logits[:, 0].float()
        return PairScores(scores, scores, torch.zeros_like(scores))

    def scores(
        self, read: Sequence[TextPair], batches: Iterable[list[int]], seen: MutableMapping[bytes, Any]
    ) -> Tensor:
        """Of one query's pairs, read together where their places are, [C] on the CPU."""
        found = torch.zeros(len(read))
        for places in batches:
            inputs = self.process.join([[read[at] for at in places]])
            batch = {"pairs": {name: x.to(self.device) for name, x in inputs.items()}}
            found[places] = self(batch).scores.cpu()
        return found

    def gradient_checkpointing(self) -> None:
        """Recompute activations."""
        self.net.gradient_checkpointing_enable({"use_reentrant": False})

    @property
    def vocabulary(self) -> bool:
        """Whether the sum over all words is wanted, of which there are none. Raises UserError when set."""
        return False

    @vocabulary.setter
    def vocabulary(self, wanted: bool) -> None:
        if wanted:
            raise UserError(
                "task: an objective reads a language model's whole vocabulary, and a cross-encoder has one "
                "output; use over: answers"
            )

    def write(self, state: Mapping[str, Tensor], folder: Path) -> None:
        """As its spec writes it, and its adapters in PEFT's form, with what learns beside them."""
        from safetensors.torch import load_file

        super().write(state, folder)
        if self.adapters is not None:
            path = folder / "adapter" / WEIGHTS
            plain = self.plain_state(state).items()
            whole = {f"{checkpoints.PEFT}{name}": x for name, x in plain if name.startswith(self._whole())}
            checkpoints.write(load_file(path) | whole, path)

    def _whole(self) -> tuple[str, ...]:
        """What names of parts begin with that come after the encoder."""
        parts = ((name, part) for name, part in self.net.named_children() if part is not self.net.base_model)
        return tuple(f"{name}." for name, part in parts if any(True for _ in part.parameters()))


class _Last(nn.Linear):
    """Its product is float32 whatever its weights are: rounded to bfloat16, many scores would be equal."""

    def forward(self, hidden: Tensor) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            bias = None if self.bias is None else self.bias.float()
            return F.linear(hidden.float(), self.weight.float(), bias)


def _widened(net: Any) -> str:
    """Put `_Last` in place of the layer that gives the logits; its name. Raises UserError."""
    body = {id(module) for module in net.base_model.modules()}
    found: list[tuple[str, nn.Linear]] = [
        (name, module)
        for name, module in net.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == 1 and id(module) not in body
    ]
    if len(found) != 1:
        raise UserError(
            f"{type(net).__name__}: {len(found)} layers after its encoder have one output, and a "
            "cross-encoder's scores come from one; use a model of the BERT family"
        )
    name, old = found[0]
    last = _Last(old.in_features, 1, bias=old.bias is not None, device="meta")
    last.weight, last.bias = old.weight, old.bias
    net.set_submodule(name, last)
    return name


def load(id: str, pretrained: bool, dtype: str, length: int) -> tuple[Any, Any, set[str]]:
    """The network with one label, its tokenizer, and the names of weights that are random.

    A head that is not there, or all without `pretrained`, is random. Raises UserError.
    """
    import transformers

    auto: Any = transformers.AutoModelForSequenceClassification
    with fetching(id, "transformers"):
        config = transformers.AutoConfig.from_pretrained(id)
        if config.num_labels != 1:
            if pretrained and any(name.endswith(KIND) for name in config.architectures or ()):
                raise UserError(
                    f"{id}: it is a classifier with {config.num_labels} labels, and a cross-encoder has one; "
                    "give one with a single label, or an encoder without a classifier"
                )
            config.num_labels = 1
        if pretrained:
            net, told = auto.from_pretrained(
                id, config=config, dtype=getattr(torch, dtype), output_loading_info=True
            )
            random = set(told["missing_keys"])
        else:
            net = auto.from_config(config, dtype=getattr(torch, dtype))
            random = set(net.state_dict())
    net.config.architectures = [type(net).__name__]
    tokenizer = hf_towers.tokenizer_of(id, net.config, trust_remote_code=False)
    if tokenizer.sep_token is None:
        raise UserError(
            f"{id}: its tokenizer has nothing to stand between a query and a document; give an encoder of "
            "the BERT family, or use llm_reranker for a language model"
        )
    tokenizer.model_max_length = length
    if (longest := hf_towers.text_length(tokenizer, net.config)) < length:
        raise UserError(f"model.length: {length} tokens are to be read, and {id} reads at most {longest}")
    return net, tokenizer, random


def write(model: PairClassifier, state: Mapping[str, Tensor], folder: Path) -> None:
    """A folder that `from_pretrained` and sentence-transformers' CrossEncoder load, with raw scores.

    `state`: by the network's own names.
    """
    model.net.config.save_pretrained(str(folder))
    model.process.tokenizer("")  # cuts nothing: how it was called last would be saved
    model.process.tokenizer.save_pretrained(str(folder))
    checkpoints.write(state, folder / "model.safetensors")
    transformer = {
        "transformer_task": "sequence-classification",
        "modality_config": {"text": {"method": "forward", "method_output_name": "logits"}},
        "module_output_name": "scores",
        "processing_kwargs": {"text": {"truncation": "only_second"}},
    }
    module = {"idx": 0, "name": "0", "path": "", "type": TRANSFORMER}
    told = {
        "model_type": "CrossEncoder",
        "activation_fn": "torch.nn.modules.linear.Identity",
        "keep_in_fp32_modules": [f"0.model.{model.output}"],
    }
    write_json(folder / "modules.json", [module])
    write_json(folder / "sentence_bert_config.json", transformer)
    write_json(folder / "config_sentence_transformers.json", told)
