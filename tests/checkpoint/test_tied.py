import pytest
import torch

from coterie.checkpoint.load import load_model
from coterie.errors import CheckpointError


def test_a_repeated_head_that_is_equal_is_taken(make_tiny):
    tiny = make_tiny(tie_word_embeddings=True)
    folder = tiny.huggingface(edit=lambda named: named.update({"lm_head.weight": tiny.tensors["embed"]}))
    assert torch.equal(load_model(folder, device="cpu").head.linear.weight, tiny.tensors["embed"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda embed: embed + 1, "'lm_head.weight' differs"),
        (lambda embed: embed.half(), "'lm_head.weight' differs"),
        (lambda embed: embed[:3], "[3, 16], expected [48, 16]"),
        (lambda embed: embed.int(), "lm_head.weight I32"),
    ],
)
def test_one_that_is_not_is_refused(make_tiny, change, said):
    """transformers 5 would untie the model in silence, version 4 drop the head."""
    tiny = make_tiny(tie_word_embeddings=True)
    folder = tiny.huggingface(edit=lambda named: named.update({"lm_head.weight": change(tiny.tensors["embed"])}))
    with pytest.raises(CheckpointError) as caught:
        load_model(folder, device="cpu")
    assert said in str(caught.value)
