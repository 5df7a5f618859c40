"""SDP4Bit for stock megatron-core: what travels between data-parallel ranks, in four bits."""
