"""A model that does a real job: telling from its vibration whether a rolling bearing is damaged, and where."""
