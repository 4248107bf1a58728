"""Builds the Grafana dashboard: `python deploy/grafana/build.py` writes dashboards/archfleet.json anew.

The one piece of Python here, beside the file that it makes: whoever wants another panel changes a line below, not two
thousand lines of JSON. It is no part of the package, and nothing imports it but the test that builds the file again.

One page, a row for each question, at most five graphs a row. Names and labels are those of
coordinator/metric_catalogue.py, and of the recording rules in deploy/prometheus/rules.yml. GPUs and engines tell of
themselves (DCGM, vLLM): archfleet repeats none of it.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from grafana_foundation_sdk.builders import common, dashboard, heatmap, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import heatmap as heatmap_models
from grafana_foundation_sdk.models import prometheus as prometheus_models
from grafana_foundation_sdk.models import units

OUT = Path(__file__).parent / "dashboards" / "archfleet.json"
UID = "archfleet"
GRID_COLUMNS = 24
SOURCE = models.DataSourceRef(type_val="prometheus", uid="${source}")
Panel = timeseries.Panel | stat.Panel | heatmap.Panel
SOFT_COLOUR, HARD_COLOUR, GOOD_COLOUR = "orange", "red", "green"


@dataclass(frozen=True, kw_only=True)
class Graph:
    """One panel. `queries` maps a legend to an expression; `unit` is Grafana's name of it."""

    title: str
    says: str
    """What is to be seen, for whoever points at the panel's corner."""
    unit: str
    queries: Mapping[str, str]
    form: Literal["lines", "areas", "figures", "heat"] = "lines"
    """Lines; lines on top of each other; the newest values in large; shares of time by size."""
    limits: tuple[float, ...] = ()
    """From these on it is orange, then red."""
    words: Mapping[int, tuple[str, str]] | None = None
    """Text and colour instead of a number."""
    logarithmic: bool = False


UP_AND_DOWN = {0: ("no", HARD_COLOUR), 1: ("yes", GOOD_COLOUR)}

