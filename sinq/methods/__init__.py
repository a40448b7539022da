"""What a method is, the plan, the loop over blocks, the report; and the SINQ family."""
