"""vLLM's arguments from settings and requests. Imports no vLLM: Ray's driver needs them too.

What is chosen here keeps samples independent of their company: every sample is a separate request
with its own seed. (One `n=8` request, or one seed for all, makes draws that depend on each
other, or are the same.)
"""

from __future__ import annotations

from typing import Any

from nemo_gdpo.generation.types import EngineSettings, Request

GIB = 2**30
CPU_MEMORY_UTILIZATION = 0.3
"""vLLM counts all RAM, and refuses to start when other programs hold the share that it wants."""
GPU_MEMORY_UTILIZATION = 0.9
CPU_KV_CACHE_GIB = 1.0
MIN_BATCHED_TOKENS = 8192
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Greatest ranks of adapters that vLLM can be told (`MaxLoRARanks` of 0.32)."""
MAX_RANK = RANKS[-1]
CHECKS_LOGITS = "VLLM_COMPUTE_NANS_IN_LOGITS"
"""Variable that makes vLLM count, at every step, the logits of each request that are no numbers."""
NOT_NUMBERS = (
    "the model gives logits that are not numbers; its weights, or generation.dtype, are at fault"
)


def environment(*, cpu: bool) -> dict[str, str]:
    """Environment variables that have to be set before vLLM is imported.

    Args:
        cpu: the engine runs on a CPU.
    """
    variables = {
        # In this process: the same schedule each time, and no child that a signal to the whole
        # group would end before it has finished.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        # Its warnings are about what is chosen here on purpose.
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_LOGGING_STREAM": "ext://sys.stderr",
        "VLLM_NO_USAGE_STATS": "1",
        # Of logits that are no numbers the sampler takes token 0, "!" as a rule, and says nothing.
        CHECKS_LOGITS: "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    return variables | ({"TORCHDYNAMO_DISABLE": "1"} if cpu else {})


def engine_arguments(settings: EngineSettings, *, cpu: bool) -> dict[str, Any]:
    """Keyword arguments of `vllm.LLM` (and `engine_kwargs` of Ray's processor).

    Args:
        settings: how to start the engine.
        cpu: the engine runs on a CPU.
    """
    arguments: dict[str, Any] = {
        "model": settings.model,
        "dtype": settings.dtype,
        "tensor_parallel_size": settings.tensor_parallel_size,
        "max_model_len": settings.max_model_len,
        "max_num_seqs": settings.max_num_seqs,
        "seed": 0,
        # End tokens and sampling come with each request; nothing is taken from files unseen.
        "generation_config": "vllm",
        "load_format": "safetensors",
        "trust_remote_code": False,
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
    }
    kv_cache_gib = settings.kv_cache_gib
    if cpu:
        arguments |= {
            "enforce_eager": True,
            "gpu_memory_utilization": settings.memory_utilization or CPU_MEMORY_UTILIZATION,
            # Chunked prefill and seeds of single requests do not go together on a CPU: the engine
            # dies. Without it a whole prompt has to fit into one step.
            "enable_chunked_prefill": False,
            "enable_prefix_caching": False,
            "max_num_batched_tokens": max(MIN_BATCHED_TOKENS, settings.max_model_len),
        }
        kv_cache_gib = kv_cache_gib or CPU_KV_CACHE_GIB
    else:
        arguments |= {
            "enforce_eager": settings.enforce_eager,
            "gpu_memory_utilization": settings.memory_utilization or GPU_MEMORY_UTILIZATION,
        }
    if settings.adapter is not None:
        arguments |= {
            "enable_lora": True,
            "max_loras": 1,
            "max_lora_rank": next(rank for rank in RANKS if rank >= settings.adapter_rank),
        }
    if settings.structured:
        # The library that answers are checked with; others read grammars in their own way.
        arguments["structured_outputs_config"] = {"backend": "xgrammar"}
    if kv_cache_gib is not None:
        arguments["kv_cache_memory_bytes"] = int(kv_cache_gib * GIB)
    return arguments


def sampling_arguments(request: Request, sample: int) -> dict[str, Any]:
    """Keyword arguments of `vllm.SamplingParams` for one sample of a request.

    The server takes the same names in a completion request.
    """
    point = request.sampling
    arguments: dict[str, Any] = {
        "n": 1,
        "seed": request.seeds[sample],
        "temperature": point.temperature,
        "top_p": point.top_p,
        "min_p": point.min_p,
        "top_k": point.top_k,
        "max_tokens": request.max_tokens,
        "stop": list(request.stop),
        # All end tokens are named; the tokenizer's own EOS ends nothing unless it is among them.
        "stop_token_ids": list(request.stop_token_ids),
        "ignore_eos": True,
        "skip_special_tokens": True,
        # 0: the chosen token's own.
        "logprobs": None if request.logprobs == "none" else 0,
    }
    if request.structure is not None:
        arguments["structured_outputs"] = request.structure.to_argument()
    return arguments
