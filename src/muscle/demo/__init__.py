"""The embedded model update: a small world in which a whole update, from pretraining to table, takes minutes."""
