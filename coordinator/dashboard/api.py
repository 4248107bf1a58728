"""JSON routes: everything that a page shows, described by /openapi.json. They only read."""

from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Path, Query, Request
from fastapi.responses import Response

from coordinator.dashboard.pages.hardware import HardwarePage
from coordinator.dashboard.pages.overview import Overview
from coordinator.dashboard.pages.recommendation import RecommendationPage
from coordinator.dashboard.pages.study import StudyPage
from coordinator.dashboard.pages.trial import TrialPage
from coordinator.dashboard.pages.trials import DEFAULT_ROWS, MAX_ROWS, Phase, TrialList, TrialState
from coordinator.dashboard.source import Answer, Figures, RunSource
from coordinator.figures.figure import Figure

Name = Annotated[
    str,
    # Rust's regular expressions: $ is the very end.
    Path(pattern=r"^[a-z0-9][a-z0-9_.-]{0,127}$", max_length=128, description="As a list of them says it."),
]
ConfigName = Annotated[
    str, Path(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$", max_length=128, description="As `configs` says it.")
]
MAX_POSITION = 2**31 - 1
LEAST_PACKED_BYTES = 2_000
"""Smaller answers fit into two packets anyway."""


def api_router(source: RunSource) -> APIRouter:
    """Routes of one run.

    Args:
        source: where its pages come from; its StoreErrors are left to the application.
    """
    router = APIRouter(prefix="/api", tags=["run"])

    @router.get("/overview", response_model=Overview, summary="The run at a glance")
    def overview(request: Request) -> Response:
        """Health, budget, progress, fleet by hardware, newest events."""
        return _reply(request, source.overview())

    @router.get("/study", response_model=StudyPage, summary="The study and its law")
    def study(request: Request) -> Response:
        """What is asked, what the fit says and how good it is, predicted beside measured losses, which figures."""
        return _reply(request, source.study())

    @router.get("/trials", response_model=TrialList, summary="Some of the trials")
    def trials(
        request: Request,
        state: Annotated[TrialState | None, Query(description="Of the trials that are wanted.")] = None,
        phase: Annotated[Phase | None, Query(description="Of the trials that are wanted.")] = None,
        query: Annotated[str, Query(max_length=200, description="Words that all stand in a trial's line.")] = "",
        after: Annotated[int, Query(ge=0, le=MAX_POSITION, description="Position of the last one you have.")] = 0,
        limit: Annotated[int, Query(ge=1, le=MAX_ROWS, description="Rows at most.")] = DEFAULT_ROWS,
    ) -> Response:
        """In planned order, one line each; ask on with `after` = `next_after`."""
        found = source.trials(after=after, limit=limit, state=state, phase=phase, query=query)
        return _reply(request, found)

    @router.get("/trials/{trial_id}", response_model=TrialPage, summary="One trial")
    def trial(request: Request, trial_id: Name) -> Response:
        """Its assignment, its attempts over time, its raw numbers, and what went wrong."""
        return _reply(request, _found(source.trial(trial_id), f"There is no trial {trial_id}."))

    @router.get("/hardware", response_model=HardwarePage, summary="Every kind of hardware")
    def hardware(request: Request) -> Response:
        """What it can do, who has it, how steady its canaries are and how noisy its numbers."""
        return _reply(request, source.hardware())

    @router.get("/recommendation", response_model=RecommendationPage, summary="The answers")
    def recommendation(request: Request) -> Response:
        """What to build for each hardware, why, on what evidence, how sure, and what would change it most."""
        return _reply(request, source.recommendation())

    @router.get("/figures", response_model=Figures, summary="Which figures there are")
    def figures(request: Request) -> Response:
        """Names, titles and the pages they belong to."""
        return _reply(request, source.figures())

    @router.get("/figures/{name}", response_model=Figure, summary="One figure")
    def figure(request: Request, name: Name) -> Response:
        """Its points, curves and intervals with units and words; where there is nothing to draw, the reason."""
        return _reply(request, _found(source.figure(name), f"There is no figure {name}; /api/figures lists them."))

    @router.get("/configs/{name}", response_model=dict[str, Any], summary="config.json of a named architecture")
    def config(request: Request, name: ConfigName) -> Response:
        """As transformers reads it; names are those of the recommendation page's `configs`."""
        found = _found(source.config(name), f"There is no architecture {name}; /api/recommendation lists them.")
        return _reply(request, found)

    return router


def _found(answer: Answer | None, sentence: str) -> Answer:
    if answer is None:
        raise HTTPException(404, sentence)
    return answer


def _reply(request: Request, answer: Answer) -> Response:
    """The answer, packed where the asker takes that, or 304 where it has the answer already."""
    packed_etag = f'{answer.etag[:-1]}-gzip"'
    is_packed = len(answer.body) >= LEAST_PACKED_BYTES and _takes_gzip(request.headers.get("accept-encoding", ""))
    headers = {
        "ETag": packed_etag if is_packed else answer.etag,
        "Cache-Control": "no-cache",
        "Vary": "Accept-Encoding",
    }
    if _has_it(request.headers.get("if-none-match", ""), {answer.etag, packed_etag}):
        return Response(status_code=304, headers=headers)
    if not is_packed:
        return Response(answer.body, media_type="application/json", headers=headers)
    return Response(answer.packed, media_type="application/json", headers=headers | {"Content-Encoding": "gzip"})


def _has_it(told: str, etags: set[str]) -> bool:
    names = {name.strip().removeprefix("W/") for name in told.split(",")}
    return not names.isdisjoint({*etags, "*"})


def _takes_gzip(told: str) -> bool:
    """Whether `Accept-Encoding` names gzip, and not with a weight of nothing."""
    codings = (part.partition(";q=") for part in told.lower().replace(" ", "").split(","))
    return any(coding == "gzip" and (not weight or weight.strip("0.") != "") for coding, _, weight in codings)
