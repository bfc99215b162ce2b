"""A fleet in a time that passes by calculation: how many workers a traffic needs."""
