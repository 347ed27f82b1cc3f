import json
import threading

import pytest
import torch

from coterie.checkpoint import load, pieces
from coterie.checkpoint.folder import open_checkpoint
from coterie.checkpoint.huggingface import config_to_json
from coterie.checkpoint.load import load_model
from coterie.checkpoint.names import places
from coterie.config import ModelConfig
from coterie.errors import CheckpointError, ResourceError

W2 = "model.layers.1.block_sparse_moe.experts.2.w2.weight"


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """Pieces of 64 bytes, so that a tiny tensor has many and a head is larger than one."""
    monkeypatch.setattr("coterie.checkpoint.load.cut", lambda entry, place: pieces.cut(entry, place, 64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", ["per expert", "fused", "sharded", "mistral"])
def test_every_layout_and_type_lands_bit_for_bit(make_tiny, dtype, layout):
    tiny = make_tiny(dtype)
    ways = {
        "per expert": tiny.huggingface,
        "fused": lambda: tiny.huggingface(fused=True),
        "sharded": lambda: tiny.huggingface(n_files=3),
        "mistral": tiny.mistral,
    }
    model = load_model(ways[layout](), dtype=str(dtype).removeprefix("torch."), device="cpu")
    for name, t in model.tensors().items():
        assert torch.equal(t, tiny.tensors[name]), name
    assert not model.training


@pytest.mark.parametrize("changes", [{"num_local_experts": None}, {"tie_word_embeddings": True}])
def test_dense_and_tied_models_load(make_tiny, changes):
    tiny = make_tiny(**changes)
    model = load_model(tiny.huggingface(), device="cpu")
    assert all(torch.equal(t, tiny.tensors[name]) for name, t in model.tensors().items())


@pytest.mark.parametrize("layout", ["huggingface", "mistral"])
def test_conversion_on_the_way_is_torchs_own(make_tiny, layout):
    tiny = make_tiny(torch.float32)
    model = load_model(getattr(tiny, layout)(), dtype="bf16", device="cpu")
    assert all(torch.equal(t, tiny.tensors[name].to(t.dtype)) for name, t in model.tensors().items())
    assert {t.dtype for name, t in model.tensors().items() if "router" not in name} == {torch.bfloat16}


def test_auto_is_float32_where_bf16_is_slow(make_tiny, monkeypatch):
    monkeypatch.setattr("coterie.device.has_bf16", lambda device: False)
    assert load_model(make_tiny(torch.bfloat16).huggingface(), device="cpu").dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), -float("nan")])
@pytest.mark.parametrize("asked", ["float32", "bfloat16"])
def test_nan_and_inf_are_found_and_named(make_tiny, dtype, value, asked):
    def damage(named):
        named[W2] = named[W2].clone()
        named[W2][5, 3] = value

    with pytest.raises(CheckpointError, match=W2.replace(".", r"\.") + "' contains 1 (NaN|Inf)"):
        load_model(make_tiny(dtype).huggingface(edit=damage), dtype=asked, device="cpu")


def test_the_largest_finite_numbers_are_not_taken_for_inf(make_tiny):
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        tiny = make_tiny(dtype)
        tiny.tensors["norm"][:2] = torch.tensor([torch.finfo(dtype).max, torch.finfo(dtype).min])
        folder = tiny.huggingface(str(dtype))
        model = load_model(folder, dtype=str(dtype).removeprefix("torch."), device="cpu")
        assert torch.equal(model.tensors()["norm"], tiny.tensors["norm"])


def test_numbers_beyond_float16_are_refused_by_name(tiny):
    tiny.tensors["norm"][2] = 70000.0
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight' contains 7e\+04, beyond float16"):
        load_model(tiny.huggingface(), dtype="f16", device="cpu")


def test_a_model_larger_than_memory_is_refused_before_it_is_allocated(tiny, monkeypatch):
    folder = tiny.huggingface()
    monkeypatch.setattr(load, "available_memory", lambda device: 1 << 20)
    monkeypatch.setattr("coterie.model.Transformer.__init__", lambda *_: pytest.fail("allocated"))
    with pytest.raises(ResourceError, match=r"needs 67\.2 MB of memory as float32 and cpu has 1\.0 MB free"):
        load_model(folder, device="cpu")


def test_the_true_mixtral_is_opened_by_its_header_and_refused_by_its_size(tmp_path, monkeypatch):
    """93 GB that take no disk: a file of holes behind a real header."""
    config, header, end = ModelConfig(), {}, 0
    for name, place in places(config, "huggingface"):
        start, end = end, end + 2 * place.n_elements
        header[name] = {"dtype": "BF16", "shape": place.shape, "data_offsets": [start, end]}
    raw = json.dumps(header).encode()
    (tmp_path / "config.json").write_text(json.dumps(config_to_json(config)))
    try:
        with open(tmp_path / "model.safetensors", "wb") as f:
            f.write(len(raw).to_bytes(8, "little") + raw)
            f.truncate(8 + len(raw) + end)
    except OSError as e:
        pytest.skip(f"no sparse files here: {e}")
    checkpoint = open_checkpoint(tmp_path)
    assert (len(checkpoint.entries), checkpoint.nbytes) == (995, 2 * 46_702_792_704)
    monkeypatch.setattr(load, "available_memory", lambda device: 24 * 10**9)
    with pytest.raises(ResourceError, match=r"needs 93\.5 GB of memory as bfloat16 and cpu has 24\.0 GB free"):
        load_model(tmp_path, dtype="bf16", device="cpu")


