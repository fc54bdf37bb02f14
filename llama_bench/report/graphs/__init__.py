"""Pictures of graphs: reading, folding, matching and drawing apart; `sections` puts them together."""
