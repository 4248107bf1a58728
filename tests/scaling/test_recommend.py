"""Recommendations: Panda, front and Surefire by definition; ties called ties; probabilities paired."""

import numpy as np
import pytest

from scaling.fit import LawFit, ShapePoints, fit_conditional
from scaling.law import ConditionalLaw
from scaling.named import named_architecture
from scaling.quantity import Measured, NotMeasured
from scaling.recommend import Recommendation, RelativeLevel, Shortlist, Throughput, recommend, recommended_shapes
from scaling.space import Candidates, SearchSpace

LAW = ConditionalLaw(a=(1.01287, 0.053859, 0.015603), b=(0.980084, 0.017632, 0.020070))
CANDIDATES = SearchSpace(
    num_parameters=100_000, num_hidden_layers=2, head_dim=16, vocab_size=1024, x_range=(0.09, 0.45), r_range=(0.5, 5.0)
).enumerate()


def fitted(sd: float, seed: int = 0) -> LawFit:
    x, r = np.tile(CANDIDATES.x[::2], 2), np.tile(CANDIDATES.r[::2], 2)
    loss = LAW.predict(x, r, 3.58) + sd * np.random.default_rng(seed).standard_normal(len(x))
    return fit_conditional(
        ShapePoints(
            x=x,
            r=r,
            num_parameters=np.full(len(x), 1e5),
            num_tokens=np.full(len(x), 1e6),
            loss=loss,
            standard_error=None,
        )
    )


def throughput(candidates: Candidates = CANDIDATES) -> Throughput:
    """Fewer cached keys and values are faster, as on a device bound by memory."""
    mean = 1e6 / (500.0 + candidates.key_value_elements_per_token)
    return Throughput(mean=mean, low=0.97 * mean, high=1.03 * mean)


BASELINE = CANDIDATES.nearest(x=0.2, r=1.7)


def choose(sd: float = 0.002, seed: int = 0, **arguments: object) -> Shortlist:
    return recommend(
        fitted(sd, seed),
        CANDIDATES,
        **{  # type: ignore[arg-type]
            "num_parameters": 1e5,
            "num_tokens": 1e6,
            "baseline": BASELINE,
            "throughput": throughput(),
            **arguments,
        },
    )


def test_panda_has_the_lowest_predicted_loss_and_is_near_the_optimum() -> None:
    found = choose()
    assert found.loss.mean[found.panda] == found.loss.mean.min()
    assert CANDIDATES.x[found.panda] == pytest.approx(LAW.x_opt, rel=0.2)
    assert found.panda in found.front


def test_the_front_holds_exactly_the_supported_shapes_that_none_beats() -> None:
    found = choose()
    loss, speed = found.loss.mean, throughput().mean
    near = np.flatnonzero(found.supported)
    assert len(near) < len(CANDIDATES)
    expected = {
        i
        for i in near
        if not any(
            (loss[j] <= loss[i] and speed[j] >= speed[i]) and (loss[j] < loss[i] or speed[j] > speed[i]) for j in near
        )
    }
    assert set(found.front) == expected
    assert list(loss[list(found.front)]) == sorted(loss[list(found.front)])


def test_surefire_is_the_fastest_shape_that_is_safe_enough() -> None:
    found = choose()
    assert found.surefire is not None
    safe = (found.probability_within_limit >= 0.8) & found.supported
    assert safe[found.surefire]
    assert throughput().mean[found.surefire] == throughput().mean[safe].max()
    assert found.probability_within_limit[BASELINE] == 1.0
    assert throughput().mean[found.surefire] >= throughput().mean[BASELINE]


def test_a_shape_that_does_not_run_is_never_recommended() -> None:
    fast = choose()
    assert fast.surefire is not None
    mean = throughput().mean.copy()
    mean[fast.surefire] = np.nan
    found = choose(throughput=Throughput(mean=mean, low=mean, high=mean))
    assert found.surefire != fast.surefire
    assert fast.surefire not in found.front


def test_a_baseline_that_is_best_is_seldom_beaten_by_a_lucky_pick() -> None:
    best = int(np.argmin(LAW.predict(CANDIDATES.x, CANDIDATES.r, 3.58)))
    verdicts = [choose(sd=0.03, baseline=best, seed=seed).panda_against_baseline.verdict for seed in range(40)]
    # At most one in ten by the interval's level; nine of forty has a chance below 2 %.
    assert verdicts.count("better") < 9
    tie = next(seed for seed, verdict in enumerate(verdicts) if verdict == "tie")
    assert "not shown to differ" in choose(sd=0.03, baseline=best, seed=tie).reasons[0]


def test_precise_losses_show_that_a_worse_baseline_is_beaten() -> None:
    found = choose(sd=0.0005)
    assert found.panda_against_baseline.verdict == "better"
    assert "lower than" in found.reasons[0]


