"""What is true of the tiny language model and its SAEs, measured where the truth is known."""
