"""The embedded model update: a small synthetic world in which a whole update, from pretraining to table, takes minutes."""
