"""The legal shapes of a study at each of its sizes: the space, its centre, the baseline; and whether there are any."""

import numpy as np
from pydantic import ValidationError

from coordinator.analysis import same_size
from coordinator.errors import StudyError
from coordinator.study import StudySpec
from hwprofiles.catalog import load_profile
from scaling.architecture import Architecture
from scaling.named import named_architecture
from scaling.propose import propose
from scaling.space import Candidates, SearchSpace, baseline_shape


def search_space(study: StudySpec, num_parameters: float) -> SearchSpace:
    """The legal shapes at one size of the study."""
    space = study.space
    return SearchSpace(
        num_parameters=round(num_parameters),
        tolerance=space.tolerance,
        num_hidden_layers=space.num_hidden_layers,
        head_dim=space.head_dim,
        query_group_sizes=(space.query_group_size,),
        hidden_multiple_of=space.hidden_multiple_of,
        intermediate_multiple_of=space.intermediate_multiple_of,
        vocab_size=study.corpus.vocab_size,
        x_range=(space.x_min, space.x_max),
        r_range=(space.r_min, space.r_max),
    )


def candidates_at(study: StudySpec, num_parameters: float) -> Candidates:
    """The legal shapes at one size, as columns."""
    return search_space(study, num_parameters).enumerate()


def spread(candidates: Candidates, num: int) -> list[tuple[int, str]]:
    """The centre, both flanks of x and r, then whatever is farthest from all chosen."""
    uniform = np.ones(len(candidates))
    chosen = propose(None, candidates, existing=[], pending=[], num=num, seconds_per_run=uniform)
    return [(proposal.index, proposal.reason) for proposal in chosen]


def centre_index(candidates: Candidates) -> int:
    """The shape where a space-filling round begins."""
    return spread(candidates, 1)[0][0]


def centre_shape(study: StudySpec, num_parameters: float) -> Architecture:
    """The middle of the space at one size."""
    candidates = candidates_at(study, num_parameters)
    return candidates.architecture(centre_index(candidates))


def probe_sizes(study: StudySpec) -> tuple[float, float]:
    """Sizes at which the agents' speed is measured."""
    return study.fit.num_parameters, study.target.num_parameters


def baseline_at(study: StudySpec) -> Architecture:
    """The named baseline's shape ratios at the target's size."""
    size = study.target.num_parameters
    return baseline_shape(named_architecture(study.target.baseline), round(size), search_space(study, size))


def check_feasible(study: StudySpec) -> None:
    """Look at everything that can be wrong with a study before anything is started.

    Raises:
        StudyError: an impossible space, an unknown baseline or hardware, or nonsense between fields.
    """
    try:
        for size in {
            study.fit.num_parameters,
            study.target.num_parameters,
            *(c.num_parameters for c in study.reference),
        }:
            candidates_at(study, size)
        baseline_at(study)
        for hardware in study.serving.predict_hardware:
            load_profile(hardware)
    except ValidationError as error:
        sentences = "; ".join(problem["msg"] for problem in error.errors())
        raise StudyError(f"study {study.name!r} cannot be run: {sentences}.\nCorrect [space] in its file.") from None
    except ValueError as error:
        raise StudyError(f"study {study.name!r} cannot be run: {error}") from None
    target = study.target.num_parameters
    sizes = {"fit": study.fit.num_parameters}
    sizes |= {f"reference.{k}": cell.num_parameters for k, cell in enumerate(study.reference)}
    for place, size in sizes.items():
        if same_size(size, target):
            raise StudyError(
                f"study {study.name!r}: {place}.num_parameters ({size:g}) must differ from target.num_parameters "
                f"({target:g}) by more than 20 %: the target's size is held out of every fit."
            )
