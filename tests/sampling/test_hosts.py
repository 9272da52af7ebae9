"""Chains over two hosts, here two processes on the loopback address.

`test_posterior` samples with them (ISOUNC_SLOW=1); this is what sampling takes of them, in seconds.
"""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HOST = """
import sys
import jax
import numpy as np

address, host = sys.argv[1], int(sys.argv[2])
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(address, 2, host, coordinator_bind_address=address)
from isounc.sampling.clock import Clock
from isounc.sampling.run import fetch, spread

state = np.arange(24, dtype=np.float32).reshape(2, 4, 3)  # of B problems and K chains
(own,) = spread(state).addressable_shards
np.testing.assert_array_equal(own.data, state[:, 2 * host : 2 * host + 2])
# Chains move alone; their mean needs all hosts.
moved = jax.jit(lambda x: (x + 1, x.mean(axis=1)))(spread(state))
every, mean = fetch(moved)
np.testing.assert_array_equal(every, state + 1)
np.testing.assert_array_equal(mean, state.mean(axis=1))
three = state[:, :3]  # chains that two devices do not divide stay whole
assert spread(three) is three
np.testing.assert_array_equal(fetch({"own": three})["own"], three)
print(Clock().seconds(), jax.process_count())
"""


def test_two_hosts_share_chains_and_decide_alike():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    hosts = [
        subprocess.Popen(
            [sys.executable, "-c", HOST, address, str(i)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    try:
        # Gloo says something of its own before.
        first, second = (
            host.communicate(timeout=300)[0].splitlines()[-1].split() for host in hosts
        )
        assert [host.returncode for host in hosts] == [0, 0]
    finally:
        for host in hosts:
            host.kill()
    assert first == second, "the clock is that of the first host"
    assert first[1] == "2"
