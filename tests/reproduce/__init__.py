"""Tables that others published, trained and evaluated again: one command a table, in each file."""
