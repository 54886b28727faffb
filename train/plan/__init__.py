"""What a run would need: memory, time, and what to change when it does not fit."""
