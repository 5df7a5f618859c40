"""Which device trains which part of the model on a network of uneven links, and what travels at how many bits."""
