"""The grouped-query search: what stays, in which order it asks, and when it stops."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaling.architecture import Architecture
from scaling.group_search import groupings, search_groups
from scaling.named import named_architecture
from scaling.quantity import NotMeasured, Predicted, Quantity

PANDA_3B = named_architecture("panda-3b")


def quantity(value: float) -> Predicted:
    return Predicted(value=value, unit="u", basis="a test", no_interval_because="a test")


def fewer_is_faster(shape: Architecture) -> Quantity:
    return quantity(1000.0 / shape.num_key_value_heads)


def flat_loss(_: Architecture) -> Quantity:
    return quantity(2.6)


@given(kv_heads=st.integers(1, 30), g=st.integers(1, 12), multiple=st.sampled_from([1, 2, 4]))
def test_groupings_keep_every_count_of_the_law(kv_heads: int, g: int, multiple: int) -> None:
    start = PANDA_3B.model_copy(update={"num_attention_heads": kv_heads * g, "num_key_value_heads": kv_heads})
    found = list(groupings(start, heads_multiple_of=multiple))
    sizes = [start.query_group_size, *(shape.query_group_size for shape in found)]
    assert sizes == sorted(set(sizes))
    for shape in found:
        assert Architecture.model_validate(shape.model_dump()) == shape
        assert shape.num_parameters == start.num_parameters
        assert shape.mlp_attention_ratio == start.mlp_attention_ratio
        assert shape.num_attention_heads % multiple == 0


def test_the_papers_surefire_shapes_are_groupings_of_its_law_shapes() -> None:
    assert named_architecture("surefire-3b") in groupings(PANDA_3B)
    surefire = named_architecture("surefire-1b")
    swept = surefire.model_copy(update={"num_attention_heads": 32, "num_key_value_heads": 8})
    assert swept.query_group_size == 4
    assert surefire in groupings(swept)


def test_it_walks_to_the_end_while_throughput_rises_and_the_loss_holds() -> None:
    found = search_groups(PANDA_3B, throughput=fewer_is_faster, loss=flat_loss, loss_limit=2.7)
    assert found.chosen.num_key_value_heads == 1
    assert [step.query_group_size for step in found.steps] == [3, 5, 7, 11, 15, 23, 47]
    assert found.gain() == pytest.approx(12.0)
    assert found.loss_known
    assert "no grouping" in found.stopped_because


def test_it_stops_at_the_first_loss_above_the_limit() -> None:
    def loss(shape: Architecture) -> Quantity:
        return quantity(2.6 if shape.query_group_size <= 7 else 2.8)

    found = search_groups(PANDA_3B, throughput=fewer_is_faster, loss=loss, loss_limit=2.7)
    assert found.chosen == named_architecture("surefire-3b")
    assert found.stopped_because == "the loss limit breaks at 11 query heads per key-value head"
    assert found.steps[-1].outcome == "loss-above-limit"


def test_losses_are_asked_for_only_where_throughput_rises() -> None:
    asked: list[int] = []

    def rate(shape: Architecture) -> Quantity:
        return quantity({3: 1.0, 5: 2.0}.get(shape.query_group_size, 1.5))

    def loss(shape: Architecture) -> Quantity:
        asked.append(shape.query_group_size)
        return quantity(2.6)

    found = search_groups(PANDA_3B, throughput=rate, loss=loss, loss_limit=2.7)
    assert asked == [3, 5]
    assert found.chosen.query_group_size == 5
    assert "no longer rises at 7" in found.stopped_because


def test_patience_steps_over_a_dip() -> None:
    def loss(shape: Architecture) -> Quantity:
        return quantity(2.8 if shape.query_group_size == 5 else 2.6)

    impatient = search_groups(PANDA_3B, throughput=fewer_is_faster, loss=loss, loss_limit=2.7)
    patient = search_groups(PANDA_3B, throughput=fewer_is_faster, loss=loss, loss_limit=2.7, patience=2)
    assert impatient.chosen == PANDA_3B
    assert patient.chosen.num_key_value_heads == 1


def test_a_gain_below_the_smallest_that_counts_is_no_gain() -> None:
    def rate(shape: Architecture) -> Quantity:
        return quantity(1.0 + 0.001 * shape.query_group_size)

    found = search_groups(PANDA_3B, throughput=rate, loss=flat_loss, loss_limit=2.7, min_gain=0.01)
    assert found.chosen == PANDA_3B
    assert found.gain() == 1.0


def test_an_unknown_loss_is_neither_passed_nor_failed() -> None:
    def unknown(_: Architecture) -> Quantity:
        return NotMeasured(reason="never trained")

    found = search_groups(PANDA_3B, throughput=fewer_is_faster, loss=unknown, loss_limit=2.7)
    assert found.chosen.num_key_value_heads == 1
    assert not found.loss_known


def test_a_start_that_breaks_the_limit_or_does_not_run_ends_the_search() -> None:
    above = search_groups(PANDA_3B, throughput=fewer_is_faster, loss=flat_loss, loss_limit=2.5)
    assert above.chosen == PANDA_3B
    assert len(above.steps) == 1
    assert "above the loss limit" in above.stopped_because
    broken = search_groups(
        PANDA_3B, throughput=lambda _: NotMeasured(reason="too large"), loss=flat_loss, loss_limit=2.7
    )
    assert "too large" in broken.stopped_because
    assert broken.gain() is None


def test_a_patience_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="patience is 0"):
        search_groups(PANDA_3B, throughput=fewer_is_faster, loss=flat_loss, loss_limit=2.7, patience=0)
