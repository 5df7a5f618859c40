"""Published tables as data: every row of a table is a run, made from a model, a scheme, a cluster and a few keys."""
