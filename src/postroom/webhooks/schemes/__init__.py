"""How providers sign their requests: one module a scheme, its source document on top of it."""
