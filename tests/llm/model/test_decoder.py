"""The decoder agrees with transformers for every family, and its gradient norms are exact."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from isounc.gradnorm import explain, value_and_sq_grad_norm
from isounc.llm import Decoder, DecoderConfig, Rotary, load_model
from isounc.llm.model import attention
from isounc.llm.model.huggingface_config import from_huggingface
from tests.llm import files as llm_files

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


def compiled(model, method="__call__"):
    """A method of a decoder, compiled as a whole and not operation by operation."""
    graph, state = nnx.split(getattr(model, "decoder", model))

    @jax.jit
    def run(state, *args, **kwargs):
        return getattr(nnx.merge(graph, state), method)(*args, **kwargs)

    return functools.partial(run, state)


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_of_transformers(folder_models, name):
    stored = llm_files.archive()
    logits = compiled(folder_models[name])(stored["tokens"])
    np.testing.assert_allclose(logits, stored[f"{name}/logits"], rtol=1e-4, atol=3e-5)


# GGUF has no place for the window of Mistral's and Qwen 2's layers.
@pytest.mark.parametrize("name", [n for n in VARIANTS if n not in ("mistral", "qwen2_window")])
def test_gguf_gives_the_same_model(folder_models, tmp_path, name):
    other = load_model(llm_files.write_gguf(tmp_path / "tiny.gguf", name))
    one = folder_models[name]

    # The converter writes the factors of linear scaling and of llama3 as divisors in float32.
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


def test_few_keys_are_summed_over_as_many_are_multiplied(monkeypatch):
    """The same numbers and gradients from sums and from matrix products."""
    config = DecoderConfig(
        "llama", 10, 8, 1, num_heads=4, num_kv_heads=2, head_width=2, mlp_width=8,
        context_length=8, rotary=Rotary(1e4, 2),
    )  # fmt: skip
    rng = np.random.default_rng(0)
    shapes = ((3, 4, 5, 2), (3, 2, 6, 2), (3, 2, 6, 2))
    q, keys, values = (jnp.asarray(rng.standard_normal(s), jnp.float32) for s in shapes)
    mask = jnp.asarray(rng.random((3, 5, 6)) < 0.7)

    def attend(q, keys, values):
        return (attention.attention(q, keys, values, mask, config) ** 2).sum()

    found = []
    for few in (8, 0):
        monkeypatch.setattr(attention, "FEW", few)
        program = str(jax.make_jaxpr(lambda *a: attend(*a))(q, keys, values))
        assert ("dot_general" in program) == (few == 0)
        found.append(jax.grad(attend, (0, 1, 2))(q, keys, values))
        wide = [a.astype(jnp.bfloat16) for a in (q, keys, values)]
        found.append(attention.attention(*wide, mask, config).astype(jnp.float32))
    for own, other in zip(found[0], found[2], strict=True):
        np.testing.assert_allclose(own, other, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found[1], found[3], rtol=2e-2, atol=1e-2)


# What a variant adds over another (a rotary embedding, a window) has no parameters.
@pytest.mark.parametrize(
    "name", ["llama", "llama3_rope", "qwen2", "qwen3", "gemma3", "olmo2", "phi3"]
)
def test_gradient_norms_are_exact(folder_models, name):
    whole = folder_models[name].decoder
    # One layer is half as long to compile; Gemma's first has a window.
    config = dataclasses.replace(whole.config, num_layers=1, windows=whole.config.windows[:1])
    paths = {".".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(nnx.state(whole))}
    weights = {n: paths[{"head": "unembed"}.get(n, n)][...] for n in config.shapes()}
    graph, state = nnx.split(Decoder(config, weights))
    assert len(jax.tree.leaves(state)) == len(config.shapes())  # a tied embedding is one
    tokens = llm_files.archive()["tokens"][0, :9]

    def f(state, tokens):
        return log_prob(graph, state, tokens)

    @jax.jit
    def dense(state, tokens):
        value, gradient = jax.value_and_grad(f)(state, tokens)
        return value, [(g**2).sum() for g in jax.tree.leaves(gradient)]

    value, sq_norms = value_and_sq_grad_norm(f, per_leaf=True)(state, tokens)
    right, parts = jax.device_get(dense(state, tokens))
    assert value == pytest.approx(float(right), rel=1e-5)
    np.testing.assert_allclose(list(jax.device_get(sq_norms).values()), parts, rtol=1e-4)
    assert min(parts) > 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_no_matrix_gradient_is_formed(dtype):
    # Wide enough that the engine's rule for a matrix is the cheaper one.
    config = DecoderConfig("llama", 512, 64, 2, 4, 2, 16, 128, 64, Rotary(1e4, 16))
    graph, state = nnx.split(Decoder.random(config, dtype=dtype))
    table = explain(lambda s, t: log_prob(graph, s, t), state, jnp.arange(9))
    formed = [leaf for leaf in table.leaves if leaf.way == "formed"]
    assert formed and all(len(leaf.shape) == 1 for leaf in formed)


def test_bfloat16_is_close():
    config = DecoderConfig("llama", 64, 32, 2, 4, 2, 8, 64, 64, Rotary(1e4, 8))
    one = Decoder.random(config)
    two = Decoder.random(config, dtype="bfloat16")
    assert two.embed[...].dtype == jnp.bfloat16 and two.norm[...].dtype == jnp.float32
    tokens = np.arange(12)[None]
    a, b = (np.asarray(compiled(model)(tokens)) for model in (one, two))
    assert b.dtype == np.float32
    assert 0 < np.abs(a - b).max() < 0.1 * np.abs(a).max()


def test_padding_changes_nothing(folder_models):
    decode = compiled(folder_models["gemma3"])

    def run(*args, **kwargs):
        return np.asarray(decode(*args, **kwargs))

    tokens = llm_files.archive()["tokens"]
    whole = run(tokens)[:, :12]
    other = np.where(np.arange(20)[None] < 12, tokens, 5)
    np.testing.assert_array_equal(run(other)[:, :12], whole)
    # On the left too, where positions say so.
    left = np.roll(tokens, 8, axis=1)
    positions = np.maximum(np.arange(20) - 8, -1)[None]
    shifted = run(left, positions=positions)[:, 8:]
    np.testing.assert_allclose(shifted, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_cache_gives_what_no_cache_gives(folder_models, name):
    extend, hidden = (compiled(folder_models[name], method) for method in ("extend", "hidden"))
    tokens = llm_files.archive()["tokens"][0]
    # Two beginnings of different lengths, then three continuations of each, two tokens long.
    lengths, rows = np.array([9, 6]), np.stack([tokens[:9], tokens[1:10]])
    more = tokens[8:20].reshape(2, 3, 2)
    whole = np.zeros((6, 11), int)
    for i, (row, branch) in enumerate(np.ndindex(2, 3)):
        ids = [*rows[row, : lengths[row]], *more[row, branch]]
        whole[i, : len(ids)] = ids
    right = np.asarray(hidden(whole)).reshape(2, 3, 11, -1)
    at = np.arange(9)[None]
    positions = np.where(at < lengths[:, None], at, -1)
    empty = folder_models[name].decoder.empty_cache(2, 9)
    states, cache = extend(rows, positions, empty)
    states, cache = np.asarray(states), jax.jit(lambda c: c.grown(6))(cache)
    for row, length in enumerate(lengths):
        close(states[row, :length], right[row, 0, :length])
    branches = np.broadcast_to(np.arange(3)[None], (2, 3))
    for step in range(2):
        where = np.broadcast_to((lengths + step)[:, None], (2, 3))
        states, cache = extend(more[:, :, step], where, cache, branches=branches)
        for row, length in enumerate(lengths):
            close(np.asarray(states)[row], right[row, :, length + step])
    assert int(cache.used) == 15


def close(found, right):
    np.testing.assert_allclose(found, right, rtol=1e-4, atol=1e-5)


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
    with pytest.raises(ValueError, match=r"norm must have shape \(4,\), got \(5,\)"):
        Decoder(config, right | {"norm": jnp.zeros(5)})
