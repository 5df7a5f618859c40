"""What an iteration takes, told from numbers: no torch, no GPU."""
