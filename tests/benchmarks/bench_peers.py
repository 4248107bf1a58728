"""No-op trials through Ray Tune or Optuna, in an environment of their own (`make peers`); `bench_fleet.py` calls this.

    .engines/peers/bin/python tests/benchmarks/bench_peers.py tune|tune-quiet|optuna [--trials 200]

Prints one line of JSON: when each trial was known to have ended, in seconds since the first was asked for.

tune        a Trainable whose step returns at once, `reuse_actors` on, on two CPUs of a local Ray; its own log files
tune-quiet  the same without the log files (TUNE_DISABLE_AUTO_CALLBACK_LOGGERS): of a result only the experiment's
            snapshot remains, which is written every ten seconds or more
optuna      an objective that returns at once, in this process (Optuna has no agents), results in SQLite
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

NUM_CPUS = 2
OBJECT_STORE_BYTES = 100 * 2**20


def tune_ends(num_trials: int, directory: Path, *, log_files: bool) -> list[float]:
    """When each of the trials ended, through Ray Tune."""
    os.environ.update(RAY_USAGE_STATS_ENABLED="0", TUNE_DISABLE_AUTO_CALLBACK_LOGGERS="0" if log_files else "1")
    import ray
    from ray import tune

    class Nothing(tune.Trainable):
        def step(self) -> dict[str, Any]:
            return {"loss": 0.0, "done": True}

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            return True

    class Stamps(tune.Callback):
        def __init__(self) -> None:
            self.ends: list[float] = []

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
            self.ends.append(time.monotonic())

    ray.init(
        num_cpus=NUM_CPUS,
        include_dashboard=False,
        object_store_memory=OBJECT_STORE_BYTES,
        log_to_driver=False,
        logging_level="CRITICAL",
        _temp_dir=str(directory / "ray"),
        _node_ip_address="127.0.0.1",
    )
    stamps = Stamps()
    started = time.monotonic()
    results = tune.Tuner(
        Nothing,
        tune_config=tune.TuneConfig(num_samples=num_trials, reuse_actors=True),
        run_config=tune.RunConfig(
            storage_path=str(directory / "results"),
            verbose=0,
            callbacks=[stamps],
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        ),
    ).fit()
    ray.shutdown()
    if results.errors:  # a trial that fails costs an actor: no fair figure
        raise results.errors[0]
    return [end - started for end in stamps.ends]


def optuna_ends(num_trials: int, directory: Path) -> list[float]:
    """When each of the trials ended, through Optuna with SQLite."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    ends: list[float] = []
    study = optuna.create_study(
        storage=f"sqlite:///{directory}/optuna.sqlite3", sampler=optuna.samplers.RandomSampler(seed=0)
    )
    started = time.monotonic()
    study.optimize(lambda _: 0.0, n_trials=num_trials, callbacks=[lambda _study, _trial: ends.append(time.monotonic())])
    return [end - started for end in ends]


def main() -> None:
    """Run one peer once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", choices=("tune", "tune-quiet", "optuna"))
    parser.add_argument("--trials", type=int, default=200)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="peers-") as name:
        directory = Path(name)
        if arguments.peer == "optuna":
            ends = optuna_ends(arguments.trials, directory)
        else:
            ends = tune_ends(arguments.trials, directory, log_files=arguments.peer == "tune")
    print(json.dumps({"ends": ends}))


if __name__ == "__main__":
    main()
