"""`archfleet hw`: data sheets, the device that is here, and what is measured on it."""

from pathlib import Path
from typing import Any

import click

from coordinator.cli.command import group, json_option
from coordinator.cli.console import console, errors, print_json


@group(epilog="  archfleet hw list\n  archfleet hw detect\n  archfleet hw calibrate --seconds 60 --out measured.toml")
def hw() -> None:
    """Hardware profiles: data sheets, which of them this device is, and what is measured on it."""


@hw.command("list", epilog="  archfleet hw list\n  archfleet hw list --json")
@json_option
def hw_list(as_json: bool) -> None:
    """List the data sheets that ship with archfleet."""
    from coordinator.hardware import sheets_table
    from hwprofiles.catalog import all_profiles

    if as_json:
        print_json([profile.model_dump(mode="json") for profile in all_profiles()])
        return
    console.print(sheets_table())
    console.print("Data-sheet peaks, not attainable rates; `--json` gives the source of every figure.")


@hw.command("detect", epilog="  archfleet hw detect\n  archfleet hw detect --json")
@json_option
def hw_detect(as_json: bool) -> None:
    """Tell what this machine's device is, and which data sheet is certainly its own."""
    from coordinator.hardware import describe_detected, detect_device

    found = detect_device()
    if as_json:
        print_json(found)
    else:
        console.print(describe_detected(found), markup=False, soft_wrap=True)


@hw.command(
    "calibrate",
    epilog="  archfleet hw calibrate --out measured.toml\n"
    "  archfleet hw calibrate --hardware h100-pcie-80gb --seconds 120 --out measured.toml\n"
    "  archfleet predict config.json --profile measured.toml",
)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write the measured profile here (TOML).")
@click.option(
    "--seconds",
    default=60.0,
    show_default=True,
    type=click.FloatRange(1, 170),
    help="About how long; a busy or slow machine takes longer.",
)
@click.option("--hardware", help="The sheet whose peaks to keep.  [default: the detected one]")
@click.option("--cpu", "on_cpu", is_flag=True, help="Calibrate the CPU of a machine that has a GPU.")
@click.option("--threads", "num_threads", default=1, show_default=True, type=click.IntRange(min=1), help="CPU threads.")
@click.option(
    "--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), help="[default: float32 on a CPU, else bfloat16]"
)
@json_option
def hw_calibrate(out: Path | None, on_cpu: bool, as_json: bool, **settings: Any) -> None:
    """Measure this device by microbenchmarks: matrix products, copies, attention, launches, each by size."""
    from coordinator.bars import told
    from coordinator.hardware import calibrate_device, calibration_table, require_folder, write_profile

    if out is not None:
        require_folder(out)
    with told(errors, "microbenchmarks") as progress:
        profile = calibrate_device(on_gpu=False if on_cpu else None, on_progress=progress.reach, **settings)
    if out is not None:
        write_profile(profile, out)
    if as_json:
        print_json(profile.model_dump(mode="json"))
        return
    console.print(calibration_table(profile))
    console.print(
        f"written to {out}; `archfleet predict CONFIG --profile {out}` uses it"
        if out is not None
        else "not kept: --out FILE writes a profile that `archfleet predict --profile FILE` uses",
        markup=False,
        soft_wrap=True,
    )
