"""Model directories on disk: Hugging Face's safetensors and Megatron's distributed checkpoints."""