ROWS: dict[str, tuple[Graph, ...]] = {
    "Is it well?": (
        Graph(
            title="Coordinators that answer",
            says="Whether the last scrape worked, by coordinator. A study that has ended takes its coordinator away.",
            unit=units.NoUnit,
            form="figures",
            words=UP_AND_DOWN,
            queries={"{{instance}}": 'up{job="archfleet-coordinator",instance=~"$instance"}'},
        ),
        Graph(
            title="Since the loop's last turn",
            says="The loop turns at least twice a second; above two minutes it is stalled.",
            unit=units.Seconds,
            form="figures",
            limits=(60, 120),
            queries={
                "{{instance}} {{loop}}": "time() - archfleet_loop_last_iteration_timestamp_seconds"
                '{instance=~"$instance"}',
            },
        ),
        Graph(
            title="The store can be",
            says="Read: by whoever scrapes. Written: the coordinator's last commit worked.",
            unit=units.NoUnit,
            form="figures",
            words=UP_AND_DOWN,
            queries={
                "read": 'min(archfleet_store_readable{instance=~"$instance"})',
                "written": 'min(archfleet_store_writable{instance=~"$instance"})',
            },
        ),
        Graph(
            title="Agents",
            says="Agents by state: one is an accelerator, or a CPU slot. Quarantined ones failed their canary.",
            unit=units.Short,
            form="figures",
            queries={
                "{{state}}": 'sum by (state) (archfleet_agents{instance=~"$instance",hardware=~"$hardware"})',
            },
        ),
        Graph(
            title="Alerts that fire",
            says="Without the watchdog, which always does.",
            unit=units.Short,
            form="figures",
            limits=(1,),
            queries={
                "alerts": 'sum(ALERTS{alertstate="firing",alertname=~"Archfleet.+|Gpu.+",'
                'alertname!="ArchfleetWatchdog"}) or vector(0)',
            },
        ),
    ),
    "Progress and money": (
        Graph(
            title="Trials that ended, per hour",
            says="Of any outcome, mean over a quarter of an hour.",
            unit=units.Short,
            form="areas",
            queries={
                "{{phase}}": "3600 * sum by (phase) (instance_phase_hardware:archfleet_trials_finished:rate15m"
                '{instance=~"$instance",hardware=~"$hardware"})',
            },
        ),
        Graph(
            title="Trials that wait and run",
            says='Waiting trials are counted for the hardware that may take them, for "any" where several kinds may.',
            unit=units.Short,
            queries={
                "{{phase}} waiting": "sum by (phase) (archfleet_trials_queued"
                '{instance=~"$instance",study=~"$study",hardware=~"any|$hardware"})',
                "{{phase}} running": "sum by (phase) (archfleet_trials_running"
                '{instance=~"$instance",study=~"$study",hardware=~"$hardware"})',
            },
        ),
        Graph(
            title="Until the queue is empty",
            says="Waiting trials over the rate at which trials ended in the last quarter of an hour. It does not tell "
            "the study's end: more is planned when these are done.",
            unit=units.Seconds,
            queries={
                "{{phase}}": 'sum by (phase) (archfleet_trials_queued{instance=~"$instance",study=~"$study"}) / '
                'sum by (phase) (instance_phase_hardware:archfleet_trials_finished:rate15m{instance=~"$instance"})',
            },
        ),
        Graph(
            title="Accelerator time",
            says="Under lease, failed attempts included, and what the study was granted. No line: without a limit.",
            unit=units.Seconds,
            queries={
                f"{{{{study}}}} {name}": f'archfleet_study_{family}{{instance=~"$instance",study=~"$study"}}'
                for name, family in (
                    ("spent", "spent_accelerator_seconds_total"),
                    ("granted", "budget_accelerator_seconds"),
                )
            },
        ),
        Graph(
            title="Budget used",
            says="Spent over granted accelerator time. Nothing: the study has no limit.",
            unit=units.PercentUnit,
            form="figures",
            limits=(0.9, 1),
            queries={
                "{{study}}": 'instance_study:archfleet_budget_used:ratio{instance=~"$instance",study=~"$study"}',
            },
        ),
    ),
    "Fleet, by hardware": (
        Graph(
            title="Busy",
            says="Share of the live accelerators' time under lease, mean over a quarter of an hour.",
            unit=units.PercentUnit,
            queries={
                "{{hardware}}": "instance_hardware:archfleet_accelerator_busy:ratio_rate15m"
                '{instance=~"$instance",hardware=~"$hardware"}',
            },
        ),
        Graph(
            title="Idle agents and waiting trials",
            says="Both above zero for the same hardware for long: something keeps them apart.",
            unit=units.Short,
            queries={
                "{{hardware}} idle": "sum by (hardware) (archfleet_agents"
                '{instance=~"$instance",hardware=~"$hardware",state="idle"})',
                "{{hardware}} waiting": "sum by (hardware) (archfleet_trials_queued"
                '{instance=~"$instance",hardware=~"any|$hardware"})',
            },
        ),
        Graph(
            title="Wait for a first lease",
            says="From queue to first lease of the trials that were leased in the last hour.",
            unit=units.Seconds,
            queries={
                f"{{{{phase}}}} {name}": f"histogram_quantile({quantile}, sum by (le, phase) "
                '(rate(archfleet_trial_queue_wait_seconds_bucket{instance=~"$instance"}[1h])))'
                for name, quantile in (("p50", 0.5), ("p90", 0.9))
            },
        ),
        Graph(
            title="Leases that ran out, per hour",
            says="An agent was not heard of for a minute: dead, hung, or cut off.",
            unit=units.Short,
            queries={
                "{{hardware}} {{phase}}": "sum by (hardware, phase) (increase(archfleet_leases_expired_total"
                '{instance=~"$instance",hardware=~"$hardware"}[1h]))',
            },
        ),
        Graph(
            title="Since an agent's last sign of life",
            says="By the coordinator's clock.",
            unit=units.Seconds,
            limits=(30, 60),
            queries={
                "{{agent}}": "time() - archfleet_agent_last_heartbeat_timestamp_seconds"
                '{instance=~"$instance",agent=~"$agent"}',
            },
        ),
    ),
    "Trials": (
        Graph(
            title="Ends, per hour",
            says="By outcome, mean over a quarter of an hour.",
            unit=units.Short,
            form="areas",
            queries={
                "{{outcome}}": "3600 * sum by (outcome) (rate(archfleet_trials_finished_total"
                '{instance=~"$instance",hardware=~"$hardware"}[15m]))',
            },
        ),
        Graph(
            title="Failed",
            says="Share of the trials of the last half hour that ended badly for good. No point: none ended.",
            unit=units.PercentUnit,
            limits=(0.1, 0.3),
            queries={
                "{{phase}} {{hardware}}": "instance_phase_hardware:archfleet_trials_failed:ratio_rate30m"
                '{instance=~"$instance",hardware=~"$hardware"}',
            },
        ),
        Graph(
            title="Failed attempts, per hour",
            says="By cause; most are followed by another attempt.",
            unit=units.Short,
            form="areas",
            queries={
                "{{reason}}": "sum by (reason) (increase(archfleet_trial_failures_total"
                '{instance=~"$instance",hardware=~"$hardware"}[1h]))',
            },
        ),
        Graph(
            title="Duration, p90",
            says="From lease to end of the trials that succeeded in the last hour.",
            unit=units.Seconds,
            queries={
                "{{phase}} {{hardware}}": "instance_phase_hardware:archfleet_trial_duration_seconds:p90_rate1h"
                '{instance=~"$instance",hardware=~"$hardware"}',
            },
        ),
        Graph(
            title="Durations",
            says="How many trials took how long. A diamond is one trial: its id is in the label. Diamonds need "
            "Prometheus' exemplar-storage.",
            unit=units.Seconds,
            form="heat",
            queries={
                "{{le}}": "sum by (le) (increase(archfleet_trial_duration_seconds_bucket"
                '{instance=~"$instance",hardware=~"$hardware"}[$__rate_interval]))',
            },
        ),
    ),
    "Scaling law": (
        Graph(
            title="Held-out error",
            says="Median of |predicted - observed| over observed loss at the held-out, largest runs. Above 5 % do not "
            "extrapolate. Nothing: none of these runs has ended.",
            unit=units.PercentUnit,
            limits=(0.02, 0.05),
            queries={"{{study}}": 'archfleet_fit_heldout_error_ratio{instance=~"$instance",study=~"$study"}'},
        ),
        Graph(
            title="Scatter around the law",
            says="Residual standard deviation over the mean loss, of the newest fit.",
            unit=units.PercentUnit,
            queries={"{{study}}": 'archfleet_fit_error_ratio{instance=~"$instance",study=~"$study"}'},
        ),
        Graph(
            title="Width of the 90 % interval",
            says="Over the predicted loss of the recommended shape at the held-out size.",
            unit=units.PercentUnit,
            queries={"{{study}}": 'archfleet_fit_interval_width_ratio{instance=~"$instance",study=~"$study"}'},
        ),
        Graph(
            title="Points",
            says="In the newest fit, and newer than it. A twentieth of new ones makes a new fit.",
            unit=units.Short,
            queries={
                "{{study}} fitted": 'archfleet_fit_points{instance=~"$instance",study=~"$study"}',
                "{{study}} waiting": 'archfleet_fit_pending_points{instance=~"$instance",study=~"$study"}',
            },
        ),
        Graph(
            title="Age of the fit",
            says="Old is well where no points wait.",
            unit=units.Seconds,
            queries={
                "{{study}}": "time() - archfleet_fit_last_success_timestamp_seconds"
                '{instance=~"$instance",study=~"$study"}',
            },
        ),
    ),
    "Are the benchmarks valid?": (
        Graph(
            title="Canaries",
            says="The same small measurement again and again: its newest rate over its hardware's baseline, minus 1. "
            "Off by more than 5 % the agent gets no work.",
            unit=units.PercentUnit,
            queries={
                "{{agent}} {{kind}}": 'archfleet_canary_deviation_ratio{instance=~"$instance",agent=~"$agent"}',
            },
        ),
        Graph(
            title="Variation of repeats",
            says="Coefficient of variation of a benchmark's repeats, mean over all benchmarks.",
            unit=units.PercentUnit,
            queries={
                "{{hardware}} {{engine}}": "archfleet_bench_repeat_variation_ratio"
                '{instance=~"$instance",hardware=~"$hardware"}',
            },
        ),
        Graph(
            title="Invalid benchmarks, per hour",
            says="Kept, and never recommended from.",
            unit=units.Short,
            form="areas",
            queries={
                "{{engine}} {{reason}}": "sum by (engine, reason) (increase(archfleet_bench_invalid_total"
                '{instance=~"$instance",hardware=~"$hardware"}[1h]))',
            },
        ),
        Graph(
            title="SM clock over its hour's best",
            says="Of DCGM. A fall under load is throttling, or a clock that somebody has set.",
            unit=units.PercentUnit,
            queries={
                "{{Hostname}} {{gpu}}": "DCGM_FI_DEV_SM_CLOCK / max_over_time(DCGM_FI_DEV_SM_CLOCK[1h])",
            },
        ),
        Graph(
            title="Power",
            says="Of DCGM, by GPU.",
            unit=units.Watt,
            queries={"{{Hostname}} {{gpu}}": "DCGM_FI_DEV_POWER_USAGE"},
        ),
    ),
    "The coordinator inside": (
        Graph(
            title="p99 of a turn, a commit, a plan",
            says="Of the last ten minutes. A commit above half a second: the disk is slow, or another reads from it.",
            unit=units.Seconds,
            logarithmic=True,
            queries={
                name: f"histogram_quantile(0.99, sum by (le) (rate(archfleet_{family}_bucket"
                '{instance=~"$instance"}[10m])))'
                for name, family in (
                    ("turn", "loop_duration_seconds"),
                    ("commit", "store_commit_duration_seconds"),
                    ("plan", "scheduler_decision_duration_seconds"),
                    ("fit", "fit_duration_seconds"),
                )
            },
        ),
        Graph(
            title="Store and disk",
            says="A write-ahead log (wal) that grows: a reader is stuck. Below 2 GB of room nothing new is started.",
            unit=units.BytesSI,
            logarithmic=True,
            queries={
                "{{file}}": 'archfleet_store_bytes{instance=~"$instance"}',
                "room": 'archfleet_store_free_bytes{instance=~"$instance"}',
            },
        ),
        Graph(
            title="Dashboard: p99 of an answer",
            says="By route, of the last ten minutes.",
            unit=units.Seconds,
            queries={
                "{{route}}": "histogram_quantile(0.99, sum by (le, route) "
                '(rate(archfleet_http_request_duration_seconds_bucket{instance=~"$instance"}[10m])))',
            },
        ),
        Graph(
            title="Dashboard: answers and streams",
            says="Answers a second by code, and browsers that follow live.",
            unit=units.Short,
            queries={
                "{{code}}": 'sum by (code) (rate(archfleet_http_requests_total{instance=~"$instance"}[5m]))',
                "streams": 'sum(archfleet_event_stream_clients{instance=~"$instance"})',
            },
        ),
        Graph(
            title="Refused and failed, per hour",
            says="Reports of agents by reason, credentials by reason, and commits that failed.",
            unit=units.Short,
            queries={
                "report {{reason}}": "sum by (reason) (increase(archfleet_reports_rejected_total"
                '{instance=~"$instance"}[1h]))',
                "credential {{reason}}": "sum by (reason) (increase(archfleet_http_auth_failures_total"
                '{instance=~"$instance"}[1h]))',
                "commit {{reason}}": "sum by (reason) (increase(archfleet_store_errors_total"
                '{instance=~"$instance"}[1h]))',
            },
        ),
    ),
    "Engines that serve, and GPUs": (
        Graph(
            title="vLLM: requests",
            says="Of servers that you scrape. archfleet's own benchmarks run engines without a server.",
            unit=units.Short,
            queries={
                "{{instance}} running": "sum by (instance) (vllm:num_requests_running)",
                "{{instance}} waiting": "sum by (instance) (vllm:num_requests_waiting)",
            },
        ),
        Graph(
            title="vLLM: KV cache in use",
            says="Full: requests wait or are preempted.",
            unit=units.PercentUnit,
            queries={"{{instance}}": "max by (instance) (vllm:kv_cache_usage_perc)"},
        ),
        Graph(
            title="vLLM: time to first token, p90",
            says="Of the last five minutes.",
            unit=units.Seconds,
            queries={
                "{{instance}}": "histogram_quantile(0.9, sum by (le, instance) "
                "(rate(vllm:time_to_first_token_seconds_bucket[5m])))",
            },
        ),
        Graph(
            title="Output tokens per second",
            says="What vLLM's servers make now, and what was measured of the recommended architecture.",
            unit=units.Short,
            queries={
                "{{instance}} now": "sum by (instance) (rate(vllm:generation_tokens_total[5m]))",
                "{{hardware}} {{engine}} recommended, measured": "archfleet_recommendation_tokens_per_second"
                '{instance=~"$instance",study=~"$study",hardware=~"$hardware"}',
            },
        ),
        Graph(
            title="GPUs: tensor pipes active, XID",
            says="Share of cycles in which tensor pipes work (a profiling counter of DCGM), and the last XID error.",
            unit=units.Short,
            queries={
                "{{Hostname}} {{gpu}} active": "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE",
                "{{Hostname}} {{gpu}} XID": "DCGM_FI_DEV_XID_ERRORS > 0",
            },
        ),
    ),
}

