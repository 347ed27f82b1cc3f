import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from coterie.checkpoint import huggingface
from coterie.checkpoint.folder import open_checkpoint
from coterie.checkpoint.huggingface import config_from_json, config_to_json, read_config, save_huggingface
from coterie.checkpoint.load import load_model
from coterie.config import ModelConfig
from coterie.errors import CheckpointError, ConfigError, ResourceError

MIXTRAL = {  # the published file of Mixtral 8x7B v0.1
    "architectures": ["MixtralForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": 2,
    "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336,
    "max_position_embeddings": 32768, "model_type": "mixtral", "num_attention_heads": 32, "num_experts_per_tok": 2,
    "num_hidden_layers": 32, "num_key_value_heads": 8, "num_local_experts": 8, "output_router_logits": False,
    "rms_norm_eps": 1e-05, "rope_theta": 1000000.0, "router_aux_loss_coef": 0.02, "sliding_window": None,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "transformers_version": "4.36.0.dev0", "use_cache": True,
    "vocab_size": 32000,
}  # fmt: skip
SHAPE = {k: MIXTRAL[k] for k in huggingface.REQUIRED}
MISTRAL = {**SHAPE, "model_type": "mistral"}
LLAMA = {**SHAPE, "model_type": "llama"}


def read(values, where="config.json") -> ModelConfig:
    return config_from_json(values, where)


def without(values, *keys):
    return {k: v for k, v in values.items() if k not in keys}


def test_the_published_mixtral_is_the_default_configuration():
    config = read(MIXTRAL)
    assert config == ModelConfig()
    assert config.head_dim == 128


def test_version_5_says_the_same_in_other_words():
    values = without(MIXTRAL, "rope_theta", "torch_dtype") | {
        "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"}, "dtype": "bfloat16", "head_dim": None,
    }  # fmt: skip
    assert read(values) == read(MIXTRAL)


def test_null_is_no_window_and_absent_is_the_default_one():
    assert read(MISTRAL).sliding_window == 4096
    assert read({**MISTRAL, "sliding_window": None}).sliding_window is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"hidden_size": "4096"}, "hidden_size"),
        ({"num_local_experts": 0}, "num_local_experts"),
        ({"num_local_experts": None}, "num_local_experts"),
        ({"num_experts_per_tok": 9}, "num_experts_per_tok"),
        ({"num_key_value_heads": 5}, "num_key_value_heads"),
        ({"num_attention_heads": 30}, "num_attention_heads"),
        ({"head_dim": 0}, "head_dim"),
        ({"head_dim": 127}, "head_dim"),
        ({"hidden_size": True}, "hidden_size"),
        ({"hidden_size": 4096.0}, "hidden_size"),
        ({"vocab_size": 1 << 40}, "vocab_size"),
        ({"torch_dtype": "int8"}, "torch_dtype"),
        ({"model_type": "qwen3_moe"}, "'qwen3_moe'"),
        ({"model_type": None, "architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel"),
        ({"architectures": ["MixtralForSequenceClassification"]}, "architectures"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"attention_bias": True}, "attention_bias"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling.type"),
        ({"rope_scaling": {"type": "default", "factor": 2.0}}, "rope_scaling.factor"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6}}, "rope_parameters.rope_type"),
        ({"rope_parameters": {"rope_theta": 1e4}}, "rope_theta is given twice"),
        ({"rope_parameters": 7}, "rope_parameters"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"pretraining_tp": 2}, "pretraining_tp"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"auto_map": {"AutoModelForCausalLM": "modeling.Custom"}}, "auto_map"),
        ({"rope_scaling": {"factor": 8.0, "rope_type": "llama3"}}, "rope_scaling.rope_type is 'llama3'"),
        ({"layer_types": ["sliding_attention"] * 32}, "only 'full_attention' for every layer"),
        ({"layer_types": ["full_attention"] * 31}, "layer_types"),
        ({"layer_types": "full_attention"}, "layer_types"),
        ({"num_hidden_layers": "32", "layer_types": ["full_attention"] * 32}, "layer_types"),
        ({"rope_thetaa": 1e4}, "did you mean 'rope_theta'"),
        ({"logit_softcap": 30.0}, "'logit_softcap'"),
        ({"use_sinks": True}, "'use_sinks'"),
    ],
)
def test_what_would_change_the_model_is_refused_by_name(change, said):
    with pytest.raises(ConfigError, match=r"^config\.json") as caught:
        read({**MIXTRAL, **change})
    assert said in str(caught.value)


@pytest.mark.parametrize("key", huggingface.REQUIRED)
def test_a_missing_shape_is_named(key):
    with pytest.raises(ConfigError, match=f"'{key}' is missing"):
        read(without(MIXTRAL, key))


@pytest.mark.parametrize(("window", "kind"), [(None, "full_attention"), (4096, "sliding_attention")])
def test_layer_types_that_say_what_the_window_says_are_implied(window, kind):
    values = {**MISTRAL, "sliding_window": window}
    config = read({**values, "layer_types": [kind] * 32})
    assert config == read(values) and "layer_types" not in config_to_json(config)


