"""The catalogue of data sheets: reads `hwprofiles/data/*.toml` and matches what a device says of itself to a sheet."""

import tomllib
from functools import cache
from importlib import resources
from pathlib import Path

from pydantic import ValidationError

from hwprofiles.profile import HardwareProfile
from hwprofiles.toml_text import is_unchanged

MEMORY_TOLERANCE = 0.03
"""Relative. CUDA and NVML report the same board 1 % apart; the next board or a MIG slice is at least 10 % away."""
HIGHEST_POWER_RATIO = 1.05
LOWEST_POWER_RATIO = 0.5
"""Bounds of (power limit / sheet's power): a capped board is still that board, one above its limit is another."""


@cache
def all_profiles() -> tuple[HardwareProfile, ...]:
    """Every shipped sheet, in order of id."""
    sheets = (entry for entry in resources.files("hwprofiles").joinpath("data").iterdir() if entry.name[-5:] == ".toml")
    profiles = (HardwareProfile.model_validate(tomllib.loads(sheet.read_text("utf-8"))) for sheet in sheets)
    return tuple(sorted(profiles, key=lambda profile: profile.id))


def load_profile(profile_id: str) -> HardwareProfile:
    """The sheet of this id.

    Raises:
        ValueError: there is no such sheet; the message lists those there are.
    """
    for profile in all_profiles():
        if profile.id == profile_id:
            return profile
    known = ", ".join(profile.id for profile in all_profiles())
    raise ValueError(f"unknown hardware {profile_id!r}; expected one of: {known}. See `archfleet hw list`.")


def match_device(name: str, memory_bytes: int | None, power_watts: float | None = None) -> str | None:
    """The id of the sheet of a device, or None where no sheet is certainly its own.

    The driver's name must be one of the sheet's exactly: "H100" or "H200" within a longer name may be a PCIe or NVL
    board with other peaks. Total memory tells slices and relabelled boards apart, the power limit (if known) the rest.
    A device that does not tell its memory matches none, nor does a sheet without the memory that a driver reports.
    """
    if memory_bytes is None:
        return None
    for profile in all_profiles():
        if name not in profile.device_names or profile.memory_bytes is None:
            continue
        same_memory = abs(memory_bytes / profile.memory_bytes - 1) <= MEMORY_TOLERANCE
        if same_memory and _power_is_plausible(profile, power_watts):
            return profile.id
    return None


def sheets_named(name: str) -> tuple[HardwareProfile, ...]:
    """The sheets of boards that a driver calls by this name, whatever their memory."""
    return tuple(profile for profile in all_profiles() if name in profile.device_names)


def read_profile(file: Path) -> HardwareProfile:
    """A profile from a TOML file, such as `archfleet hw calibrate --out FILE` writes.

    Raises:
        ValueError: it cannot be read, is not TOML, or is not a profile; the message says what and where.
    """
    try:
        text = file.read_bytes().decode("utf-8")
        if not is_unchanged(text):
            raise ValueError(
                f"{file} was changed after it was measured, or is damaged: its first line has the hash of the rest. "
                "Measure anew with `archfleet hw calibrate`; where you changed it on purpose, delete that line"
            )
        return HardwareProfile.model_validate(tomllib.loads(text))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        raise ValueError(
            f"{file}: cannot be read: {reason}; expected a profile of `archfleet hw calibrate --out`"
        ) from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ValueError(f"{file}: not TOML: {error}") from None
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'profile'}: {e['msg']}" for e in error.errors()[:5])
        raise ValueError(f"{file}: not a hardware profile: {problems}") from None


def _power_is_plausible(profile: HardwareProfile, power_watts: float | None) -> bool:
    if power_watts is None or profile.power_watts is None:
        return True
    return LOWEST_POWER_RATIO <= power_watts / profile.power_watts <= HIGHEST_POWER_RATIO
