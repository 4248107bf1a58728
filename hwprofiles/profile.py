"""HardwareProfile: the peaks of one board or machine, each figure with its source."""

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt

from hwprofiles.value import Value

Dtype = Literal["float32", "bfloat16", "float16", "fp8", "int8", "fp4"]
BYTES_PER_ELEMENT: dict[str, float] = {
    "float32": 4,
    "bfloat16": 2,
    "float16": 2,
    "fp8": 1,
    "int8": 1,
    "fp4": 0.5,
}


class HardwareProfile(Value):
    """What a device can do at best. Compute peaks are dense (no 2:4 sparsity), in FLOP/s; bandwidth in bytes/s."""

    schema_version: Literal[1] = 1
    id: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")
    name: str
    kind: Literal["gpu", "cpu"]
    peak_flops_per_second: dict[Dtype, PositiveFloat]
    memory_bytes: PositiveInt
    memory_bandwidth_bytes_per_second: PositiveFloat
    link_bytes_per_second: PositiveFloat | None = None
    """Total bidirectional device-to-device bandwidth; null where there is no link."""
    power_watts: PositiveFloat | None = None
    num_multiprocessors: PositiveInt | None = None
    device_names: tuple[str, ...] = ()
    """What the driver calls this device, for matching."""
    provenance: dict[str, str]
    """Per field: how the figure is known and from which source."""
    notes: str = ""