VARIABLES = {
    "instance": ("Coordinator", "label_values(archfleet_build_info, instance)"),
    "study": ("Study", 'label_values(archfleet_study_spent_accelerator_seconds_total{instance=~"$instance"}, study)'),
    "hardware": ("Hardware", 'label_values(archfleet_agents{instance=~"$instance"}, hardware)'),
    "agent": ("Agent", 'label_values(archfleet_agent_last_heartbeat_timestamp_seconds{instance=~"$instance"}, agent)'),
}
ANNOTATIONS = {
    "A coordinator begins": (
        "blue",
        'archfleet_build_info{instance=~"$instance"} unless archfleet_build_info{instance=~"$instance"} offset 2m',
    ),
    "A canary is off by over 5 %": (
        HARD_COLOUR,
        'abs(archfleet_canary_deviation_ratio{instance=~"$instance",agent=~"$agent"}) > 0.05',
    ),
}


def build() -> str:
    """The dashboard as JSON text."""
    page = (
        dashboard.Dashboard("archfleet")
        .uid(UID)
        .description("Coordinators of archfleet and their fleets. Runbook of the alerts: deploy/README.md")
        .tags(["archfleet"])
        .time("now-6h", "now")
        .refresh("30s")
        .timezone("browser")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .readonly()
        .with_variable(dashboard.DatasourceVariable("source").label("Data source").type("prometheus"))
    )
    for name, (label, query) in VARIABLES.items():
        page = page.with_variable(_variable(name, label, query))
    for name, (colour, expression) in ANNOTATIONS.items():
        page = page.annotation(
            dashboard.AnnotationQuery().name(name).datasource(SOURCE).enable(True).icon_color(colour).expr(expression)
        )
    number = 0
    for title, graphs in ROWS.items():
        number += 1
        page = page.with_row(dashboard.Row(title).id(number))
        for place, graph in enumerate(graphs):
            number += 1
            page = page.with_panel(_panel(graph, number, width=_width(place, len(graphs))))
    return json.dumps(page.build(), cls=JSONEncoder, indent=2, ensure_ascii=False) + "\n"


