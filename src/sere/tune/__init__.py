"""From the loss that a person accepts to the fewest experts: simulate, measure, allocate, verify."""
