"""What devices offer and what a program needs, computed from shapes and compiled text. Nothing is run."""
