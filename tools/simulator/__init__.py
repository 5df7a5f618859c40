"""Predicts step time, TFLOP/s and memory of a training before anyone pays for it. numpy and scipy only, never torch."""
