"""The trainer around megatron.core: arguments, data, the loop, checkpoints, logging."""
