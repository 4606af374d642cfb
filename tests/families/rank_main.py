"""One rank: every model of the zoo on one mesh; logits, and a checkpoint written by megatron.

`python -m tests.families.rank_main FOLDER TP PP` under RANK and WORLD_SIZE. For every kind, FOLDER
holds `<kind>/hf` and `<kind>/megatron`; rank 0 writes `<kind>/tp<TP>pp<PP>/` with the weights as
this mesh saved them, and `logits.safetensors`. Then both are loaded and compared, on all meshes of
`models.MESHES` that this many ranks make: `FOLDER/direct<ranks>.json`.
"""

from __future__ import annotations

import json
import sys
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from nemo_gdpo.conversion.formats.assets import ASSETS
from nemo_gdpo.conversion.formats.megatron_io import (
    CheckpointModel,
    read_checkpoint_model,
    write_checkpoint_assets,
)
from nemo_gdpo.models.builder import ParallelLayout, build_gpt_chunks, transformer_config
from nemo_gdpo.models.forward import HeadOptions, forward_logits
from nemo_gdpo.platform import current_platform
from nemo_gdpo.training.mesh import build_mesh, join_world, leave_mesh, leave_world
from tests.families.direct import compare, refusals
from tests.support import models

SHARDING = {"non_homogeneous_layers": True}


def pipeline_logits(gpt: Any, model: CheckpointModel, tokens_NS: torch.Tensor) -> Any:
    """float32 [N, S, V] on the last stage, None elsewhere."""
    from megatron.core.pipeline_parallel import get_forward_backward_func

    options = HeadOptions(
        vocab_size=model.config.vocab_size, logit_softcap=model.config.logit_softcap
    )

    def step(iterator: Any, chunk: Any) -> Any:
        output = forward_logits(chunk, next(iterator), options)
        return output, lambda logits, non_loss_data=True: logits

    found = get_forward_backward_func()(
        forward_step_func=step,
        data_iterator=iter([tokens_NS]),
        model=gpt,
        num_microbatches=1,
        seq_length=tokens_NS.shape[1],
        micro_batch_size=tokens_NS.shape[0],
        forward_only=True,
        collect_non_loss_data=True,
    )
    return found[0] if found else None


def loaded(root: Path, model: CheckpointModel, layout: ParallelLayout) -> Any:
    """The model as described, with the weights of `root/megatron`."""
    from megatron.core import dist_checkpointing

    platform = current_platform()
    config = transformer_config(model.config, layout, "fp32", platform)
    longest = min(64, model.config.max_position_embeddings)
    gpt = build_gpt_chunks(model.config, config, layout, platform, max_sequence_length=longest)[0]
    with torch.no_grad():
        for parameter in gpt.parameters():
            parameter.fill_(float("nan"))
    sharded = gpt.sharded_state_dict(metadata=dict(SHARDING))
    gpt.load_state_dict(
        dist_checkpointing.load(sharded, str(root / "megatron" / "dist"), strict="raise_unexpected")
    )
    return gpt.eval()


def ablate(root: Path, layout: ParallelLayout) -> None:
    """Logits of the same weights under descriptions that each lack one feature."""
    model = read_checkpoint_model(root / "megatron")
    found = {}
    for feature, fields in models.ABLATIONS.get(root.name, {}).items():
        lacking = replace(model, config=replace(model.config, **fields))
        gpt = loaded(root, lacking, layout)
        found[feature] = pipeline_logits(gpt, lacking, models.tokens()).contiguous()
    if found:
        save_file(found, root / "ablated.safetensors")


def check(root: Path, layout: ParallelLayout) -> None:
    """Load, run and save one model."""
    from megatron.core import dist_checkpointing

    model = read_checkpoint_model(root / "megatron")
    gpt = loaded(root, model, layout)
    logits = pipeline_logits(gpt, model, models.tokens())
    target = root / f"tp{layout.tensor}pp{layout.pipeline}"
    if dist.get_rank() == 0:
        (target / "dist").mkdir(parents=True)
        write_checkpoint_assets(target, model, root / "megatron" / ASSETS)
    dist.barrier()
    if logits is not None and dist.get_rank() == dist.get_world_size() - 1:
        save_file({"logits": logits.contiguous()}, target / "logits.safetensors")
    dist_checkpointing.save(
        {"model": gpt.sharded_state_dict(metadata=dict(SHARDING))}, str(target / "dist")
    )


def compare_on_meshes(folder: Path) -> None:
    """Weights read directly against those of a conversion, for every model, mesh and precision."""
    results: dict[str, Any] = {}
    for name, (fields, kinds, precisions) in models.MESHES[dist.get_world_size()].items():
        mesh = build_mesh(ParallelLayout(**fields), current_platform(), seed=1)
        for kind in kinds:
            found = compare(folder / kind, mesh, precisions)
            results[f"{name} {kind}"] = dict(zip(precisions, found, strict=True))
        if name == "TP2 PP2":
            results["refusals"] = refusals(folder / "llama_untied", mesh)
        leave_mesh()
    if dist.get_rank() == 0:
        (folder / f"direct{dist.get_world_size()}.json").write_text(json.dumps(results))


def main(folder: Path, tensor: int, pipeline: int) -> None:
    torch.set_num_threads(1)
    join_world(current_platform(), timeout_minutes=2)
    layout = ParallelLayout(tensor=tensor, pipeline=pipeline, vocab_divisible_by=16)
    build_mesh(layout, current_platform(), seed=1)
    for kind in models.KINDS:
        try:
            check(folder / kind, layout)
            if layout.model_parallel_size == 1:
                ablate(folder / kind, layout)
        except Exception:  # the test of this family reads it; alone, the next family goes on
            (folder / kind / f"tp{tensor}pp{pipeline}.error").write_text(traceback.format_exc())
            if tensor * pipeline > 1:
                raise
    leave_mesh()
    compare_on_meshes(folder)
    leave_world()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
