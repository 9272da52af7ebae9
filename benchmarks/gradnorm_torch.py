"""The MLPs of `gradnorm.py` in PyTorch, and the times that its packages take for their norms.

Each package is used as its documentation shows: BackPACK's BatchL2Grad, Opacus' ghost norms, the
Jacobians on which laplace-torch builds its predictive, deltavar's gradients, input by input.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from gradnorm_models import Job, Timing
from torch import nn


def network(width: int) -> nn.Sequential:
    """P(y=1) of a tanh network of three hidden layers."""
    torch.manual_seed(0)
    hidden = [layer for _ in range(3) for layer in (nn.Linear(width, width), nn.Tanh())]
    return nn.Sequential(*hidden, nn.Linear(width, 1), nn.Sigmoid())


def vmapped(width: int, x: torch.Tensor) -> Callable[[], Any]:
    """torch.func's gradients of all examples."""
    model = network(width)
    params = {name: p.detach() for name, p in model.named_parameters()}

    def f(params, x):
        return torch.func.functional_call(model, params, (x[None],))[0, 0]

    gradients = torch.func.vmap(torch.func.grad(f), in_dims=(None, 0))

    def run():
        return sum(g.flatten(1).square().sum(1) for g in gradients(params, x).values())

    return run


def backpack_norms(width: int, x: torch.Tensor) -> Callable[[], Any]:
    """BackPACK's BatchL2Grad."""
    from backpack import backpack, extend, extensions

    model = extend(network(width))

    def run():
        model.zero_grad()
        with backpack(extensions.BatchL2Grad()):
            model(x).sum().backward()
        return sum(p.batch_l2 for p in model.parameters())

    return run


def opacus_norms(width: int, x: torch.Tensor) -> Callable[[], Any]:
    """The norms that Opacus' ghost clipping computes before it clips."""
    from opacus.grad_sample.grad_sample_module_fast_gradient_clipping import (
        GradSampleModuleFastGradientClipping,
    )

    model = GradSampleModuleFastGradientClipping(
        network(width), loss_reduction="sum", use_ghost_clipping=True
    )

    def run():
        model.zero_grad()
        model(x).sum().backward()
        return model.get_norm_sample() ** 2

    return run


def laplace_norms(width: int, x: torch.Tensor) -> Callable[[], Any]:
    """laplace-torch's Jacobians."""
    from laplace.curvature.curvature import CurvatureInterface

    interface = CurvatureInterface(network(width), "regression")
    return lambda: interface.jacobians(x)[0][:, 0].square().sum(1)


def deltavar_norms(width: int, x: torch.Tensor) -> Callable[[], Any]:
    """deltavar, input by input."""
    from deltavar.core import calculate_delta_variance, get_qoi_gradient

    model = network(width)
    params = {name: p.detach().clone() for name, p in model.named_parameters()}

    def quantity(params, model, z):
        return torch.func.functional_call(model, params, (z[None],))[0, 0]

    def run():
        return torch.stack(
            [
                calculate_delta_variance(get_qoi_gradient(quantity, params, model, row), "identity")
                for row in x
            ]
        )

    return run


def measure_torch(job: Job, *, seconds: float, skip_above: float, skip_work: float) -> list[Timing]:
    """Time every package on a job's MLP; the first timing is that of the forward pass.

    Parameters
    ----------
    job
        Width of the MLP and number of examples.
    seconds
        Seconds for which the runs of all ways together are repeated.
    skip_above
        GiB above which the ways that hold all gradients are left out; they hold several copies.
    skip_work
        Examples times parameters above which deltavar is left out (laplace-torch: 1/1000 of it).
    """
    warnings.filterwarnings("ignore", module="backpack|torch|gradnorm_torch")
    rng = np.random.default_rng(0)
    x = torch.as_tensor(rng.standard_normal((job.batch, job.width)), dtype=torch.float32)
    model = network(job.width)
    size = sum(p.numel() for p in model.parameters())

    def forward():
        with torch.no_grad():
            return model(x)

    def backward():
        model.zero_grad()
        model(x).mean().backward()

    ways: dict[str, Callable[[], Any]] = {"torch forward": forward, "torch backward": backward}
    gradients_fit = 4 * size * job.batch <= skip_above / 4 * 2**30
    makers = {
        "torch BackPACK": (backpack_norms, True),
        "torch Opacus": (opacus_norms, True),
        "torch vmap(grad)": (vmapped, gradients_fit),
        "torch laplace": (laplace_norms, size * job.batch <= skip_work / 1000),
        "torch deltavar": (deltavar_norms, size * job.batch <= skip_work),
    }
    for name, (make, wanted) in makers.items():
        try:
            if wanted:
                ways[name] = make(job.width, x)
        except (ImportError, SyntaxError) as error:  # some packages need a newer Python
            print(f"{name} is left out: {error}")
    best, results = {}, {}
    for name, run in ways.items():
        results[name] = run()
        best[name] = np.inf
        begin, rounds = time.perf_counter(), 0
        while rounds < 2 or (time.perf_counter() - begin < seconds / len(ways) and rounds < 50):
            start = time.perf_counter()
            run()
            best[name] = min(best[name], time.perf_counter() - start)
            rounds += 1
    exact = results.get("torch vmap(grad)", results.get("torch deltavar"))
    timings = []
    for name in ways:
        error = None
        if exact is not None and name not in ("torch forward", "torch backward"):
            norms, truth = (values.detach().double() for values in (results[name], exact))
            error = float((norms / truth - 1).square().mean().sqrt())
        timings.append(Timing(name, best[name], error))
    return timings
