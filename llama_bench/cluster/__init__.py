"""Everything that runs on Ray. No other package imports ray; what is wrapped here also runs as a plain function."""
