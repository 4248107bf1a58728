"""The world of a simulated fleet: what a run costs on each hardware, and the loss or throughput that comes of it.

SIMULATED: nothing is trained, nothing is served. Losses obey a known conditional law plus noise, and a training takes

    seconds = D · (step seconds / batch tokens + 6 N / attained FLOP/s)

with the assumed figures of `SPEEDS`. A benchmark tells the roofline's throughput of its hardware under the fake engine.
Noise is drawn from a run's content, so that a run that is made twice gives the same loss, as a real one does.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from types import MappingProxyType

from agent.assignment import BenchAssignment, TrainAssignment
from agent.benchmark.run import mean_with_interval
from hwprofiles.catalog import load_profile
from scaling.architecture import Architecture
from scaling.law import ChinchillaLaw, ConditionalLaw
from scaling.observations import Provenance, ServingObservation, ServingRepeat, TrainingObservation, TrainingPoint
from scaling.quantity import NotMeasured
from scaling.recipes import ServingRecipe, Workload
from scaling.serving import predict_serving
from scaling.simulation import NOISE_SD_NATS, Truth

ENGINE_VERSION = "fake (simulated)"
ENGINE_START_SECONDS = 60.0
"""Assumed: a fresh engine process on an accelerator."""
WINDOW_NOISE = 0.01
"""Relative spread of a benchmark's repeats, as the fake engine has it."""


@dataclass(frozen=True, kw_only=True)
class TrainingSpeed:
    """Assumed: the host's seconds for one optimiser step, and the FLOP/s that a training attains."""

    step_seconds: float
    flops_per_second: float

    def seconds_per_token(self, num_parameters: float, batch_tokens: int) -> float:
        """Seconds of one training token."""
        return self.step_seconds / batch_tokens + 6 * num_parameters / self.flops_per_second


SPEEDS: Mapping[str, TrainingSpeed] = MappingProxyType(
    {
        # 40 % of the sheets' dense peaks; small models are bound by the host's time for a step.
        "h200": TrainingSpeed(step_seconds=0.005, flops_per_second=0.4 * 989e12),
        "a100-80gb": TrainingSpeed(step_seconds=0.006, flops_per_second=0.4 * 312e12),
        "cpu-generic": TrainingSpeed(step_seconds=0.01, flops_per_second=0.4 * 80e9),
    }
)
"""Hardware that a simulated fleet may have."""


def truth_with_optimum(x: float, *, name: str) -> Truth:
    """A truth whose best shape has this x = d / sqrt(N), and r* 1.4; its other constants are made up.

    At the sizes of the shipped study laptop it gives 2 to 4 nats/token. Brackets as in scaling/simulation.py.
    """
    law = ConditionalLaw(a=(1.0, 0.08, 0.08 * x), b=(1.0, 0.05, 0.05 * 1.4))
    reference = ChinchillaLaw(E=1.6, A=40.0, B=180.0, alpha=0.34, beta=0.38)
    return Truth(name=name, reference=reference, small=law, large=law)


LAPTOP_TRUTH = truth_with_optimum(0.27, name="laptop")


@dataclass(frozen=True, kw_only=True)
class SimulatedWorld:
    """One world: its truth, the noise of a run's loss in nats per token, and the seed of that noise."""

    truth: Truth = LAPTOP_TRUTH
    noise_sd_nats: float = NOISE_SD_NATS
    seed: int = 0
    _expected: dict[tuple[Architecture, int], float] = field(default_factory=dict, compare=False)

    def seconds(self, assignment: TrainAssignment | BenchAssignment, hardware: str) -> float:
        """How long an assignment takes on a healthy agent of this hardware."""
        if isinstance(assignment, TrainAssignment):
            recipe = assignment.recipe
            own_tokens = recipe.num_tokens - assignment.trunk_tokens
            return own_tokens * self.seconds_per_token(assignment.architecture, recipe.batch_tokens, hardware)
        return assignment.num_repeats * (ENGINE_START_SECONDS + assignment.min_window_seconds)

    def seconds_per_token(self, architecture: Architecture, batch_tokens: int, hardware: str) -> float:
        """Seconds of one training token of a shape."""
        return SPEEDS[hardware].seconds_per_token(architecture.num_parameters, batch_tokens)

    def train(
        self, assignment: TrainAssignment, *, seconds: float, num_resumes: int, provenance: Provenance
    ) -> TrainingObservation:
        """A finished training that took so many seconds."""
        source = random.Random(f"{self.seed}/{assignment.id}")
        tokens = assignment.recipe.num_tokens
        loss = self._expected_loss(assignment.architecture, tokens) + source.gauss(0, self.noise_sd_nats)
        return TrainingObservation(
            assignment_id=assignment.id,
            architecture=assignment.architecture,
            recipe=assignment.recipe,
            corpus_id=assignment.corpus_id,
            loss=loss,
            loss_standard_error=0.0,
            window_losses=(loss,) * assignment.num_eval_windows,
            num_tokens=tokens,
            tokens_per_second=tokens / seconds,
            train_seconds=seconds,
            num_resumes=num_resumes,
            curve=(TrainingPoint(num_tokens=tokens, loss=loss, learning_rate=0.0, gradient_norm=0.0),),
            provenance=provenance,
        )

    def bench(
        self, assignment: BenchAssignment, *, hardware: str, speed: float, provenance: Provenance
    ) -> ServingObservation:
        """A finished benchmark on an agent that runs at `speed` times its healthy rate."""
        source = random.Random(f"{self.seed}/{assignment.id}/{hardware}")
        rate = speed * _roofline_rate(assignment.architecture, assignment.recipe, assignment.workload, hardware)
        rates = [rate * source.gauss(1, WINDOW_NOISE) for _ in range(assignment.num_repeats)]
        load, window = assignment.workload, assignment.min_window_seconds
        all_per_output = (load.input_tokens + load.output_tokens) / load.output_tokens
        return ServingObservation(
            assignment_id=assignment.id,
            architecture=assignment.architecture,
            recipe=assignment.recipe,
            workload=load,
            engine_version=ENGINE_VERSION,
            repeats=tuple(
                ServingRepeat(output_tokens_per_second=one, seconds=window, num_output_tokens=round(one * window))
                for one in rates
            ),
            output_tokens_per_second=mean_with_interval(rates, "tokens/s"),
            total_tokens_per_second=mean_with_interval([one * all_per_output for one in rates], "tokens/s"),
            coefficient_of_variation=WINDOW_NOISE,
            mean_running_sequences=NotMeasured(reason="simulated"),
            joules_per_output_token=NotMeasured(reason="simulated"),
            flags=("fake",),
            provenance=provenance,
        )

    def _expected_loss(self, architecture: Architecture, num_tokens: int) -> float:
        key = (architecture, num_tokens)
        if key not in self._expected:
            x, r = architecture.width_ratio, architecture.mlp_attention_ratio
            self._expected[key] = float(self.truth.loss(x, r, architecture.num_parameters, num_tokens))
        return self._expected[key]


@cache
def _roofline_rate(architecture: Architecture, recipe: ServingRecipe, workload: Workload, hardware: str) -> float:
    """Output tokens/s by the data sheet."""
    predicted = predict_serving(architecture, load_profile(hardware), recipe, workload).output_tokens_per_second
    if isinstance(predicted, NotMeasured):
        raise ValueError(f"the fake engine cannot serve this: {predicted.reason}")
    return predicted.value