def test_dense_models_have_no_experts_and_llama_no_window():
    for change in ({"num_local_experts": 8}, {"num_experts_per_tok": 2}):
        with pytest.raises(ConfigError, match="dense"):
            read({**MISTRAL, **change})
    with pytest.raises(ConfigError, match="llama"):
        read({**LLAMA, "sliding_window": 4096})
    assert not read(LLAMA).is_sparse


def test_harmless_and_neutral_keys_pass_and_are_written_back():
    harmless = {
        "_name_or_path": "x", "some_version": "3", "unknown_and_off": False, "unknown_and_null": None,
        "attention_bias": False,
        "rope_scaling": None, "partial_rotary_factor": 1.0, "temperature": 0.7, "id2label": {"0": "A"},
        "use_cache": True,
    }  # fmt: skip
    config = read({**MIXTRAL, **harmless})
    assert config == ModelConfig()
    written = config_to_json(config)
    assert all(written[key] == value for key, value in harmless.items() if key != "rope_scaling")
    assert read(written) == config
    assert read(written).extra == {k: v for k, v in config.extra.items()} | {"dtype": "bfloat16"}


@pytest.mark.parametrize("values", [MIXTRAL, MISTRAL, LLAMA, {**MIXTRAL, "eos_token_id": [2, 7]}])
def test_a_configuration_survives_writing_and_reading(values):
    config = read(values)
    written = config_to_json(config)
    assert written["model_type"] == values["model_type"]
    assert read(json.loads(json.dumps(written))) == config
    assert json.dumps(config_to_json(read(written))) == json.dumps(config_to_json(read(config_to_json(read(written)))))


def test_a_window_makes_a_dense_model_a_mistral_one():
    assert config_to_json(replace(read(LLAMA), sliding_window=8))["model_type"] == "mistral"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[1]", "holds a list, expected a JSON object"),
        ("null", "holds null, expected a JSON object"),
        ("{}", "'model_type' is missing"),
        ('{"model_type": NaN}', "NaN"),
        ('{"a": 1, "a": 2}', "twice"),
        ("{", "not valid JSON"),
        ('{"a": ' + "9" * 5000 + "}", "too long"),
        ("[" * 200_000, "nested"),
        ("\ud800", "UTF-8"),
    ],
)
def test_a_config_that_is_no_clean_json_is_refused(tmp_path, text, said):
    (tmp_path / "config.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(ConfigError, match=said):
        read_config(tmp_path)


def test_a_config_of_100_megabytes_is_refused_unread(tmp_path):
    with open(tmp_path / "config.json", "wb") as f:
        f.truncate(100 << 20)
    with pytest.raises(ConfigError, match="bytes"):
        read_config(tmp_path)


def test_saving_writes_what_loading_reads(tiny, tmp_path):
    (tmp_path / "README.md").write_text("a card")
    save_huggingface(tmp_path / "out", tiny.config, tiny.tensors, dtype="f32", extra_files=[tmp_path / "README.md"])
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names == {"config.json", "generation_config.json", "model.safetensors", "README.md"}
    loaded = load_model(tmp_path / "out", dtype="float32", device="cpu")
    assert loaded.config == tiny.config
    assert all(torch.equal(t, tiny.tensors[name]) for name, t in loaded.tensors().items())


def test_large_models_are_written_as_shards_with_an_index(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface, "LARGEST_SHARD", 10_000)
    save_huggingface(tmp_path / "out", tiny.config, tiny.tensors, dtype="f32")
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 2
    assert files[0].name == f"model-00001-of-{len(files):05}.safetensors"
    assert all(sum(t.nbytes for t in load_file(f).values()) <= 10_000 for f in files)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in tiny.tensors.values())
    assert len(open_checkpoint(tmp_path / "out").files) == len(files)


def test_saving_never_replaces_a_folder_unasked_and_leaves_nothing_when_it_fails(tiny, tmp_path):
    save_huggingface(tmp_path / "out", tiny.config, tiny.tensors, dtype="f32")
    with pytest.raises(CheckpointError, match="exists"):
        save_huggingface(tmp_path / "out", tiny.config, tiny.tensors, dtype="f32")
    tiny.tensors["norm"][3] = float("nan")
    with pytest.raises(CheckpointError, match="norm"):
        save_huggingface(tmp_path / "out", tiny.config, tiny.tensors, dtype="f32", replace=True)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    tiny.tensors["norm"][3] = 0.5
    save_huggingface(tmp_path / "out", tiny.config, tiny.tensors, dtype="bf16", replace=True)
    assert open_checkpoint(tmp_path / "out").file_dtype == "bfloat16"


def test_saving_checks_the_disk_first(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 100})())
    with pytest.raises(ResourceError, match=r"has 100 bytes free"):
        save_huggingface(tmp_path / "out", tiny.config, tiny.tensors, dtype="f32")
    assert not list(tmp_path.iterdir())
