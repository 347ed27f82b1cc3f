import json
import shlex
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from coterie.checkpoint.folder import open_checkpoint, read_model_config
from coterie.checkpoint.names import places
from coterie.errors import CheckpointError, ConfigError, UnsafeFileError

UP = "model.layers.1.block_sparse_moe.experts.3.w3.weight"


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("n_files", [1, 3])
def test_a_sound_folder_opens(tiny, fused, n_files):
    checkpoint = open_checkpoint(tiny.huggingface(fused=fused, n_files=n_files))
    assert checkpoint.format == "huggingface"
    assert checkpoint.naming == ("huggingface_fused" if fused else "huggingface")
    assert len(checkpoint.files) == n_files
    assert checkpoint.config == tiny.config
    assert checkpoint.nbytes == sum(t.nbytes for t in tiny.tensors.values())
    assert [(e.file, e.offset) for e in checkpoint.entries] == sorted((e.file, e.offset) for e in checkpoint.entries)


def test_opening_needs_no_torch(tiny):
    path = str(tiny.huggingface())
    code = f"import sys, coterie.checkpoint.folder as f; f.open_checkpoint({path!r}); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def drop(named):
    del named[UP]


def add(named):
    named["model.layers.1.self_attn.q_proj.bias"] = torch.zeros(24)


def misshape(named):
    named[UP] = named[UP].T


def flatten(named):
    named[UP] = named[UP].reshape(-1)


def retype(named):
    named[UP] = named[UP].to(torch.int8)


