"""Writes paper_like_runs.csv: SYNTHETIC runs that obey the published conditional law. Nothing was trained.

Shape terms: the coefficients that arXiv 2510.18245 fitted on 80M, 145M and 297M. Their level L_opt(N, D) is assumed,
not published: 2.2 + 482 / N^0.348 + 2085 / D^0.366 nats per token. Noise of one run: 0.003 nats, seeded.
"""

import csv
import sys
from pathlib import Path

import numpy as np

from scaling.law import ChinchillaLaw, ConditionalLaw
from scaling.space import SearchSpace

LAW = ConditionalLaw(a=(2.697, 0.0974, 0.0078), b=(0.387, 0.0063, 0.0065))
LEVEL = ChinchillaLaw(E=2.2, A=482.0, B=2085.0, alpha=0.348, beta=0.366)
NOISE_SD_NATS = 0.003
SEED = 20251021
SIZES = (80_000_000, 145_000_000, 297_000_000)
CROSS = (
    (0.08, 1.5),
    (0.08, 0.6),
    (0.08, 1.0),
    (0.08, 2.6),
    (0.08, 4.6),
    (0.05, 1.5),
    (0.063, 1.5),
    (0.1, 1.5),
    (0.13, 1.5),
)
"""Wanted (x, r) of the shapes at every size; the nearest legal shape is taken."""
HEADER = f"""\
# SYNTHETIC runs: no model was trained. Written by tests/data/make_paper_like_runs.py (seed {SEED}).
# Loss = (2.697 + 0.0974 ln x + 0.0078/x) (0.387 + 0.0063 ln r + 0.0065/r) L_opt(N, D) + noise, sd {NOISE_SD_NATS} nats;
# the brackets are those of arXiv 2510.18245, L_opt = 2.2 + 482/N^0.348 + 2085/D^0.366 is assumed.
"""
COLUMNS = ("hidden_size", "intermediate_size", "n_layers", "n_heads", "n_kv_heads", "head_dim")
FIELDS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
)


def rows() -> list[dict[str, int | float]]:
    """Per size nine shapes at 100 tokens a parameter, the centre twice more there and once at 20."""
    generator = np.random.default_rng(SEED)
    found = []
    for size in SIZES:
        candidates = SearchSpace(
            num_parameters=size,
            tolerance=0.02,
            num_hidden_layers=16,
            head_dim=64,
            query_group_sizes=(4,),
            hidden_multiple_of=64,
            intermediate_multiple_of=64,
            vocab_size=128_256,
        ).enumerate()
        wanted = [(*shape, 100, 0) for shape in CROSS]
        wanted += [(*CROSS[0], 100, 1), (*CROSS[0], 100, 2), (*CROSS[0], 20, 0)]
        for x, r, tokens_per_parameter, seed in wanted:
            shape = candidates.architecture(candidates.nearest(x=x, r=r))
            tokens = size * tokens_per_parameter
            level = LEVEL.predict(shape.num_parameters, tokens)
            loss = float(LAW.predict(shape.width_ratio, shape.mlp_attention_ratio, level))
            loss += NOISE_SD_NATS * float(generator.standard_normal())
            row = {column: getattr(shape, field) for column, field in zip(COLUMNS, FIELDS, strict=True)}
            row |= {
                "n_params_non_embed": shape.num_parameters,
                "n_tokens": tokens,
                "seed": seed,
                "loss": round(loss, 5),
            }
            found.append(row)
    return found


def write(path: Path) -> None:
    """The table with its header."""
    table = rows()
    with path.open("w", newline="", encoding="utf-8") as file:
        file.write(HEADER)
        writer = csv.DictWriter(file, fieldnames=list(table[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("paper_like_runs.csv"))
