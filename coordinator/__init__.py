"""One study from its specification to a recommendation. Floor 3: the only writer of the store."""
