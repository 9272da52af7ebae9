"""What an accelerator needs, checked without one: every program lowers for CUDA and for TPUs.

Lowering goes through the rules of the other platform for every operation, so that one without a rule
is found here, and shows what would wait for the host. Whether programs compile and are fast there is
for `benchmarks/gpu.sh` to say.
"""

import os
import re
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from isounc.gradnorm import value_and_sq_grad_norm
from isounc.llm import Decoder, DecoderConfig, Rotary
from isounc.llm.answers.norms import answer_norms
from isounc.llm.answers.packing import pack
from isounc.llm.model.decode import DecodingStrategy, prompt_keys, read_prefix
from isounc.llm.model.decoding_loop import decode_steps
from isounc.models import make_model
from isounc.problems import make_problem
from isounc.sampling import sample_posterior
from isounc.sampling.run import on_one_cpu

PLATFORMS = ("cuda", "tpu")
UNWANTED = re.compile(r"f64>|callback|infeed|outfeed|stablehlo\.(send|recv)\b")
"""Accelerators are slow in double precision, or have none, and wait where the host is asked."""
slow = pytest.mark.skipif(not os.environ.get("ISOUNC_SLOW"), reason="set ISOUNC_SLOW=1")


class Spy:
    """A compiled function that is lowered for other platforms when it is called."""

    def __init__(self, program):
        self.program, self.platforms = program, set()

    def __call__(self, *args, **kwargs):
        # Within another program it is a part of that; and some work is for the host's processor.
        is_part = any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves((args, kwargs)))
        if not is_part and jax.config.jax_default_device is None:
            self.lower_for_all(*args, **kwargs)
        return self.program(*args, **kwargs)

    def lower_for_all(self, *args, **kwargs):
        traced = self.program.trace(*args, **kwargs)
        for platform in PLATFORMS:
            text = traced.lower(lowering_platforms=(platform,)).as_text()
            assert "stablehlo" in text or "return" in text
            found = UNWANTED.search(text)
            assert not found, f"{self.program.__name__} has {found} on {platform}"
            self.platforms.add(platform)

    def __getattr__(self, name):
        return getattr(self.program, name)


@pytest.fixture
def lowered(monkeypatch):
    """The spies on all compiled functions of the package by name, which acts as off the CPU."""
    spies = {}
    for module in [m for name, m in sys.modules.items() if name.startswith("isounc.")]:
        for name, value in list(vars(module).items()):
            if isinstance(value, type(jax.jit(jnp.sin))):
                spies.setdefault(value, Spy(value))
                monkeypatch.setattr(module, name, spies[value])
            elif value is on_one_cpu:
                monkeypatch.setattr(module, name, lambda: False)

    def names():
        return {spy.program.__name__ for spy in spies.values() if spy.platforms == set(PLATFORMS)}

    return names


@pytest.mark.parametrize(
    ("sampler", "programs"),
    [
        ("hmc", {"start", "warm_up", "tune", "draw"}),
        pytest.param("nuts", {"start", "warm_up", "tune", "draw"}, marks=slow),
        pytest.param("tempered_smc", {"start", "reweigh", "mutate", "collect_block"}, marks=slow),
    ],
)
def test_samplers(lowered, sampler, programs):
    problem = make_problem("clusters3", n=20, num_test=5, num_far=5, grid_size=3)
    sample_posterior(
        problem, make_model(problem, width=3), prior_sd=1.0, key=jax.random.key(0),
        sampler=sampler, num_chains=2, num_warmup=20, num_draws=4, max_draws=4, block=4,
    )  # fmt: skip
    assert programs <= lowered()


def test_norms_of_convolutions():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Conv(4, (3, 3))(x)
            x = nn.max_pool(nn.relu(nn.LayerNorm()(x)), (2, 2), (2, 2))
            return nn.Dense(1)(x.reshape(-1))[0]

    x = jnp.ones((2, 6, 6, 1))
    params = jax.eval_shape(Net().init, jax.random.key(0), x[0])
    params = jax.tree.map(lambda a: jnp.ones(a.shape, a.dtype), params)
    norms = value_and_sq_grad_norm(lambda p, x: Net().apply(p, x), in_axes=0)
    spy = Spy(jax.jit(norms))
    spy.lower_for_all(params, x)
    assert spy.platforms == set(PLATFORMS)


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=slow)])
def test_decoder(lowered, dtype):
    config = DecoderConfig("llama", 11, 8, 2, 2, 1, 4, 12, 64, Rotary(1e4, 4), tied=True)
    decoder = Decoder.random(config, dtype=dtype)
    answer_norms(decoder, [pack([1, 2, 3], [[4, 5]])], estimands=("sequence",), scalings=("all",))
    assert {"inputs", "_forward", "_top", "_backward", "_embedding"} <= lowered()
    weights, prompt = decoder.weights(), [1, 2, 3]
    steps = decode_steps(
        config, weights, read_prefix(config, weights, np.array(prompt[:1])), [prompt],
        prompt_keys(0, [prompt], 2), np.zeros(11, bool), strategy=DecodingStrategy(False, 5, True),
        temperature=np.float32(1), top_p=np.float32(0.9), num_tokens=2, max_new_tokens=10,
        has_ended=lambda tokens: np.zeros(tokens.shape[1:], bool),
    )  # fmt: skip
    assert list(steps)[-1].token.shape == (10, 1, 2)
    assert {"_first", "_next", "_block", "_last", "_positions"} <= lowered()


def test_what_waits_for_the_host_is_found():
    def asks(x):
        return x + jax.pure_callback(np.sin, jax.ShapeDtypeStruct(x.shape, x.dtype), x)

    with pytest.raises(ValueError, match="different from the lowering platform cuda"):
        Spy(jax.jit(asks)).lower_for_all(jnp.ones(3))
    with jax.enable_x64(True), pytest.raises(AssertionError, match=r"sin has .*f64"):
        Spy(jax.jit(jnp.sin)).lower_for_all(jnp.ones(3))
