"""A fake engine: tells the roofline's time for a batch instead of taking it. For tests and dry runs of a fleet.

    python fake_driver.py REQUEST.json

Everything it says is labelled fake: its version, its device, and the flag on every row that comes of it. Windows vary
by about 1 % from seed to seed, so that intervals have a width.
"""

import math
import os
import random
import sys
from typing import TYPE_CHECKING, Any, TextIO

# Imported, or run by path in an interpreter that need not have archfleet: see driver_kit.py.
if TYPE_CHECKING or __package__:
    from agent.engines import driver_kit as kit
else:
    sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))  # noqa: PTH120
    import driver_kit as kit

    kit.hide_drivers_folder()


def run(request: dict[str, Any], messages: TextIO) -> None:
    """Speak the protocol of `base.py`; computes nothing but the pretended times."""
    config = kit.read_json(request["config_directory"], "config.json")
    batch_seconds = request["fake_batch_seconds"] * random.Random(request["seed"]).gauss(1, 0.01)
    num_batches = max(1, math.ceil(request["min_window_seconds"] / batch_seconds))
    kit.tell(
        messages,
        event="ready",
        versions={"fake": "1"},
        device={"kind": "cpu", "name": "fake", "memory_bytes": 0},
        num_total_parameters=num_parameters(config),
    )
    kit.tell(
        messages,
        event="result",
        window_seconds=batch_seconds * num_batches,
        cpu_seconds=0.0,
        num_batches=num_batches,
        num_output_tokens=num_batches * request["batch_size"] * request["output_tokens"],
        logits_finite=True,
    )


def num_parameters(config: dict[str, Any]) -> int:
    """Weights of a dense decoder with tied or free head, norms included: what a real engine would hold."""
    d, width = config["hidden_size"], config["head_dim"]
    attention = 2 * d * width * (config["num_attention_heads"] + config["num_key_value_heads"])
    layer = attention + 3 * d * config["intermediate_size"] + 2 * d
    embeddings = config["vocab_size"] * d * (1 if config["tie_word_embeddings"] else 2)
    return int(config["num_hidden_layers"] * layer + embeddings + d)


if __name__ == "__main__":
    sys.exit(kit.serve(sys.argv[1], run))
