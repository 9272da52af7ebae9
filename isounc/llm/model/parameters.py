"""Parameters of a decoder by their names (`DecoderConfig.shapes`), and by their places.

`Weights` need JAX alone. Importing Flax takes a second, and only `isounc.llm.model.decoder` does it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxtyping import Array

from isounc.llm.model.config import DecoderConfig
from isounc.llm.model.transformer import Weights

DTYPES = ("float32", "bfloat16")
"""Types of weight matrices."""


def weights_of(config: DecoderConfig, parameters: Mapping[str, Array]) -> Weights:
    """Parameters in their places.

    Raises
    ------
    ValueError
        One is missing, unknown, or of another shape.
    """
    check_parameters(config, parameters)
    layers: list[dict[str, Array]] = [{} for _ in range(config.num_layers)]
    for name, array in parameters.items():
        if name.startswith("layers."):
            _, layer, short = name.split(".")
            layers[int(layer)][short] = array
    head = None if config.tied else parameters["head"]
    return Weights(parameters["embed"], tuple(layers), parameters["norm"], head)


def parameters_of(weights: Weights) -> dict[str, Array]:
    """Parameters by their names."""
    parameters = {"embed": weights.embed}
    for i, layer in enumerate(weights.layers):
        parameters |= {f"layers.{i}.{name}": array for name, array in layer.items()}
    parameters["norm"] = weights.norm
    if weights.head is not None:
        parameters["head"] = weights.head
    return parameters


def check_parameters(config: DecoderConfig, parameters: Mapping[str, Any]) -> None:
    """Raise a ValueError unless all parameters are there, no others, and of the right shapes."""
    shapes = config.shapes()
    for verb, names in (
        ("must have", [n for n in shapes if n not in parameters]),
        ("must not have", [n for n in parameters if n not in shapes]),
    ):
        if names:
            more = f" and {len(names) - 4} more" if len(names) > 4 else ""
            raise ValueError(
                f"weights of this {config.architecture} decoder {verb} {', '.join(names[:4])}{more}"
            )
    for name, shape in shapes.items():
        if tuple(parameters[name].shape) != shape:
            raise ValueError(
                f"weights must fit the configuration: {name} must have shape {shape}, got "
                f"{tuple(parameters[name].shape)}"
            )
