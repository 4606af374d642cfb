"""A plan's mapping as text for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nemo_gdpo.verbs.plan_report import PARTS


def as_text(report: Mapping[str, Any]) -> str:
    """A report for people: the same numbers, in tables."""
    hardware, model, data, mesh = (report[k] for k in ("hardware", "model", "data", "mesh"))
    lines = [
        "PREDICTIONS, computed from sizes and data sheets; nothing is measured",
        f"hardware   {hardware['device']} x {hardware['count']}, {hardware['memory_gb']} GB each",
        f"model      {model['parameters']:,} parameters ({model['source']})",
        f"mesh       TP{mesh['tensor']} x PP{mesh['pipeline']} x CP{mesh['context']} x "
        f"DP{mesh['data']}, micro-batch {mesh['micro_batch_size']}, recompute {mesh['recompute']}",
        *_told_of_layout(report),
        "",
        *_memory_lines(report),
        "",
        f"data       {data['source']}",
        f"           {data['pairs']:,} pairs, {data['tokens_a_pair']:,} tokens each, "
        f"{data['response_tokens_a_pair']:,} of them responses; {data['updates']:,} updates",
        f"           with each prompt once for both responses, "
        f"{data['tokens_with_shared_prompts']:.0%} of the tokens would be left",
        f"FLOPs      {report['flops_per_token']['update']:.3g} a token and update, "
        "of real tokens; the head at responses only",
        *_speed_lines(report),
        "",
        *_disk_lines(report),
        "",
        *_layout_lines(report),
    ]
    return "\n".join(lines)


def _told_of_layout(report: Mapping[str, Any]) -> list[str]:
    if report["layout_is_configured"]:
        return []
    wrong = [f"           not as configured: {text}" for text in report["problems_of_configured"]]
    return [*wrong, f"           but {report['layout']}"]


def _memory_lines(report: Mapping[str, Any]) -> list[str]:
    stages = report["stages"]
    kept = report["activations_gb"]
    names = [f"stage {number}" for number in range(len(stages))]
    head = f"{'GB a rank':<16}" + "".join(f"{name:>10}" for name in names)
    rows = [
        f"{part.replace('_', ' '):<16}" + "".join(f"{stage[part]:>10.2f}" for stage in stages)
        for part in (*PARTS, "total")
        if any(stage[part] for stage in stages)
    ]
    left = report["left_gb"]
    tight = " (less than 5 %: it may not)" if left < 0.05 * report["hardware"]["memory_gb"] else ""
    verdict = f"fits, {left:.1f} GB left{tight}"
    if not report["fits"]:
        verdict = f"DOES NOT FIT, {-left:.1f} GB over"
    choices = ", ".join(f"{name} {value:.2f}" for name, value in kept.items())
    host = report["host_gb_a_node"]
    beside = [f"host memory: {host:,.1f} GB a node, weights that change places"] if host else []
    if report["loading_gb"]:
        loading = report["loading_gb"]
        beside.append(f"at the start: {loading:,.1f} GB of weights, before they are quantised")
    return [
        head,
        *rows,
        *beside,
        f"fullest stage: {verdict}",
        f"activations by recomputation: {choices}",
    ]


def _speed_lines(report: Mapping[str, Any]) -> list[str]:
    share, peak = report["hardware"]["assumed_share_of_peak"], report["hardware"]["peak_tflops"]
    if share is None:
        rows = [f"{n} {r.get('slots_a_token', '-')}" for n, r in report["rows"].items()]
        told = f"positions a token: {', '.join(rows)}"
        return [told, "speed      is not predicted for fp32: nothing is published to go by"]
    lines = [
        f"speed      at {share:.0%} of {peak:,.0f} TFLOP/s, the share of published runs; "
        "communication on top",
        f"{'rows':<10}{'positions':>10}{'tokens/s':>12}{'a GPU':>9}{'s/update':>10}{'bubble':>8}"
        f"{'comm.':>7}{'hours':>9}{'GPU-hours':>11}",
    ]
    for name, row in report["rows"].items():
        if "problem" in row:
            lines.append(f"{name:<10}{row['problem']}")
            continue
        lines.append(
            f"{name:<10}{row['slots_a_token']:>10.2f}{row['tokens_per_second']:>12,}"
            f"{row['tokens_per_second_per_gpu']:>9,}{row['update_seconds']:>10.2f}"
            f"{row['of_it_bubble']:>8.0%}{row['of_it_communication']:>7.0%}{row['hours']:>9.2f}"
            f"{row['gpu_hours']:>11,.1f}"
        )
    return [
        *lines,
        "hours: all updates and the reference's cache, without start, validation, saving",
    ]


def _disk_lines(report: Mapping[str, Any]) -> list[str]:
    disk = report["disk_gb"]
    return [
        f"disk       checkpoint {disk['checkpoint']:,.1f} GB, room {disk['room']:,.1f} GB; "
        f"reference cache {disk['reference']:,.2f} GB; export {disk['export']:,.1f} GB"
        + (f", adapter {disk['adapter']:,.2f} GB" if disk["adapter"] else "")
    ]


def _layout_lines(report: Mapping[str, Any]) -> list[str]:
    is_timed = report["hardware"]["assumed_share_of_peak"] is not None
    lines = [
        f"best layouts that fit, by {'predicted tokens/s' if is_timed else 'memory'}",
        f"{'TP':>4}{'PP':>4}{'CP':>4}{'DP':>5}{'micro':>7}{'recompute':>11}{'GB':>8}"
        f"{'tokens/s':>12}",
    ]
    lines += [
        f"{one['tensor']:>4}{one['pipeline']:>4}{one['context']:>4}{one['data']:>5}"
        f"{one['micro_batch_size']:>7}{one['recompute']:>11}{one['memory_gb']:>8.1f}"
        f"{format(one['tokens_per_second'], ',') if is_timed else '-':>12}"
        for one in report["layouts"]
    ]
    better = report["next"]
    if better is None:
        told = "nothing that is known here gains 2 % and leaves the trajectory as it is"
    elif better["gain"] is None:
        told = f"{better['change']} (would fit)"
    else:
        told = f"{better['change']} ({better['gain']:.2f} x tokens/s)"
    return [*lines, f"next better: {told}"]
