"""HardwareProfile: the peaks of one board or machine, each figure with its source, and what was measured on it."""

from typing import Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

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


Operation = Literal["gemm", "decode_attention", "prefill_attention", "copy"]
AXES: dict[Operation, tuple[str, ...]] = {
    "gemm": ("rows", "weights"),
    "decode_attention": ("query_group_size", "head_dim"),
    "prefill_attention": ("query_group_size", "head_dim"),
    "copy": ("bytes",),
}
"""What the efficiency of an operation depends on. `weights` is the number of elements p · q of the matrix."""


class EfficiencyPoint(Value):
    """Efficiency of an operation at one size: least time by the roofline / measured time, dimensionless.

    It is kept as it was measured: above one where a cache is faster than the memory, or a clock than the sheet's.
    """

    size: tuple[PositiveFloat, ...]
    """Along the operation's axes (`AXES`)."""
    efficiency: PositiveFloat
    spread: NonNegativeFloat
    """Standard deviation of ln(seconds / roofline's seconds) over repeats and, for gemm, over aspect ratios."""
    num_samples: PositiveInt


class EfficiencyTable(Value):
    """Measured efficiencies of one operation in one dtype; cells of the grid that were too costly are absent."""

    operation: Operation
    dtype: Dtype
    points: tuple[EfficiencyPoint, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _on_its_axes(self) -> Self:
        axes = AXES[self.operation]
        sizes = [point.size for point in self.points]
        if any(len(size) != len(axes) for size in sizes):
            raise ValueError(f"a size of {self.operation} has {len(axes)} numbers ({', '.join(axes)})")
        if len(set(sizes)) < len(sizes):
            raise ValueError(f"the table of {self.operation} in {self.dtype} has two points of one size; keep one")
        return self


class Calibration(Value):
    """How, where and when efficiencies were measured."""

    device: str
    measured_at: str
    """UTC, ISO 8601."""
    versions: dict[str, str]
    num_threads: PositiveInt | None = None
    """CPU threads; null on a GPU."""
    clock: Literal["wall", "processor", "gpu-events"]
    num_repeats: PositiveInt
    seconds: NonNegativeFloat
    """What the measuring took."""


class HardwareProfile(Value):
    """What a device can do at best. Compute peaks are dense (no 2:4 sparsity), in FLOP/s; bandwidth in bytes/s."""

    schema_version: Literal[1] = 1
    id: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")
    name: str
    kind: Literal["gpu", "cpu"]
    peak_flops_per_second: dict[Dtype, PositiveFloat]
    memory_bytes: PositiveInt | None = None
    """As the driver reports it, never the label; null where that was not read."""
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
    efficiencies: tuple[EfficiencyTable, ...] = ()
    """Empty on a data sheet: predictions are then uncalibrated."""
    launch_seconds: PositiveFloat | None = None
    """Host time to start one small operation."""
    calibration: Calibration | None = None

    @model_validator(mode="after")
    def _measured_by_something(self) -> Self:
        keys = [(table.operation, table.dtype) for table in self.efficiencies]
        if len(set(keys)) < len(keys):
            raise ValueError("two efficiency tables of one operation and dtype; keep one")
        if bool(self.efficiencies) != (self.calibration is not None):
            raise ValueError("efficiencies and their calibration go together: give both or neither")
        return self
