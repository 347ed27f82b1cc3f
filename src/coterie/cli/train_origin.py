"""What `coterie train` tells of a model that was upcycled or merged: its certificate, and how experts drift apart."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coterie.cli.output import note

if TYPE_CHECKING:
    from coterie.model import Transformer
    from coterie.tokenizer.protocol import Tokenizer
    from coterie.train.origin import Origin
    from coterie.train.tokens import TokenFile

__all__ = ["Lineage"]

_CERTIFIED_TOKENS = 128


class Lineage:
    """Keeps OUT/upcycling.json: where the experts come from, and their likeness to each other at the start and end."""

    def __init__(self, origin: "Origin | None", folder: Path, *, is_first: bool = True):
        self.origin, self.path = origin, folder / "upcycling.json"
        self.is_told = is_first and not any((folder / "checkpoints").glob("step-*"))
        self.document: dict[str, Any] = {}
        if self.path.exists():
            try:
                self.document = dict(json.loads(self.path.read_bytes()))
            except (ValueError, TypeError) as e:
                note(f"{self.path} cannot be read and is written anew: {e}")

    def fill(self, model: "Transformer", tokenizer: "Tokenizer", text: "TokenFile") -> None:
        """The weights that the run starts from, where they are not random; a new run (rank 0 of it) says what they are.

        An upcycled model is certified on the first tokens of a text; `CheckpointError` where it is not what it must be.
        """
        from coterie.train.origin import Upcycled

        if self.origin is None:
            return
        sentence = self.origin.fill(model, tokenizer)
        if not self.is_told:
            return
        note(sentence)
        if not model.config.is_sparse:
            return
        self.document = {"says": sentence, "certificate": None, "alike_at_start": self._alike(model)}
        if isinstance(self.origin, Upcycled):
            certificate = self.origin.certify(model, text.ids[:_CERTIFIED_TOKENS].tolist())
            note(certificate.sentence())
            certificate.require()
            self.document["certificate"] = certificate.to_json()
        self._write()

    def measure(self, model: "Transformer") -> dict[str, float]:
        """For the log: the mean cosine of two experts of a layer. Not where experts are divided among ranks."""
        if not self.origin or not model.config.is_sparse or _is_divided(model):
            return {}
        return {"alike": _mean(self._alike(model))}

    def finish(self, model: "Transformer", steps: int) -> None:
        """How far the experts have drifted apart."""
        if not self.origin or not model.config.is_sparse:
            return
        alike = self._alike(model)
        self.document |= {"steps": steps, "alike_at_end": alike}
        self._write()
        least, most = alike.index(min(alike)), alike.index(max(alike))
        before = self.document.get("alike_at_start")
        note(
            f"after {steps} steps two experts of a layer have a mean cosine of {_mean(alike):.3f} "
            f"({alike[least]:.3f} in layer {least} to {alike[most]:.3f} in layer {most}"
            + (f"; {_mean(before):.3f} at the start)" if before else ")")
        )

    def _alike(self, model: "Transformer") -> list[float]:
        from coterie.analysis.likeness import between_experts

        assert self.origin is not None
        tensors, segments = model.tensors(), self.origin.granularity
        layers = range(model.config.num_hidden_layers)
        return [round(between_experts(tensors.__getitem__, at, segments=segments), 6) for at in layers]

    def _write(self) -> None:
        from coterie.checkpoint.atomic import new_file

        with new_file(self.path) as file:
            file.write((json.dumps(self.document, indent=1) + "\n").encode())


def _is_divided(model: "Transformer") -> bool:
    from torch.distributed.fsdp import FSDPModule

    return isinstance(model, FSDPModule)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
