"""How one matrix is stored: grids, rounding, packing, stored scales, and the values made of them. Pure torch."""
