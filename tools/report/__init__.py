"""A published table beside what was measured here and what the simulator predicts."""
