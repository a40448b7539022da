"""Mathematics of several methods: Sinkhorn balancing, half-quadratic refinement, solved scales. Pure."""
