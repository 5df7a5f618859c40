"""What megatron-core leaves out: arguments, initialization, model choice, data, the loop, checkpoints, logging."""
