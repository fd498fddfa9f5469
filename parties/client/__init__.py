"""Who asks: one client over two transports, sessions and HTTPS."""
