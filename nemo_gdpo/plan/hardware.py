"""Devices by name, from their makers' data sheets, and `hardware=h100x16`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from nemo_gdpo.errors import UserError
from nemo_gdpo.precisions import in_fp8

KEY = "hardware"


@dataclass(frozen=True)
class Device:
    """Memory in GB (1e9 bytes), dense matrix products in TFLOP/s, bandwidths in GB/s one way."""

    name: str
    cuda_name: str
    """What CUDA calls it."""
    memory: int
    bf16: float
    fp8: float | None
    inside: float
    """To the other devices of its node, one way: half of what data sheets call NVLink or PCIe."""
    outside: float
    """To other nodes, for each device: its network port."""
    host: float
    """To the memory of its host, one way: PCIe with 16 lanes."""
    node: int = 8
    """Devices of a node."""

    def peak(self, precision: str) -> float | None:
        """Dense TFLOP/s; None where it has no tensor cores for `precision`."""
        if precision == "fp32":
            return None
        return self.fp8 if in_fp8(precision) else self.bf16


DEVICES = (
    # NVIDIA A100 data sheet (2021), DGX A100 data sheet: NVLink 600 GB/s, PCIe 4; 200 Gb/s a GPU.
    Device("a100-40", "NVIDIA A100-SXM4-40GB", 40, 312.0, None, 300.0, 25.0, 32.0),
    Device("a100-80", "NVIDIA A100-SXM4-80GB", 80, 312.0, None, 300.0, 25.0, 32.0),
    # NVIDIA H100 data sheet: NVLink 900 GB/s, PCIe 5 128 GB/s; DGX H100: 400 Gb/s a GPU. Servers
    # with PCIe cards differ: a port of 200 Gb/s for two cards is assumed, bridges do not count.
    Device("h100", "NVIDIA H100 80GB HBM3", 80, 989.5, 1979.0, 450.0, 50.0, 64.0),
    Device("h100-pcie", "NVIDIA H100 PCIe", 80, 756.5, 1513.0, 64.0, 12.5, 64.0),
    Device("h100-nvl", "NVIDIA H100 NVL", 94, 835.5, 1670.5, 64.0, 12.5, 64.0),
    # NVIDIA H200 data sheet; DGX H200: as DGX H100.
    Device("h200", "NVIDIA H200", 141, 989.5, 1979.0, 450.0, 50.0, 64.0),
    # NVIDIA DGX B200 data sheet: 1,440 GB and 72 PFLOPS FP8 (sparse 144) for 8; NVLink 1.8 TB/s;
    # its hosts have PCIe 5.
    Device("b200", "NVIDIA B200", 180, 2250.0, 4500.0, 900.0, 50.0, 64.0),
    # NVIDIA DGX B300 data sheet: 2.3 TB for 8, 800 Gb/s a GPU; dense BF16 and FP8 as B200.
    Device("b300", "NVIDIA B300", 288, 2250.0, 4500.0, 900.0, 100.0, 64.0),
    # NVIDIA L40S data sheet: PCIe 4 64 GB/s, no NVLink; network as for PCIe cards above.
    Device("l40s", "NVIDIA L40S", 48, 362.0, 733.0, 32.0, 12.5, 32.0),
)
"""What is known, smallest generation first."""
MOST_MEMORY = max(device.memory for device in DEVICES) * 1e9
"""Bytes; no known device has more."""


@dataclass(frozen=True)
class Cluster:
    """So many devices of a kind."""

    device: Device
    count: int

    @property
    def per_node(self) -> int:
        """Devices of each node."""
        return min(self.count, self.device.node)

    @property
    def nodes(self) -> int:
        """Nodes."""
        return -(-self.count // self.device.node)


def known_devices() -> str:
    """Names and memory of all devices, for one line."""
    return ", ".join(f"{device.name} ({device.memory} GB)" for device in DEVICES)


def parse_hardware(text: str) -> Cluster:
    """`h100x16`: sixteen H100.

    Raises:
        UserError: it is not of this form, the device is not known, or nodes would not be whole.
    """
    found = re.fullmatch(r"(.+)x(\d+)", text.strip().lower())
    devices = {device.name: device for device in DEVICES}
    if found is None or found[1] not in devices:
        raise UserError(
            f"{KEY}={text}: is not a known device with a number; write DEVICExNUMBER, as h100x16, "
            f"with one of {known_devices()}"
        )
    device, count = devices[found[1]], int(found[2])
    if count < 1 or (count > device.node and count % device.node):
        down = count // device.node * device.node
        raise UserError(
            f"{KEY}={text}: nodes have {device.node} devices and are taken whole; write "
            f"{device.name}x{max(down, 1)} or {device.name}x{down + device.node}"
        )
    return Cluster(device, count)
