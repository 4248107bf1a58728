"""Does a law fitted to small models rank larger ones? Fit up to a scale, validate on the next, as a published test.

arXiv 2510.18245, Tasks 1 to 3: fit 80 M and predict 145 M; fit 80 M and 145 M and predict 297 M; fit all three and
predict 1 B. Judged by the mean squared error in nats squared and by Spearman's rank correlation over the held-out runs.
"""

from dataclasses import dataclass

from scaling.fit import Reference, fit_conditional
from scaling.law import LawForm
from scaling.law_fit import LawFit, Pooling, Validation
from scaling.points import ShapePoints, make_scales


@dataclass(frozen=True, kw_only=True)
class HeldOutScale:
    """One task: fitted to `fitted_sizes` (N, ascending), judged at `held_out_size`; None with a reason if impossible.

    The published metrics are computed on the validation scale with its own best observed loss as L_opt, so that the
    shape terms alone are tested; `validation.reference` says so.
    """

    fitted_sizes: tuple[float, ...]
    held_out_size: float
    fit: LawFit
    validation: Validation | None
    reason: str | None


def held_out_scales(
    points: ShapePoints,
    *,
    form: LawForm = "multiplicative",
    reference: Reference = "joint",
    pooling: Pooling = "all",
    r_range: tuple[float, float] = (0.5, 5.0),
    num_bootstrap: int = 200,
    seed: int = 0,
) -> tuple[HeldOutScale, ...]:
    """One task for every scale but the smallest: fit all smaller ones, validate on it.

    Args:
        points: finished runs of at least two sizes.
        form: of the law.
        reference: where L_opt of the fitted cells comes from; the paper takes "best".
        pooling: which of the smaller sizes speak for the next: "partial" lets the shape terms drift on to it.
        r_range: runs outside are left out of fit and validation, as the paper does.
        num_bootstrap: replicates of every fit.
        seed: of the bootstraps.

    Raises:
        ValueError: all runs are of one size.
    """
    inside = points.take((points.r >= r_range[0]) & (points.r <= r_range[1]))
    scales = make_scales(inside.num_parameters)
    if len(scales) < 2:
        raise ValueError(
            f"a held-out scale needs runs of two sizes at least 20 % apart, got {len(scales)} with r in the range; "
            "train the shapes at another N"
        )
    tasks = []
    for held_out in range(1, len(scales)):
        size = float(scales.num_parameters[held_out])
        fit = fit_conditional(
            inside.take(scales.of_point < held_out),
            form=form,
            reference=reference,
            pooling=pooling,
            at_num_parameters=size,
            r_range=r_range,
            num_bootstrap=num_bootstrap,
            seed=seed,
        )
        unseen = inside.take(scales.of_point == held_out)
        tasks.append(
            HeldOutScale(
                fitted_sizes=tuple(float(N) for N in scales.num_parameters[:held_out]),
                held_out_size=size,
                fit=fit,
                validation=None if fit.law is None else fit.validate(unseen),
                reason=" ".join(fit.messages) if fit.law is None else None,
            )
        )
    return tuple(tasks)