def _variable(name: str, label: str, query: str) -> Builder[models.VariableModel]:
    return (
        dashboard.QueryVariable(name)
        .label(label)
        .query(query)
        .datasource(SOURCE)
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(models.VariableOption(selected=True, text=["All"], value=["$__all"]))
    )


def _width(place: int, num_graphs: int) -> int:
    """Columns of a graph: as equal as may be, together the whole grid."""
    return (place + 1) * GRID_COLUMNS // num_graphs - place * GRID_COLUMNS // num_graphs


def _panel(graph: Graph, number: int, *, width: int) -> Panel:
    panel = FORMS[graph.form](graph)
    panel = panel.id(number).title(graph.title).description(graph.says).datasource(SOURCE).unit(graph.unit)
    panel = panel.span(width).height(5 if graph.form == "figures" else 8)
    for place, (legend, expression) in enumerate(graph.queries.items()):
        panel = panel.with_target(_query(graph, legend, expression, reference="ABCDEF"[place]))
    return panel


def _query(graph: Graph, legend: str, expression: str, *, reference: str) -> prometheus.Dataquery:
    query = prometheus.Dataquery().ref_id(reference).expr(expression).legend_format(legend).datasource(SOURCE)
    if graph.form == "heat":
        return query.range().format(prometheus_models.PromQueryFormat.HEATMAP).exemplar(True)
    return query.instant() if graph.form == "figures" else query.range()


