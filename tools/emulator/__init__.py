"""An emulated cluster: nodes are network namespaces of this machine, their links are as slow as one says."""
