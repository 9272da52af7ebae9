"""Description of a decoder, which `huggingface_config` and `gguf` make from files.

The families of models differ only in the place of norms, in biases, rotary embeddings and windows.
Each difference is a field here, so that one module computes them all.
"""

from __future__ import annotations

from dataclasses import dataclass

from isounc.checks import check_choice, check_count, check_real

ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3", "gemma3_text", "olmo2", "phi3")
"""Families that can be loaded."""
ACTIVATIONS = ("silu", "gelu", "gelu_tanh")
QK_NORMS = ("none", "head", "projection")


@dataclass(frozen=True)
class Rotary:
    """Rotary position embedding.

    Dimensions i and i + size/2 rotate by the angle position * base^(-2i/size) / divisors[i].

    Source: Su et al. 2021 (arXiv 2104.09864).
    """

    base: float
    """Base of the wavelengths."""
    size: int
    """Dimensions of each head that rotate, from the first on."""
    divisors: tuple[float, ...] = ()
    """Divisors of the size/2 frequencies (context extension); () is 1 for all."""

    def __post_init__(self):
        check_real("base of the rotary embedding", self.base, positive=True)
        check_count("size of the rotary embedding", self.size, 2)
        if self.size % 2 or len(self.divisors) not in (0, self.size // 2):
            raise ValueError(
                "size of the rotary embedding must be even, with a divisor for each pair, got "
                f"{self.size} and {len(self.divisors)} divisors"
            )
        for divisor in self.divisors:
            check_real("divisors of the rotary embedding", divisor, positive=True)


@dataclass(frozen=True)
class DecoderConfig:
    """A decoder-only transformer with grouped-query attention, rotary positions and a gated MLP."""

    architecture: str
    """Family, by its name in Hugging Face's `model_type`."""
    vocab_size: int
    """V, rows of the embedding."""
    width: int
    """W, width of the residual stream."""
    num_layers: int
    """Blocks of attention and MLP."""
    num_heads: int
    """Query heads."""
    num_kv_heads: int
    """Key and value heads; each serves num_heads / num_kv_heads query heads."""
    head_width: int
    """Dimensions of a head."""
    mlp_width: int
    """Hidden units of the gated MLP."""
    context_length: int
    """Largest number of tokens that the model was made for."""
    rotary: Rotary
    """Position embedding."""
    norm_eps: float = 1e-5
    """Added to the mean square in RMS norms."""
    windows: tuple[int, ...] = ()
    """Number of positions that each layer attends to, its own included; 0 is all. () is 0
    everywhere."""
    local_rotary: Rotary | None = None
    """Position embedding of layers with a window; None is that of the others."""
    activation: str = "silu"
    """Activation of the MLP's gate: silu, gelu or gelu_tanh."""
    tied: bool = True
    """Whether the output head is the embedding."""
    qkv_bias: bool = False
    """Whether queries, keys and values have biases."""
    out_bias: bool = False
    """Whether attention's output projection has a bias."""
    qk_norm: str = "none"
    """RMS norm of queries and keys before they rotate: `none`, by `head`, or over the whole
    `projection`."""
    norm_in: bool = True
    """RMS norm of the inputs of attention and MLP."""
    norm_out: bool = False
    """RMS norm of their outputs, before these are added to the residual stream."""
    embed_scale: float = 1.0
    """Factor of the input embeddings (not of a tied head)."""
    query_scale: float | None = None
    """Factor of the attention scores; None is 1 / sqrt(head_width)."""

    def __post_init__(self):
        check_choice("architecture", self.architecture, ARCHITECTURES)
        check_choice("activation", self.activation, ACTIVATIONS)
        check_choice("qk_norm", self.qk_norm, QK_NORMS)
        for name in ("vocab_size", "width", "num_layers", "num_heads", "num_kv_heads"):
            check_count(name, getattr(self, name), 1)
        for name in ("head_width", "mlp_width", "context_length"):
            check_count(name, getattr(self, name), 1)
        check_real("norm_eps", self.norm_eps)
        check_real("embed_scale", self.embed_scale, positive=True)
        if self.query_scale is not None:
            check_real("query_scale", self.query_scale, positive=True)
        for name in ("tied", "qkv_bias", "out_bias", "norm_in", "norm_out"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be true or false, got {getattr(self, name)!r}")
        for window in self.windows:
            check_count("windows", window, 0)
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                "num_heads must be a multiple of num_kv_heads, got "
                f"{self.num_heads} and {self.num_kv_heads}"
            )
        if len(self.windows) not in (0, self.num_layers):
            raise ValueError(
                f"windows must have one entry a layer ({self.num_layers}), got {len(self.windows)}"
            )
        for rotary in (self.rotary, self.local_rotary):
            if rotary and rotary.size > self.head_width:
                raise ValueError(
                    f"size of the rotary embedding must be at most head_width {self.head_width}, "
                    f"got {rotary.size}"
                )

    def window(self, layer: int) -> int:
        """Number of positions that a layer attends to; 0 is all."""
        return self.windows[layer] if self.windows else 0

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every parameter of a `Decoder` by name; matrices are (inputs, outputs)."""
        q, kv = self.num_heads * self.head_width, self.num_kv_heads * self.head_width
        block = {
            "q": (self.width, q), "k": (self.width, kv), "v": (self.width, kv),
            "out": (q, self.width),
            "gate": (self.width, self.mlp_width), "up": (self.width, self.mlp_width),
            "down": (self.mlp_width, self.width),
        }  # fmt: skip
        if self.qkv_bias:
            block |= {"q_bias": (q,), "k_bias": (kv,), "v_bias": (kv,)}
        if self.out_bias:
            block |= {"out_bias": (self.width,)}
        if self.qk_norm == "head":
            block |= {"q_norm": (self.head_width,), "k_norm": (self.head_width,)}
        if self.qk_norm == "projection":
            block |= {"q_norm": (q,), "k_norm": (kv,)}
        if self.norm_in:
            block |= {"attention_norm_in": (self.width,), "mlp_norm_in": (self.width,)}
        if self.norm_out:
            block |= {"attention_norm_out": (self.width,), "mlp_norm_out": (self.width,)}
        shapes: dict[str, tuple[int, ...]] = {"embed": (self.vocab_size, self.width)}
        for i in range(self.num_layers):
            shapes |= {f"layers.{i}.{name}": shape for name, shape in block.items()}
        shapes["norm"] = (self.width,)
        if not self.tied:
            shapes["head"] = (self.width, self.vocab_size)
        return shapes
