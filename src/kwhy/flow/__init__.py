"""What machine code does: blocks, edges, paths that fit, where a value comes from."""
