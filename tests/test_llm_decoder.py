"""The decoder agrees with transformers for every family, from both formats, and its gradient norms are exact."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import llm_files
import numpy as np
import pytest
from flax import nnx

from isounc.gradnorm import explain, value_and_sq_grad_norm
from isounc.llm import Decoder, DecoderConfig, Rotary, load_model
from isounc.llm.config import from_huggingface

VARIANTS = tuple(llm_files.ABOUT)


@pytest.fixture(scope="module")
def folder_models(tmp_path_factory):
    """Each variant from a Hugging Face folder; a third of them in several shards."""
    found = {}
    for i, name in enumerate(VARIANTS):
        path = tmp_path_factory.mktemp(name)
        found[name] = load_model(
            llm_files.write_folder(path / name, name, shards=1 + 2 * (i % 3 == 0))
        )
    return found


def values(model, tokens):
    return np.asarray(
        jax.jit(lambda s: nnx.merge(nnx.graphdef(model.decoder), s)(tokens))(
            nnx.state(model.decoder)
        )
    )


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_of_transformers(folder_models, name):
    stored = llm_files.archive()
    logits = values(folder_models[name], stored["tokens"])
    np.testing.assert_allclose(logits, stored[f"{name}/logits"], rtol=1e-4, atol=3e-5)


# GGUF has no place for the window of Mistral's and Qwen 2's layers.
@pytest.mark.parametrize("name", [n for n in VARIANTS if n not in ("mistral", "qwen2_window")])
def test_gguf_gives_the_same_model(folder_models, tmp_path, name):
    other = load_model(llm_files.write_gguf(tmp_path / "tiny.gguf", name))
    one = folder_models[name]

    # The converter turns the factor of linear scaling and llama3's into the same divisors, up to float32.
    def plain(config):
        return dataclasses.replace(config, rotary=Rotary(config.rotary.base, config.rotary.size))

    assert plain(other.config) == plain(one.config)
    for a, b in zip(other.config.rotary.divisors, one.config.rotary.divisors, strict=True):
        assert a == pytest.approx(b, rel=1e-6)
    for a, b in zip(*(jax.tree.leaves(nnx.state(m.decoder)) for m in (one, other)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    text = "a bad cab\nfed"
    assert other.tokenizer.encode(text) == one.tokenizer.encode(text)
    assert other.tokenizer.stop_ids == one.tokenizer.stop_ids == (2,)


def log_prob(graph, state, tokens):
    logits = nnx.merge(graph, state)(tokens[None, :-1])[0]
    return jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[1:, None], axis=1).sum()


@pytest.mark.parametrize("name", VARIANTS)
def test_gradient_norms_are_exact(folder_models, name):
    graph, state = nnx.split(folder_models[name].decoder)
    tokens = jnp.asarray(llm_files.archive()["tokens"][0, :9])

    def f(state, tokens):
        return log_prob(graph, state, tokens)

    value, sq_norm = value_and_sq_grad_norm(f)(state, tokens)
    right, gradient = jax.jit(jax.value_and_grad(f))(state, tokens)
    assert value == pytest.approx(float(right), rel=1e-5)
    dense = sum(float((g**2).sum()) for g in jax.tree.leaves(gradient))
    assert sq_norm == pytest.approx(dense, rel=1e-4)
    # A tied embedding is one parameter, used twice.
    rows = folder_models[name].config.tied
    assert len(jax.tree.leaves(state)) == len(folder_models[name].config.shapes())
    assert hasattr(folder_models[name].decoder, "unembed") != rows


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_no_matrix_gradient_is_formed(dtype):
    # Wide enough that the engine's rule for a matrix is the cheaper one.
    config = DecoderConfig("llama", 512, 64, 2, 4, 2, 16, 128, 64, Rotary(1e4, 16))
    graph, state = nnx.split(Decoder.random(config, jax.random.key(0), dtype=dtype))
    table = (
        explain(lambda s, t: log_prob(graph, s, t))(state, jnp.arange(9))
        if False
        else explain(lambda s, t: log_prob(graph, s, t), state, jnp.arange(9))
    )
    formed = [leaf for leaf in table.leaves if leaf.way == "formed"]
    assert formed and all(len(leaf.shape) == 1 for leaf in formed)


def test_bfloat16_is_close():
    config = DecoderConfig("llama", 64, 32, 2, 4, 2, 8, 64, 64, Rotary(1e4, 8))
    one = Decoder.random(config, jax.random.key(0))
    two = Decoder.random(config, jax.random.key(0), dtype="bfloat16")
    assert two.embed[...].dtype == jnp.bfloat16 and two.norm[...].dtype == jnp.float32
    tokens = jnp.arange(12)[None]
    a, b = one(tokens), two(tokens)
    assert b.dtype == jnp.float32
    assert 0 < jnp.abs(a - b).max() < 0.1 * jnp.abs(a).max()


@pytest.mark.parametrize("name", ["mistral", "gemma3"])
def test_padding_on_the_right_changes_nothing(folder_models, name):
    decoder = folder_models[name].decoder
    tokens = jnp.asarray(llm_files.archive()["tokens"])
    short = decoder(tokens[:, :12])
    np.testing.assert_allclose(decoder(tokens)[:, :12], short, rtol=1e-5, atol=1e-5)
    # And padding on the left, where positions say so.
    left = jnp.pad(tokens[:, :12], ((0, 0), (3, 0)))
    positions = jnp.arange(15)[None] - 3
    positions = jnp.where(positions < 0, -1, positions)
    np.testing.assert_allclose(
        decoder(left, positions=positions)[:, 3:], short, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3", "qwen2_window"])
def test_cache_gives_what_no_cache_gives(folder_models, name):
    decoder = folder_models[name].decoder
    tokens = jnp.asarray(llm_files.archive()["tokens"])[0]
    # Two rows of different lengths, then three continuations of each, two tokens long.
    lengths = jnp.array([9, 6])
    at = jnp.arange(9)[None]
    positions = jnp.where(at < lengths[:, None], at, -1)
    rows = jnp.stack([tokens[:9], tokens[1:10]])
    states, cache = decoder.extend(rows, positions, decoder.empty_cache(2, 9))
    cache = cache.grown(6)
    np.testing.assert_allclose(states[0], decoder.hidden(rows[:1])[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(states[1, :6], decoder.hidden(rows[1:, :6])[0], rtol=1e-4, atol=1e-5)
    more = tokens[8:20].reshape(2, 3, 2)
    branches = jnp.broadcast_to(jnp.arange(3)[None], (2, 3))
    for step in range(2):
        where = jnp.broadcast_to((lengths + step)[:, None], (2, 3))
        states, cache = decoder.extend(more[:, :, step], where, cache, branches=branches)
        for row in range(2):
            for branch in range(3):
                whole = jnp.concatenate([rows[row, : lengths[row]], more[row, branch, : step + 1]])
                right = decoder.hidden(whole[None])[0, -1]
                np.testing.assert_allclose(states[row, branch], right, rtol=1e-4, atol=1e-5)


def test_forms_of_config_json():
    """Transformers 5 writes rope_parameters; what older versions wrote means the same."""
    for name in ("llama3_rope", "linear_rope", "gemma3", "phi3", "qwen2_window"):
        new = dict(llm_files.ABOUT[name]["config"])
        old = {k: v for k, v in new.items() if k not in ("rope_parameters", "layer_types")}
        rope = new["rope_parameters"]
        if name == "gemma3":
            old |= {"rope_local_base_freq": 100.0, "sliding_window_pattern": 2}
            rope = rope["full_attention"]
        old["rope_theta"] = rope["rope_theta"]
        old["partial_rotary_factor"] = rope.get("partial_rotary_factor", 1.0)
        kind = {"llama3": "rope_type", "linear": "type"}.get(rope["rope_type"])
        scaling = {
            k: v
            for k, v in rope.items()
            if k not in ("rope_theta", "rope_type", "partial_rotary_factor")
        }
        old["rope_scaling"] = scaling | {kind: rope["rope_type"]} if kind else None
        assert from_huggingface(old) == from_huggingface(new)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "mamba"}, "model_type.*llama, mistral, qwen2"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"hidden_act": "relu"}, "hidden_act.*silu"),
        ({"num_key_value_heads": 3}, "num_heads must be a multiple of num_kv_heads, got 4 and 3"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "rope_type.*llama3"),
        ({"rope_parameters": {"rope_type": "llama3"}}, "factor.*rope_scaling"),
        ({"layer_types": ["conv", "conv"]}, "layer_types.*sliding_attention"),
        ({"vocab_size": 0}, "vocab_size"),
    ],
)  # fmt: skip
def test_configurations_that_cannot_be(changes, words):
    with pytest.raises(ValueError, match=words):
        from_huggingface(llm_files.ABOUT["llama"]["config"] | changes)
    with pytest.raises(ValueError, match="hidden_size"):
        from_huggingface({"model_type": "llama", "vocab_size": 3})


def test_weights_that_do_not_fit():
    config = DecoderConfig("llama", 8, 4, 1, 1, 1, 4, 4, 8, Rotary(1e4, 4))
    right = {name: jnp.zeros(shape) for name, shape in config.shapes().items()}
    with pytest.raises(ValueError, match=r"must have layers\.0\.q"):
        Decoder(config, {k: v for k, v in right.items() if k != "layers.0.q"})
    with pytest.raises(ValueError, match="must not have head"):
        Decoder(config, right | {"head": jnp.zeros((4, 8))})
    with pytest.raises(ValueError, match=r"norm is \(5,\) and should be \(4,\)"):
        Decoder(config, right | {"norm": jnp.zeros(5)})
