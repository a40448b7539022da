"""Storage of one matrix: grids, rounding, packing, stored scales, and the values made of them. Pure torch."""
