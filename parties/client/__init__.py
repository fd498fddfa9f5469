"""Who asks: one client for all protocols, whose sessions differ."""
