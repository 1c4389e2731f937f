"""Arrays in, figure out. Layer 4. One module for each kind of picture; nothing is computed here."""
