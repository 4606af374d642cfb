"""Devices by name, from their makers' data sheets, and `hardware=h100x16`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from nemo_gdpo.errors import UserError
from nemo_gdpo.precisions import arithmetic, in_fp8

KEY = "hardware"


@dataclass(frozen=True)
class Peak:
    """Dense matrix products of a device, TFLOP/s; None where it has none of that precision."""

    name: str
    """Pattern of the whole name that CUDA gives it: a slice of a GPU (MIG) is another."""
    bf16: float
    fp8: float | None
    fp32: float
    """Without tensor cores: TF32 is switched off."""

    def of(self, precision: str) -> float | None:
        """That of a value of the `precision` key."""
        if arithmetic(precision) == "fp32":
            return self.fp32
        return self.fp8 if in_fp8(precision) else self.bf16


# NVIDIA's data sheets; their tensor figures from H100 on are with sparsity, twice these.
A100 = Peak(r"(NVIDIA )?A100-(SXM4|PCIE)-(40|80)GB|NVIDIA A100 80GB PCIe", 312.0, None, 19.5)
H100 = Peak(r"NVIDIA H100 80GB HBM3", 989.5, 1979.0, 67.0)
H100_PCIE = Peak(r"NVIDIA H100 PCIe", 756.5, 1513.0, 51.0)
H100_NVL = Peak(r"NVIDIA H100 NVL", 835.5, 1670.5, 60.0)
H200 = Peak(r"NVIDIA H200", 989.5, 1979.0, 67.0)
H200_NVL = Peak(r"NVIDIA H200 NVL", 835.5, 1670.5, 60.0)
# HGX B200 and B300, for one GPU: 4.5 and 9 PFLOPS with sparsity, 75 TFLOPS.
B200 = Peak(r"NVIDIA B200", 2250.0, 4500.0, 75.0)
B300 = Peak(r"NVIDIA B300", 2250.0, 4500.0, 75.0)
L40S = Peak(r"NVIDIA L40S", 362.0, 733.0, 91.6)
PEAKS = (A100, H100, H100_PCIE, H100_NVL, H200, H200_NVL, B200, B300, L40S)


def peak_of(cuda_name: str) -> Peak | None:
    """Of a device by the name that CUDA gives it; None where it is not known."""
    return next((peak for peak in PEAKS if re.fullmatch(peak.name, cuda_name)), None)


@dataclass(frozen=True)
class Device:
    """Memory in GB (1e9 bytes), bandwidths in GB/s one way."""

    name: str
    memory: int
    peak: Peak
    inside: float
    """To the other devices of its node, one way: half of what data sheets call NVLink or PCIe."""
    outside: float
    """To other nodes, for each device: its network port."""
    host: float
    """To the memory of its host, one way: PCIe with 16 lanes."""
    node: int = 8
    """Devices of a node."""


DEVICES = (
    # NVIDIA A100 data sheet (2021), DGX A100 data sheet: NVLink 600 GB/s, PCIe 4; 200 Gb/s a GPU.
    Device("a100-40", 40, A100, 300.0, 25.0, 32.0),
    Device("a100-80", 80, A100, 300.0, 25.0, 32.0),
    # NVIDIA H100 data sheet: NVLink 900 GB/s, PCIe 5 128 GB/s; DGX H100: 400 Gb/s a GPU. Servers
    # with PCIe cards differ: a port of 200 Gb/s for two cards is assumed, bridges do not count.
    Device("h100", 80, H100, 450.0, 50.0, 64.0),
    Device("h100-pcie", 80, H100_PCIE, 64.0, 12.5, 64.0),
    Device("h100-nvl", 94, H100_NVL, 64.0, 12.5, 64.0),
    # NVIDIA H200 data sheet; DGX H200: as DGX H100.
    Device("h200", 141, H200, 450.0, 50.0, 64.0),
    # NVIDIA DGX B200 data sheet: 1,440 GB for 8; NVLink 1.8 TB/s; its hosts have PCIe 5.
    Device("b200", 180, B200, 900.0, 50.0, 64.0),
    # NVIDIA DGX B300 data sheet: 2.3 TB for 8, 800 Gb/s a GPU.
    Device("b300", 288, B300, 900.0, 100.0, 64.0),
    # NVIDIA L40S data sheet: PCIe 4 64 GB/s, no NVLink; network as for PCIe cards above.
    Device("l40s", 48, L40S, 32.0, 12.5, 32.0),
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
