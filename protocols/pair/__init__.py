"""Without a dealer: the two parties make, ahead of a query, the corrections that a dealer would send."""
