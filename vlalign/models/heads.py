"""Heads: projections of a tower's pooled features into the joint space, and what methods learn besides."""

from typing import Literal

from torch import Tensor, nn

Head = Literal["linear", "mlp"]


def projection(width: int, dim: int, kind: Head) -> nn.Module:
    """`linear`: one matrix, as in CLIP; `mlp`: two with GELU between, the first as wide as the tower."""
    if kind == "linear":
        return nn.Linear(width, dim, bias=False)
    return nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, dim))


class MethodHead(nn.Module):
    """What a method learns: its parameters leave with the embeddings, and the loss applies them.

    So they are leaves of a cached step like the scale, and no loss meets the model. Trained, never saved with
    it. They are parameters of this module itself, for ZeRO-3 makes whole only those of modules that run.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        if any(True for _ in module.buffers()):
            raise ValueError("a method's head may have parameters only; it has buffers")
        for name, parameter in module.named_parameters():
            self.register_parameter(name.replace(".", "/"), parameter)

    def forward(self) -> dict[str, Tensor]:
        """Copies by the module's own names: ZeRO-3 takes the parameters away afterwards."""
        return {name.replace("/", "."): p.clone() for name, p in self.named_parameters()}

    def by_extras(self, head: str) -> dict[str, nn.Parameter]:
        """The parameters by their names among the extras of a model that calls this `head`."""
        return {f"{head}.{name.replace('/', '.')}": p for name, p in self.named_parameters()}