def widen(named):
    named[UP] = named[UP].to(torch.float64)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (drop, f"1 missing ({UP})"),
        (add, "1 extra (model.layers.1.self_attn.q_proj.bias)"),
        (misshape, f"1 misshapen ({UP} [16, 20], expected [20, 16])"),
        (flatten, f"1 misshapen ({UP} [320], expected [20, 16])"),
        (retype, f"({UP} I8)"),
        (widen, f"({UP} F64)"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(tiny, edit, said):
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(tiny.huggingface(edit=edit))
    assert said in str(caught.value)


def test_many_problems_are_counted_and_the_first_shown(tiny):
    def drop_layer(named):
        for name in [n for n in named if ".layers.1." in n]:
            del named[name]
        named["a"] = named["b"] = torch.zeros(1)

    with pytest.raises(CheckpointError, match=r"19 missing \(.*and 15 more\); 2 extra \(a, b\)"):
        open_checkpoint(tiny.huggingface(edit=drop_layer))


def test_a_configuration_that_asks_for_millions_of_tensors_is_refused_at_once(tiny):
    folder = tiny.huggingface()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_local_experts": 4096, "num_hidden_layers": 1024}))
    with pytest.raises(CheckpointError, match="12,590,083 tensors"):
        open_checkpoint(folder)


def test_rotary_frequencies_of_old_writers_are_passed_over(tiny):
    def add_frequencies(named):
        named["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(3)

    assert len(open_checkpoint(tiny.huggingface(edit=add_frequencies)).entries) == 3 + 2 * 19


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt"])
def test_pickles_are_refused_with_what_to_do(tiny, name):
    folder = tiny.huggingface()
    (folder / "model.safetensors").rename(folder / name)
    with pytest.raises(UnsafeFileError, match=r"weights_only=True") as caught:
        open_checkpoint(folder)
    assert name in str(caught.value)


@pytest.mark.parametrize("name", ["", "pytorch_model.bin"])
def test_pickles_alone_are_refused_whichever_way_they_are_named(tmp_path, name):
    (tmp_path / "pytorch_model.bin").write_bytes(b"never read")
    with pytest.raises(UnsafeFileError, match=r"pytorch_model\.bin.*never opened here: get the model's safetensors"):
        open_checkpoint(tmp_path / name)


def test_weights_without_a_tensor_are_all_missing(tiny):
    folder = tiny.mistral(edit=dict.clear)
    with pytest.raises(CheckpointError, match=r"41 missing \(tok_embeddings\.weight"):
        open_checkpoint(folder)


@pytest.mark.parametrize("format", ["huggingface", "mistral"])
def test_a_bare_configuration_is_told_by_its_keys_whatever_its_name(tiny, tmp_path, format):
    folder = getattr(tiny, format)()
    copy = tmp_path / "of-a-friend.json"
    copy.write_bytes(next(folder.glob("*.json")).read_bytes())
    assert read_model_config(copy) == read_model_config(folder)


def test_what_to_do_about_pickles_works(tiny, monkeypatch):
    """The command in the message, as it stands."""
    folder = tiny.huggingface()
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(UnsafeFileError) as caught:
        open_checkpoint(folder)
    python, flag, code, files = shlex.split(str(caught.value).split("source: ")[1])
    assert (python, flag, files) == ("python", "-c", "FILES")
    monkeypatch.setattr("sys.argv", ["-c", str(folder / "pytorch_model.bin")])
    exec(code, {})
    assert open_checkpoint(folder).nbytes == sum(t.nbytes for t in tiny.tensors.values())


def test_a_folder_of_both_formats_and_pickles_is_read_by_its_index(tiny):
    folder, other = tiny.huggingface(n_files=2), tiny.mistral()
    for path in other.iterdir():
        path.rename(folder / path.name)
    (folder / "consolidated.00.pt").write_bytes(b"a pickle")
    save_file({"stray": torch.zeros(2)}, folder / "model.safetensors")
    assert open_checkpoint(folder).format == "huggingface"


def test_a_hugging_face_config_beside_consolidated_weights_only_is_read_as_mistral(tiny):
    folder, other = tiny.mistral(), tiny.huggingface()
    (other / "config.json").rename(folder / "config.json")
    assert open_checkpoint(folder).format == "mistral"


def test_names_of_the_other_format_are_said_to_be(tiny):
    folder, other = tiny.huggingface(), tiny.mistral()
    (other / "consolidated.safetensors").rename(folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="tensor names are not"):
        open_checkpoint(folder)


@pytest.mark.parametrize("kind", ["gguf", "gguf_per_expert"])
def test_names_of_a_gguf_file_in_a_folder_are_refused(tiny, kind):
    """They were taken for the folder's own, and merged experts ended in a traceback."""
    folder = tiny.huggingface()
    named: dict[str, list[torch.Tensor]] = {}
    for name, place in places(tiny.config, kind):
        named.setdefault(name, []).append(torch.zeros(place.shape))
    save_file({n: t[0] if len(t) == 1 else torch.stack(t) for n, t in named.items()}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="configuration is huggingface's and the tensor names are not"):
        open_checkpoint(folder)


def test_a_tensor_in_two_files_is_refused(tiny):
    folder = tiny.mistral(n_files=2)
    first = sorted(folder.glob("*.safetensors"))[0]
    (folder / "consolidated.99.safetensors").write_bytes(first.read_bytes())
    with pytest.raises(CheckpointError, match="in both"):
        open_checkpoint(folder)


def test_what_is_no_model_is_said_to_be_none(tmp_path):
    with pytest.raises(CheckpointError, match="not a folder"):
        open_checkpoint(tmp_path / "absent")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ConfigError, match=r"it holds notes\.txt"):
        open_checkpoint(tmp_path)


def test_a_folder_without_weights_says_what_was_expected(tiny):
    folder = tiny.huggingface()
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"expected model\.safetensors"):
        open_checkpoint(folder)
    assert read_model_config(folder) == tiny.config
    assert read_model_config(folder / "config.json") == tiny.config
    assert read_model_config(tiny.mistral() / "params.json").num_local_experts == 4


def test_the_weights_tell_the_type_where_the_configuration_does_not(make_tiny):
    folder = make_tiny(torch.float16).huggingface()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if "dtype" not in k}))
    checkpoint = open_checkpoint(folder)
    assert checkpoint.config.torch_dtype == checkpoint.file_dtype == "float16"
