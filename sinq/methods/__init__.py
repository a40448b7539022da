"""Methods: their base classes, the plan, the loop over blocks, the report, and the SINQ family."""
