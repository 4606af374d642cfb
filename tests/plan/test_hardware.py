"""Names of hardware, and what is known of it."""

from __future__ import annotations

import pytest

from nemo_gdpo.errors import UserError
from nemo_gdpo.launch.verbs import VERBS
from nemo_gdpo.plan.hardware import DEVICES, MOST_MEMORY, parse_hardware, peak_of
from nemo_gdpo.training.throughput import peak_tflops


@pytest.mark.parametrize(
    ("text", "name", "count", "nodes", "per_node"),
    [
        ("h100x16", "h100", 16, 2, 8),
        ("H200x8", "h200", 8, 1, 8),
        ("a100-80x8", "a100-80", 8, 1, 8),
        ("h100-pciex4", "h100-pcie", 4, 1, 4),
        ("l40sx1", "l40s", 1, 1, 1),
    ],
)
def test_hardware(text: str, name: str, count: int, nodes: int, per_node: int) -> None:
    found = parse_hardware(text)
    assert (found.device.name, found.count) == (name, count)
    assert (found.nodes, found.per_node) == (nodes, per_node)


@pytest.mark.parametrize("text", ["v100x8", "h100", "h100x", "x8", "h100x-1", "16xh100"])
def test_unknown_hardware_lists_what_is_known(text: str) -> None:
    with pytest.raises(UserError) as told:
        parse_hardware(text)
    message = str(told.value)
    assert message.startswith(f"hardware={text}: is not a known device")
    assert all(f"{device.name} ({device.memory} GB)" in message for device in DEVICES)
    assert "\n" not in message


def test_cards_without_nvlink_reach_each_other_as_they_reach_the_host() -> None:
    found = {device.name: device for device in DEVICES}
    for name in ("h100-pcie", "h100-nvl", "l40s"):
        assert found[name].host == found[name].inside
    # PCIe 4 and PCIe 5 with 16 lanes.
    assert {name for name, one in found.items() if one.host == 32} == {"a100-40", "a100-80", "l40s"}
    assert all(one.host in {32, 64} for one in DEVICES)


def test_nodes_are_whole() -> None:
    with pytest.raises(UserError, match=r"h100x12: nodes have 8 .* write h100x8 or h100x16$"):
        parse_hardware("h100x12")
    with pytest.raises(UserError, match=r"h100x0: .* write h100x1 or h100x8$"):
        parse_hardware("h100x0")


def test_what_is_planned_with_is_what_mfu_is_measured_by() -> None:
    """CUDA's own names of devices, none of which another pattern takes for its own."""
    names = [
        "NVIDIA A100-SXM4-40GB", "NVIDIA A100-SXM4-80GB", "NVIDIA H100 80GB HBM3",
        "NVIDIA H100 PCIe", "NVIDIA H100 NVL", "NVIDIA H200", "NVIDIA B200", "NVIDIA B300",
        "NVIDIA L40S",
    ]  # fmt: skip
    assert [peak_of(name) for name in names] == [device.peak for device in DEVICES]
    assert [peak_tflops("NVIDIA L40S", p) for p in ("bf16", "fp8_tensorwise")] == [362.0, 733.0]
    assert peak_of("NVIDIA H100 80GB HBM3 MIG 1g.10gb") is None


def test_the_help_names_every_device() -> None:
    (usage,) = [verb.usage for verb in VERBS if verb.name == "plan"]
    assert f"DEVICE: {', '.join(device.name for device in DEVICES)}. " in usage


def test_no_known_device_has_more_memory() -> None:
    assert MOST_MEMORY == 288e9
