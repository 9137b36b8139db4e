"""What may go wrong on one rank, when, and with how many: every combination ends in time, with that rank named."""