def test_a_difference_is_the_opposite_of_its_reverse() -> None:
    found = choose(sd=0.011)
    neighbour = CANDIDATES.nearest(x=0.2, r=2.6)
    compared = found.compare(neighbour, BASELINE)
    reverse = found.compare(BASELINE, neighbour)
    assert reverse.difference == pytest.approx(-compared.difference)
    assert compared.low < compared.difference < compared.high


def test_an_impossible_limit_gives_no_surefire_and_says_why() -> None:
    found = choose(loss_limit=3.0)
    assert found.surefire is None
    assert any("No Surefire" in reason for reason in found.reasons)


def test_without_throughput_there_is_only_panda() -> None:
    found = choose(throughput=None)
    assert found.surefire is None
    assert found.front == (found.panda,)
    assert any("No throughput is known" in reason for reason in found.reasons)


def test_the_worst_shape_has_the_highest_loss() -> None:
    found = choose()
    assert found.loss.mean[found.worst()] == found.loss.mean.max()


LLAMA_SIZED = SearchSpace(
    num_parameters=973_078_528,
    num_hidden_layers=16,
    head_dim=64,
    query_group_sizes=(4,),
    hidden_multiple_of=256,
    intermediate_multiple_of=256,
    vocab_size=128_256,
    x_range=(0.05, 0.15),
    r_range=(0.5, 5.0),
).enumerate()


def fitted_small_x() -> LawFit:
    """A fit whose runs cover the x and r of the published 1B models."""
    law = PUBLISHED["80M to 297M"]
    x, r = (part.reshape(-1) for part in np.meshgrid([0.05, 0.07, 0.09, 0.13], [0.6, 1.0, 2.0, 4.8]))
    loss = law.predict(x, r, 3.0) + 0.002 * np.random.default_rng(0).standard_normal(len(x))
    size = np.full(len(x), 1.5e8)
    return fit_conditional(ShapePoints(x=x, r=r, num_parameters=size, num_tokens=100 * size, loss=loss))


def test_a_named_architecture_of_the_same_size_is_a_limit() -> None:
    fit = fitted_small_x()
    candidates, baseline = LLAMA_SIZED.including(named_architecture("panda-1b"))
    setting = {"num_parameters": 9.73e8, "num_tokens": 1e11, "baseline": baseline, "reference": RelativeLevel(fit)}
    strict = recommend(fit, candidates, **setting)  # type: ignore[arg-type]
    loose = recommend(fit, candidates, **setting, loss_limit="llama-3.2-1b")  # type: ignore[arg-type]
    assert loose.limit > strict.limit == strict.loss.mean[baseline]
    assert loose.probability_within_limit.sum() > strict.probability_within_limit.sum()
    llama = named_architecture("llama-3.2-1b")
    listed, at = candidates.including(llama)
    same = recommend(fit, listed, **{**setting, "baseline": at})  # type: ignore[arg-type]
    assert same.limit == pytest.approx(loose.limit)
    with pytest.raises(ValueError, match=r"llama-3\.2-3b has N = 2\.81"):
        recommend(fit, candidates, **setting, loss_limit="llama-3.2-3b")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unknown architecture 'llama-9'"):
        recommend(fit, candidates, **setting, loss_limit="llama-9")  # type: ignore[arg-type]


def test_without_a_level_losses_are_ratios_and_the_choice_is_the_same() -> None:
    # (1e5, 1e6) is the fitted cell; nothing reaches (2e5, 2e6).
    absolute = choose()
    relative = choose(num_parameters=2e5, num_tokens=2e6, reference=RelativeLevel(fitted(0.002)))
    assert relative.unit == "L_opt"
    assert (relative.panda, relative.surefire, relative.front) == (absolute.panda, absolute.surefire, absolute.front)
    assert relative.loss.mean.min() == pytest.approx(1.0, abs=0.01)
    assert relative.panda_against_baseline.difference == pytest.approx(
        absolute.panda_against_baseline.difference / 3.58, rel=0.01
    )
    assert "of L_opt" in relative.reasons[0]
    assert relative.predicted_loss(relative.panda).unit == "L_opt"
    with pytest.raises(ValueError, match="needs L_opt"):
        choose(num_parameters=2e5, num_tokens=2e6, reference=RelativeLevel(fitted(0.002)), loss_limit=3.6)


PUBLISHED = {
    "80M to 297M": ConditionalLaw(a=(2.697, 0.0974, 0.0078), b=(0.387, 0.0063, 0.0065)),
    "1B": ConditionalLaw(a=(2.319, 0.238, 0.0176), b=(0.5104, 0.0051, 0.0062)),
}
"""Coefficients of arXiv 2510.18245 by the sizes that they were fitted on."""


