"""The small causal LM that comes along, and the invented world it was trained on."""
