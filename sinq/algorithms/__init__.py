"""Mathematics of several methods: Sinkhorn balancing, half-quadratic refinement, unbiased scales. Pure."""
