"""4-bit data-parallel training for stock Megatron-core."""
