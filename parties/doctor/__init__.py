"""What is wrong with a party's place in a deployment, and what to do about it."""
