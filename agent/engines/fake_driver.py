"""A fake engine: tells the roofline's time for a batch instead of taking it. For tests and dry runs of a fleet.

    python fake_driver.py REQUEST.json

Everything it says is labelled fake: its version, its device, and the flag on every row that comes of it. Windows vary
by about 1 % from seed to seed, so that intervals have a width.
"""

import json
import math
import os
import random
import sys
from typing import Any


def main(request_file: str) -> int:
    """Speak the protocol of `base.py`; computes nothing but the pretended times. Returns the exit status."""
    with open(request_file, encoding="utf-8") as file:  # noqa: PTH123
        request = json.load(file)
    with open(os.path.join(request["config_directory"], "config.json"), encoding="utf-8") as file:  # noqa: PTH118, PTH123
        config = json.load(file)
    batch_seconds = request["fake_batch_seconds"] * random.Random(request["seed"]).gauss(1, 0.01)
    num_batches = max(1, math.ceil(request["min_window_seconds"] / batch_seconds))
    tell(
        event="ready",
        versions={"fake": "1"},
        device={"kind": "cpu", "name": "fake", "memory_bytes": 0},
        num_total_parameters=num_parameters(config),
    )
    tell(
        event="result",
        window_seconds=batch_seconds * num_batches,
        cpu_seconds=0.0,
        num_batches=num_batches,
        num_output_tokens=num_batches * request["batch_size"] * request["output_tokens"],
        logits_finite=True,
    )
    return 0


def num_parameters(config: dict[str, Any]) -> int:
    """Weights of a dense decoder with tied or free head, norms included: what a real engine would hold."""
    d, width = config["hidden_size"], config["head_dim"]
    attention = 2 * d * width * (config["num_attention_heads"] + config["num_key_value_heads"])
    layer = attention + 3 * d * config["intermediate_size"] + 2 * d
    embeddings = config["vocab_size"] * d * (1 if config["tie_word_embeddings"] else 2)
    return int(config["num_hidden_layers"] * layer + embeddings + d)


def tell(**fields: Any) -> None:
    """Write one message; `event` is its first key."""
    print(json.dumps(fields), flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
