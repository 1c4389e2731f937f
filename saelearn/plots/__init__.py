"""Arrays in, figure out. One module for each kind of picture; nothing is computed here."""
