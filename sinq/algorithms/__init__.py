"""Mathematics that several methods share: Sinkhorn balancing, half-quadratic refinement, unbiased scales. Pure."""
