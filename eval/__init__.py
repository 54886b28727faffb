"""Generation, answer reading, scores and reports."""