def published_excess(fitted_on: str, name: str) -> float:
    """Predicted loss of a published architecture over the lowest that the law allows, minus one."""
    law, shape = PUBLISHED[fitted_on], named_architecture(name)
    assert law.x_opt is not None
    assert law.r_opt is not None
    lowest = law.predict(law.x_opt, law.r_opt, 1.0)
    return float(law.predict(shape.width_ratio, shape.mlp_attention_ratio, 1.0) / lowest) - 1


def test_the_published_law_ranks_the_published_1b_shapes_as_their_training_did() -> None:
    excess = {name: published_excess("80M to 297M", name) for name in ("panda-1b", "surefire-1b", "llama-3.2-1b")}
    assert min(excess, key=lambda name: excess[name]) == "panda-1b"
    # By the formula: within 0.01 % of the lowest, then 0.9 % and 1.3 % above it; trained losses 2.782, 2.804, 2.803.
    assert excess["panda-1b"] < 1e-4
    assert excess["surefire-1b"] == pytest.approx(0.0086, abs=1e-4)
    assert excess["llama-3.2-1b"] == pytest.approx(0.0129, abs=1e-4)


def test_the_law_of_1b_ranks_the_published_3b_shapes_as_their_training_did() -> None:
    names = ("panda-3b-o", "panda-3b", "surefire-3b", "llama-3.2-3b")
    excess = [published_excess("1B", name) for name in names]
    # Trained losses 2.606, 2.619, 2.620, 2.625; Panda and Surefire differ in g alone, which the law does not hold.
    assert excess[0] < excess[1] == excess[2] < excess[3]
    assert excess[0] < 1e-4 < 5e-3 < excess[3]


@pytest.mark.parametrize(
    ("fitted_on", "like", "panda", "head_dim"),
    [
        ("80M to 297M", "llama-3.2-1b", "panda-1b", 64),
        ("80M to 297M", "llama-3.2-3b", "panda-3b", 128),
        ("1B", "llama-3.2-3b", "panda-3b-o", 128),
    ],
)
def test_the_published_panda_is_the_optimum_of_the_legal_grid_or_its_neighbour(
    fitted_on: str, like: str, panda: str, head_dim: int
) -> None:
    known = named_architecture(like)
    grid = SearchSpace(
        num_parameters=known.num_parameters,
        num_hidden_layers=known.num_hidden_layers,
        head_dim=head_dim,
        query_group_sizes=(known.query_group_size,),
        hidden_multiple_of=512,
        intermediate_multiple_of=512,
        intermediate_sizes="all",
        vocab_size=128_256,
    ).enumerate()
    loss = PUBLISHED[fitted_on].predict(grid.x, grid.r, 1.0)
    best, published = grid.architecture(int(np.argmin(loss))), named_architecture(panda)
    assert grid.index_of(published) is not None
    assert (best.hidden_size, best.intermediate_size) == (published.hidden_size, published.intermediate_size)
    assert abs(best.num_key_value_heads - published.num_key_value_heads) <= 1


def test_a_grouping_costs_what_was_measured_and_an_unmeasured_one_is_named() -> None:
    cost = 0.02
    shapes = [(x, r) for x in (0.12, 0.2, 0.4) for r in (0.7, 1.7, 4.5)] * 2
    x, r = np.array(shapes).T
    g = np.repeat([2.0, 4.0], 9)
    noise = 0.0005 * np.random.default_rng(0).standard_normal(len(x))
    size = np.full(len(x), 1e5)
    loss = LAW.predict(x, r, 3.58) * (1 + cost * (g == 4)) + noise
    fit = fit_conditional(
        ShapePoints(x=x, r=r, num_parameters=size, num_tokens=10 * size, loss=loss, query_group_size=g)
    )
    space = SearchSpace(
        num_parameters=100_000,
        num_hidden_layers=2,
        head_dim=16,
        query_group_sizes=(2, 4, 8),
        vocab_size=1024,
        x_range=(0.12, 0.4),
        r_range=(0.7, 4.5),
    )
    candidates = space.enumerate()
    found = recommend(fit, candidates, num_parameters=1e5, num_tokens=1e6, baseline=0)
    plain = LAW.predict(candidates.x, candidates.r, 3.58)
    excess = found.loss.mean / plain - 1
    assert excess[candidates.query_group_size == 2] == pytest.approx(0.0, abs=0.002)
    assert excess[candidates.query_group_size == 4] == pytest.approx(cost, abs=0.002)
    assert excess[candidates.query_group_size == 8] == pytest.approx(0.0, abs=0.002)
    assert "Shapes with 8 query heads per key-value head were never run" in found.reasons[-1]


