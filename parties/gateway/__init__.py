"""The OpenAI API on the client's own machine: whoever speaks it is answered through the private protocol."""
