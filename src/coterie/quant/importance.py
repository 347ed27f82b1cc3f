"""How much each input of each matrix matters: the mean square of what reaches it while the model reads a text.

An error in a weight is multiplied by its input, so the squared error that an output sees is Σ over k of importance_k ·
error_k². Of an expert only the tokens that the router sent there count, and how many they were is kept: an expert that
saw too few has no importance and is named. `observe` swaps the implementers of the experts' seam and of `Linear` for
wrappers that count and pass on; the model's results stay what they are.
Shapes: T tokens, n tokens of one expert, K inputs of a matrix, D model width, F expert width.
"""

from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional

__all__ = ["ENOUGH_TOKENS", "Importance", "ObservedExperts", "ObservedLinear", "observe"]

ENOUGH_TOKENS = 128


@dataclass
class Importance:
    """Sums of squares and counts of rows, by the canonical name of a matrix; experts' are `...experts.E.down`."""

    sums: dict[str, Tensor] = field(default_factory=dict)  # float64 [K]
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, x_TK: Tensor) -> None:
        x_TK = x_TK.double().flatten(0, -2)
        self.sums[name] = self.sums.get(name, 0) + x_TK.square().sum(0).cpu()
        self.counts[name] = self.counts.get(name, 0) + len(x_TK)

    def of(self, name: str) -> Tensor | None:
        """float32 [K], or None where nothing or too little was seen."""
        if self.counts.get(name, 0) < ENOUGH_TOKENS:
            return None
        return (self.sums[name] / self.counts[name]).float()

    def starved(self) -> list[str]:
        """The experts that saw too few tokens."""
        experts = {name.rpartition(".")[0]: n for name, n in self.counts.items() if ".experts." in name}
        return [name for name, n in experts.items() if n < ENOUGH_TOKENS]

    def coverage(self) -> dict[str, list[int]]:
        """`layers.3` -> the number of tokens that each of its experts saw."""
        found: dict[str, list[int]] = {}
        for name, n in self.counts.items():
            if ".experts." in name and name.endswith(".down"):
                found.setdefault(name.split(".moe.")[0], []).append(n)
        return found

    def save(self, path: Path) -> None:
        """Write both to a safetensors file."""
        from safetensors.torch import save_file

        save_file(self.sums, path, {name: str(n) for name, n in self.counts.items()})

    @classmethod
    def load(cls, path: Path) -> "Importance":
        """What `save` wrote."""
        from safetensors import safe_open

        with safe_open(path, "pt") as f:
            counts = {name: int(n) for name, n in f.metadata().items()}
            return cls({name: f.get_tensor(name) for name in counts}, counts)


class ObservedLinear(nn.Module):
    """A Linear that notes its inputs under the names of the matrices it is made of."""

    def __init__(self, linear: nn.Module, names: tuple[str, ...], importance: Importance):
        super().__init__()
        self.linear, self.names, self.importance = linear, names, importance

    def forward(self, x_TK: Tensor) -> Tensor:
        for name in self.names:
            self.importance.add(name, x_TK)
        y: Tensor = self.linear(x_TK)
        return y


class ObservedExperts(nn.Module):
    """Experts that note what each of them, and the second matrix of each, is given."""

    def __init__(self, experts: nn.Module, prefix: str, importance: Importance):
        super().__init__()
        self.experts, self.prefix, self.importance = experts, prefix, importance

    def forward(self, x_TD: Tensor, routing: "tuple[Tensor, ...]") -> Tensor:
        ids_TK = routing[0]
        gate_up = self.experts.get_parameter("gate_up")
        for e in range(len(gate_up)):
            x_nD = x_TD[(ids_TK == e).any(1)]
            gate_nF, up_nF = functional.linear(x_nD, gate_up[e]).chunk(2, -1)
            self.importance.add(f"{self.prefix}.{e}.gate_up", x_nD)
            self.importance.add(f"{self.prefix}.{e}.down", functional.silu(gate_nF) * up_nF)
        y_TD: Tensor = self.experts(x_TD, routing)
        return y_TD


def observe(block: nn.Module, at: str, importance: Importance) -> nn.Module:
    """A decoder's block whose matrices are noted as those of `at` ("layers.3"); it is changed and returned."""
    attention, ff = block.get_submodule("attention"), block.get_submodule("feed_forward")
    qkv = tuple(f"{at}.attention.{name}" for name in "qkv")
    _wrap(attention.get_submodule("qkv"), "linear", qkv, importance)
    _wrap(attention, "o", (f"{at}.attention.o",), importance)
    if "experts" in dict(ff.named_children()):
        ff.experts = ObservedExperts(ff.get_submodule("experts"), f"{at}.moe.experts", importance)
    else:
        _wrap(ff.get_submodule("gate_up"), "linear", (f"{at}.feed_forward.gate", f"{at}.feed_forward.up"), importance)
        _wrap(ff, "down", (f"{at}.feed_forward.down",), importance)
    return block


def _wrap(owner: nn.Module, attribute: str, names: tuple[str, ...], importance: Importance) -> None:
    setattr(owner, attribute, ObservedLinear(owner.get_submodule(attribute), names, importance))