def test_without_a_law_there_is_no_recommendation() -> None:
    empty = fit_conditional(
        ShapePoints(
            x=np.array([0.2]),
            r=np.array([1.0]),
            num_parameters=np.array([1e5]),
            num_tokens=np.array([1e6]),
            loss=np.array([3.6]),
        )
    )
    with pytest.raises(ValueError, match="was not fitted"):
        recommend(empty, CANDIDATES, num_parameters=1e5, num_tokens=1e6, baseline=BASELINE)


def test_a_recommendation_says_what_was_measured_and_survives_json() -> None:
    found = choose()
    assert found.surefire is not None
    loss = Measured(value=3.59, unit="nats/token", num_samples=1, no_interval_because="one run")
    shapes = recommended_shapes(found, throughputs={}, measured_losses={BASELINE: loss})
    assert shapes[0].roles[0] == "surefire"
    by_role = {role: shape for shape in shapes for role in shape.roles}
    assert by_role["baseline"].measured_loss == loss
    assert by_role["surefire"].throughput == NotMeasured(reason="not benchmarked")
    answer = Recommendation(
        hardware="cpu-generic",
        engine="transformers",
        dtype="float32",
        num_parameters=100_000,
        num_tokens=1_000_000,
        shapes=shapes,
        verdict="tie",
        reasons=found.reasons,
    )
    assert Recommendation.model_validate_json(answer.model_dump_json()) == answer


def arms(corner: tuple[float, float] | None = None) -> LawFit:
    """Runs on the arms of x and of r, and perhaps one beyond them."""
    x = np.array([0.11, 0.15, 0.2, 0.3, 0.4, 0.2, 0.2, 0.2, *([] if corner is None else [corner[0]])])
    r = np.array([1.5, 1.5, 1.5, 1.5, 1.5, 0.6, 3.0, 4.5, *([] if corner is None else [corner[1]])])
    loss = LAW.predict(x, r, 3.58) + 0.0005 * np.random.default_rng(0).standard_normal(len(x))
    return fit_conditional(
        ShapePoints(x=x, r=r, num_parameters=np.full(len(x), 1e5), num_tokens=np.full(len(x), 1e6), loss=loss)
    )


AT_A_CORNER = CANDIDATES.nearest(x=0.36, r=3.2)


def with_fast_corner(fit: LawFit, **arguments: object) -> Shortlist:
    """The corner is the fastest shape by far, and the law, which is true, says that it is safe."""
    mean = throughput().mean.copy()
    mean[AT_A_CORNER] = 2 * mean.max()
    return recommend(
        fit,
        CANDIDATES,
        num_parameters=1e5,
        num_tokens=1e6,
        baseline=CANDIDATES.nearest(x=0.12, r=1.5),
        throughput=Throughput(mean=mean, low=mean, high=mean),
        **arguments,  # type: ignore[arg-type]
    )


def test_a_shape_that_no_run_is_near_is_left_out_and_the_reasons_say_so() -> None:
    found = with_fast_corner(arms())
    assert found.probability_within_limit[AT_A_CORNER] > 0.9
    assert AT_A_CORNER not in (found.surefire, found.panda, *found.front)
    assert found.unsupported()[0] == AT_A_CORNER
    label = CANDIDATES.architecture(AT_A_CORNER).label
    assert any(
        "left out" in reason and "no run is within 10%" in reason and label in reason for reason in found.reasons
    )


def test_a_run_there_makes_it_eligible() -> None:
    corner = float(CANDIDATES.x[AT_A_CORNER]), float(CANDIDATES.r[AT_A_CORNER])
    found = with_fast_corner(arms(corner))
    assert found.surefire == AT_A_CORNER
    assert not any("left out" in reason for reason in found.reasons)


def test_a_fit_that_does_not_know_its_runs_rules_nothing_out() -> None:
    known = arms()
    plain = known.to_json()
    del plain["hull"]
    assert LawFit.from_json(known.to_json()).hull == known.hull
    assert with_fast_corner(LawFit.from_json(plain)).surefire == AT_A_CORNER


@pytest.mark.parametrize("verdict", ["better", "tie"])
def test_a_shape_that_stood_its_check_needs_no_run_near_it(verdict: str) -> None:
    assert with_fast_corner(arms(), checked={AT_A_CORNER: verdict}).surefire == AT_A_CORNER


def test_a_shape_that_its_check_refuted_is_not_chosen_again() -> None:
    first = with_fast_corner(arms())
    assert first.surefire is not None
    found = with_fast_corner(arms(), checked={first.surefire: "worse", AT_A_CORNER: "worse"})
    assert found.surefire not in (first.surefire, AT_A_CORNER)
    assert found.probability_within_limit[first.surefire] == 0.0
    assert not len(found.unsupported()) or found.unsupported()[0] != AT_A_CORNER