def _lines(graph: Graph) -> timeseries.Panel:
    panel = (
        timeseries.Panel()
        .line_width(1)
        .fill_opacity(0)
        .show_points(common_models.VisibilityMode.AUTO)
        .legend(
            common.VizLegendOptions()
            .display_mode(common_models.LegendDisplayMode.LIST)
            .placement(common_models.LegendPlacement.BOTTOM)
            .show_legend(True)
        )
        .tooltip(common.VizTooltipOptions().mode(common_models.TooltipDisplayMode.MULTI))
    )
    if graph.logarithmic:
        panel = panel.scale_distribution(
            common.ScaleDistributionConfig().type(common_models.ScaleDistribution.LOG).log(10)
        )
    if graph.limits:
        panel = panel.thresholds(_limits(graph.limits)).thresholds_style(
            common.GraphThresholdsStyleConfig().mode(common_models.GraphTresholdsStyleMode.DASHED)
        )
    return panel


def _areas(graph: Graph) -> timeseries.Panel:
    stacking = common.StackingConfig().mode(common_models.StackingMode.NORMAL)
    return _lines(graph).stacking(stacking).fill_opacity(40)


def _figures(graph: Graph) -> stat.Panel:
    panel = (
        stat.Panel()
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .text_mode(common_models.BigValueTextMode.VALUE_AND_NAME)
        .graph_mode(common_models.BigValueGraphMode.NONE)
        .thresholds(_limits(graph.limits))
        .no_value("none")
    )
    if graph.words is None:
        return panel
    told = {
        str(value): models.ValueMappingResult(text=text, color=colour) for value, (text, colour) in graph.words.items()
    }
    return panel.mappings([models.ValueMap(options=told)])


def _heat(graph: Graph) -> heatmap.Panel:
    return (
        heatmap.Panel()
        .color(heatmap.HeatmapColorOptions().mode(heatmap_models.HeatmapColorMode.SCHEME).scheme("Blues").steps(32))
        .y_axis(heatmap.YAxisConfig().unit(graph.unit))
        .cell_gap(1)
        .hide_legend()
        .show_tooltip()
    )


FORMS: Mapping[str, Callable[[Graph], Panel]] = {"lines": _lines, "areas": _areas, "figures": _figures, "heat": _heat}


def _limits(limits: tuple[float, ...]) -> dashboard.ThresholdsConfig:
    colours = (SOFT_COLOUR, HARD_COLOUR) if len(limits) > 1 else (HARD_COLOUR,)
    steps = [models.Threshold(value=None, color=GOOD_COLOUR if limits else "text")]
    steps += [models.Threshold(value=value, color=colour) for value, colour in zip(limits, colours, strict=False)]
    return dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(steps)


if __name__ == "__main__":
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(build(), encoding="utf-8")
    print(f"wrote {OUT}")
