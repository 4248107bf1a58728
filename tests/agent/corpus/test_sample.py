from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.corpus.runs import digest, high_word
from agent.corpus.sample import Sample, sample_part
from agent.corpus.sources import Reading, find_files, plan_parts

TEXTS = [f"{number} " * (number % 30) for number in range(1, 200) if number % 30]


def _sample(texts: list[str], num_bytes: int = 1000, floor: int = 0) -> Sample:
    sample = Sample(num_bytes, floor=floor)
    for text in texts:
        sample.add(text)
    return sample


@given(st.permutations(TEXTS))
def test_a_sample_does_not_depend_on_the_order(texts: list[str]) -> None:
    assert list(_sample(texts).texts()) == list(_sample(TEXTS).texts())


def test_it_is_the_fewest_documents_of_the_highest_hashes_with_so_many_bytes() -> None:
    texts = list(_sample(TEXTS).texts())
    assert texts == sorted(TEXTS, key=digest)[-len(texts) :]
    assert sum(map(len, texts)) >= 1000 > sum(map(len, texts[1:]))


def test_held_out_documents_empty_ones_and_copies_are_not_in_it() -> None:
    floor = 2**62
    texts = list(_sample([*TEXTS, *TEXTS, " \n"], num_bytes=10**6, floor=floor).texts())
    assert texts == sorted((text for text in TEXTS if high_word(digest(text)) >= floor), key=digest)


@pytest.mark.parametrize("floor_is_known", [True, False])
def test_parts_together_give_the_sample_of_the_whole(tmp_path: Path, floor_is_known: bool) -> None:
    for number, text in enumerate(TEXTS):
        (tmp_path / f"{number}.txt").write_text(text)
    merged = Sample(1000, floor=0)
    for part in plan_parts(find_files([str(tmp_path)]).files, part_bytes=2000):
        for text in sample_part(part, Reading("text", 0), 1000, merged.floor if floor_is_known else 0):
            merged.add(text)
    assert list(merged.texts()) == list(_sample(TEXTS).texts())