def test_a_smaller_type_is_named_where_it_would_fit(tiny, monkeypatch):
    checkpoint = open_checkpoint(tiny.huggingface())
    size = checkpoint.nbytes
    monkeypatch.setattr(load, "available_memory", lambda device: load._RESERVE + size * 3 // 4)
    with pytest.raises(ResourceError, match="load it as bf16"):
        load.require_memory(checkpoint, torch.float32, torch.device("cpu"))
    load.require_memory(checkpoint, torch.bfloat16, torch.device("cpu"))


@pytest.mark.parametrize(("total", "helps"), [(1 << 20, False), (1 << 40, True)])
def test_closing_programs_is_advised_only_where_it_could_help(tiny, monkeypatch, total, helps):
    monkeypatch.setattr(load, "available_memory", lambda device: 1 << 20)
    monkeypatch.setattr(load, "total_memory", lambda device: total)
    with pytest.raises(ResourceError) as caught:
        load_model(tiny.huggingface(), device="cpu")
    assert ("close other programs" in str(caught.value)) is helps


def test_memory_that_is_promised_and_not_given_is_one_sentence(tiny, monkeypatch):
    def refuse(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory\nand a stack")

    monkeypatch.setattr("coterie.model.Transformer.__init__", refuse)
    with pytest.raises(ResourceError, match=r"out of memory on cpu \(DefaultCPUAllocator: can't allocate memory\)"):
        load_model(tiny.huggingface(), device="cpu")


def test_progress_counts_bytes_up_to_all_of_them(tiny):
    seen = []
    load_model(tiny.huggingface(), device="cpu", progress=lambda done, total: seen.append((done, total)))
    total = sum(t.nbytes for t in tiny.tensors.values())
    assert seen[-1] == (total, total)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_ctrl_c_stops_every_thread(tiny):
    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load_model(tiny.huggingface(), device="cpu", progress=interrupt)
    assert not [t for t in threading.enumerate() if t.name.startswith("load")]


def test_a_file_that_shrinks_while_it_is_read_is_an_error(tiny, monkeypatch):
    folder = tiny.huggingface()
    require = load.require_memory

    def shrink(*arguments):
        with open(folder / "model.safetensors", "r+b") as f:
            f.truncate(20_000)
        require(*arguments)

    monkeypatch.setattr(load, "require_memory", shrink)
    with pytest.raises(CheckpointError, match="became shorter"):
        load_model(folder, device="cpu")


@pytest.mark.parametrize("keeps", [True, False])
def test_large_files_are_not_left_in_the_page_cache(tiny, monkeypatch, keeps):
    forgotten = []
    monkeypatch.setattr("coterie.checkpoint.pieces.Files.forget", lambda self, piece: forgotten.append(piece.nbytes))
    folder = tiny.huggingface()
    free = 1 << 40 if keeps else open_checkpoint(folder).nbytes
    monkeypatch.setattr(load, "_RESERVE", 0)
    monkeypatch.setattr(load, "available_memory", lambda device: free)
    load_model(folder, device="cpu")
    assert bool(forgotten) is not keeps


def test_types_may_be_mixed_in_a_file(make_tiny):
    """Fine-tunes keep the router in float32 beside bf16 weights."""
    tiny = make_tiny(torch.bfloat16)
    folder = tiny.huggingface(edit=lambda named: named.update({k: t.float() for k, t in named.items() if "gate" in k}))
    assert open_checkpoint(folder).file_dtype == "bfloat16"
    model = load_model(folder, dtype="float32", device="cpu")
    assert all(torch.equal(t, tiny.tensors[name].float()) for name, t in model.tensors().items())


def test_a_header_of_odd_length_puts_numbers_at_odd_bytes(tiny):
    """The format does not align its data; a reader that maps numbers in place would trip over this."""
    folder = tiny.huggingface()
    raw = (folder / "model.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    longer = (length + 1).to_bytes(8, "little") + raw[8 : 8 + length] + b" " + raw[8 + length :]
    (folder / "model.safetensors").write_bytes(longer)
    model = load_model(folder, device="cpu")
    assert all(torch.equal(t, tiny.tensors[name]) for name, t in model.tensors().items())


def test_the_peak_is_the_model_and_a_little_more(make_tiny, monkeypatch):
    """A model of 63 MB in float32 from 31 MB of bf16: pieces only, no second copy."""
    monkeypatch.undo()
    tiny = make_tiny(torch.bfloat16, vocab_size=100, hidden_size=256, intermediate_size=1280, num_local_experts=8)
    folder = tiny.huggingface(fused=True)
    try:
        with open("/proc/self/clear_refs", "w") as f:
            f.write("5")  # the high-water mark starts again from what is held now
    except OSError:
        pytest.skip("the peak of this process's memory cannot be read here")
    before = _peak()
    model = load_model(folder, dtype="float32", device="cpu")
    size = sum(t.nbytes for t in model.tensors().values())
    assert size > 60e6
    assert _peak() - before < size + 48e6


def _peak() -> int:
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) * 1024 for line in f if line.startswith("VmHWM"))
