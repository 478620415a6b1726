"""What is run: one file per program or family, each with its list SCENARIOS."""
