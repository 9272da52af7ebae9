"""A decoder-only transformer of the Llama family in Flax NNX.

Every weight matrix is stored as (inputs, outputs) and used once, as `x @ W`; a tied embedding is
one parameter used twice. `isounc.gradnorm` therefore forms gradients of biases and norms only.

Axes: B rows, T tokens, W width, V tokens of the vocabulary, slots of the cache.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from isounc.checks import check_choice
from isounc.llm.model import transformer
from isounc.llm.model.config import DecoderConfig
from isounc.llm.model.parameters import DTYPES, check_parameters
from isounc.llm.model.transformer import Cache, Weights


class Block(nnx.Module):
    """Parameters of attention and gated MLP, each of which is added to the residual stream."""

    def __init__(self, weights: Mapping[str, Array]):
        self.names = tuple(weights)
        for name, value in weights.items():
            setattr(self, name, nnx.Param(value))

    def weights(self) -> dict[str, Array]:
        """Parameters by name."""
        return {name: getattr(self, name)[...] for name in self.names}


class Decoder(nnx.Module):
    """A decoder-only transformer: token ids to logits of the next token.

    Parameters come from `weights`, by the names and shapes of `DecoderConfig.shapes`. Norms, scores
    and softmax of attention, rotary angles and logits are computed in float32 whatever the type of
    the weights.

    Blocks are a list, and one compiled program serves them all (`isounc.llm.model.transformer`):
    called outside of `jax.jit`, a decoder compiles as fast as one of a single layer. Inside of it
    every layer is compiled anew.

    Raises
    ------
    ValueError
        A weight is missing, unknown, or of another shape.
    """

    def __init__(self, config: DecoderConfig, weights: Mapping[str, Array]):
        check_parameters(config, weights)
        self.config = config
        self.embed = nnx.Param(weights["embed"])
        self.layers = nnx.List()
        for i in range(config.num_layers):
            prefix = f"layers.{i}."
            block = {n.removeprefix(prefix): w for n, w in weights.items() if n.startswith(prefix)}
            self.layers.append(Block(block))
        self.norm = nnx.Param(weights["norm"])
        if not config.tied:
            self.unembed = nnx.Param(weights["head"])

    def weights(self) -> Weights:
        """All parameters, as arrays."""
        layers = tuple(layer.weights() for layer in self.layers)
        head = None if self.config.tied else self.unembed[...]
        return Weights(self.embed[...], layers, self.norm[...], head)

    @classmethod
    def random(cls, config: DecoderConfig, seed: int = 0, *, dtype: str = "float32") -> Decoder:
        """A decoder with normal weights of variance 1/fan-in, norms of 1 and biases of 0."""
        check_choice("dtype", dtype, DTYPES)
        rng = np.random.default_rng(seed)
        weights = {}
        for name, shape in config.shapes().items():
            if len(shape) == 2:
                fan_in = config.width if name == "embed" else shape[0]
                drawn = rng.standard_normal(shape, np.float32) / np.float32(math.sqrt(fan_in))
                weights[name] = jnp.asarray(drawn, dtype)
            else:
                fill = np.zeros if name.endswith("bias") else np.ones
                weights[name] = jnp.asarray(fill(shape, np.float32))
        return cls(config, weights)

    def __call__(
        self, tokens: Int[Array, "B T"], *, positions: Int[Array, "B T"] | None = None
    ) -> Float[Array, "B T V"]:
        """Logits of the token after each position, float32.

        Tokens to the right of a row's end change nothing before it. `positions` are 0, 1, ... in
        each row unless given; -1 marks padding anywhere.
        """
        return self.head(self.hidden(tokens, positions=positions))

    def hidden(
        self,
        tokens: Int[Array, "B T"],
        *,
        positions: Int[Array, "B T"] | None = None,
        branches: Int[Array, "B T"] | None = None,
    ) -> Float[Array, "B T W"]:
        """States after the last norm, of which `head` makes logits; `branches` as in `extend`."""
        if positions is None:
            positions = jnp.arange(tokens.shape[1])[None]
        return transformer.hidden(self.config, self.weights(), tokens, positions, branches)

    def head(self, states: Float[Array, "*axes W"]) -> Float[Array, "*axes V"]:
        """Logits of states, float32.

        Give only the states whose logits are needed: a large vocabulary takes most of the time.
        """
        head = None if self.config.tied else self.unembed[...]
        return transformer.logits_of(states, self.embed[...], head)

    def empty_cache(self, num_rows: int, num_slots: int) -> Cache:
        """A cache without tokens."""
        return transformer.empty_cache(self.config, num_rows, num_slots, self.embed[...].dtype)

    def extend(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        cache: Cache,
        *,
        branches: Int[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T W"], Cache]:
        """States of tokens that follow those in the cache, and the cache with them added.

        A token attends to the tokens at its own position or before, in the cache and among
        `tokens`. Positions of -1 are padding. With `branches`, a row holds several continuations of
        one beginning: a token attends to its own branch and to the shared one (-1), so that the
        beginning is kept and read once for all continuations.

        The cache must have room for T more tokens (`Cache.grown`). Inside of jit this cannot be
        checked.
        """
        x, cache = transformer.extend(
            self.config, self.weights(), tokens, positions, cache, branches=branches
        )
        return transformer.final_norm(self.config, self.norm[...], x), cache
